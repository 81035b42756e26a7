"""The report: a folder with a page, its figures and its tables.

Whatever a report is about, it is written in the same way: `Content` says what
is in it, and this module makes files of that.
"""

import base64
from collections.abc import Sequence
import dataclasses
import datetime
import os
import pathlib
import re
import shutil

import jinja2
import markupsafe

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import (
  d4rl_page,
  guards,
  intervals,
  overview,
  preset,
  reference,
  run_cache,
  scores,
  section,
  study,
  study_page,
)
from batch_rl_dr3.runs import run_directory

INDEX = 'index.html'
_FIGURES = 'figures'
_TABLES = 'tables'
_TEMPLATE = 'page.html'


@dataclasses.dataclass(frozen=True)
class Options:
  """What a report is about, and how.

  Attributes:
    preset: the name of the study that the runs are taken for; None reports on
      each game and data set on its own.
    normalisation: the scale of a study's scores.
    bootstrap: makes a study's intervals.
    allow_mixed: whether runs that cannot be compared are reported on all the
      same, with a warning on the page.
    cache: where what was read of runs is kept; None keeps nothing.
    num_processes: how many runs are read, and figures of a study drawn, at a
      time.
  """

  preset: str | None = None
  normalisation: reference.Normalisation = dataclasses.field(
    default_factory=reference.Normalisation
  )
  bootstrap: intervals.Bootstrap = dataclasses.field(
    default_factory=intervals.Bootstrap
  )
  allow_mixed: bool = False
  cache: run_cache.RunCache | None = None
  num_processes: int = 1


def write_report(
  patterns: Sequence[str],
  output_dir: str | None = None,
  options: Options | None = None,
) -> pathlib.Path:
  """Reads runs and writes their report, whole or not at all.

  Args:
    patterns: globs of run directories.
    output_dir: where the report goes; None for `report` beside the runs. An
      earlier report there is replaced.
    options: what it is about; None for each game and data set on its own.

  Returns:
    The page.

  Raises:
    DataError: if the runs cannot be read, or cannot share a table.
    UsageError: if `output_dir` holds anything but a report.
    WriteError: if it cannot be written.
  """
  options = options or Options()
  collection = scores.load(patterns, options.cache, options.num_processes)
  if output_dir is None:
    target = collection.parent / 'report'
  else:
    target = pathlib.Path(output_dir).expanduser()
  target = target.resolve()
  _refuse_foreign(target)
  run_directory.make_directory(target.parent)
  mixed = guards.differences(collection.runs)
  if not options.allow_mixed:
    guards.refuse(mixed)
  html, content = make(collection, options, [d.sentence for d in mixed])
  new = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
  try:
    _write(new, html, content)
    _replace(target, new)
  except OSError as error:
    raise run_directory.WriteError(target, error) from error
  finally:
    shutil.rmtree(new, ignore_errors=True)
  return target / INDEX


def make(
  collection: scores.Collection, options: Options, warnings: Sequence[str] = ()
) -> tuple[str, section.Content]:
  """Returns the page, with its figures inside it, and what it says.

  Args:
    collection: the runs.
    options: what the page is about.
    warnings: why the runs may not be compared.

  Raises:
    DataError: if no run belongs to the preset.
  """
  if options.preset is None:
    content = overview.content(collection)
  elif options.preset == preset.DR3_D4RL:
    content = d4rl_page.content(collection)
  else:
    about = study.make(preset.find(options.preset), collection)
    content = study_page.content(
      about,
      collection,
      options.normalisation,
      options.bootstrap,
      options.num_processes,
    )
  return _render(content, warnings), content


def _refuse_foreign(target: pathlib.Path) -> None:
  """Raises unless replacing `target` can destroy nothing but a report."""
  if not target.is_dir():
    return
  for path in target.iterdir():
    if path.name not in (INDEX, _FIGURES, _TABLES):
      raise errors.UsageError(
        f'{target} holds {path.name}, which is no part of a report and would '
        'be lost. Choose another --output_dir.'
      )


def _write(folder: pathlib.Path, html: str, content: section.Content) -> None:
  run_directory.make_directory(folder / _FIGURES)
  run_directory.make_directory(folder / _TABLES)
  for figure in content.figures:
    path = folder / _FIGURES / figure.name
    path.with_name(f'{figure.name}.png').write_bytes(figure.wide)
    path.with_name(f'{figure.name}_narrow.png').write_bytes(figure.narrow)
    path.with_name(f'{figure.name}.pdf').write_bytes(figure.pdf)
  for table in content.tables:
    path = folder / _TABLES / table.name
    csv, latex = table.to_csv(), table.to_latex()
    path.with_name(f'{table.name}.csv').write_text(csv, encoding='utf-8')
    path.with_name(f'{table.name}.tex').write_text(latex, encoding='utf-8')
  (folder / INDEX).write_text(html, encoding='utf-8')


def _replace(target: pathlib.Path, new: pathlib.Path) -> None:
  """Puts `new` in the place of `target`, which moves aside in between."""
  old = target.with_name(f'.{target.name}.{os.getpid()}.old')
  if not target.exists():
    new.rename(target)
    return
  if not target.is_dir():
    raise NotADirectoryError(20, 'it is a file, not a folder')
  target.rename(old)
  try:
    new.rename(target)
  except OSError:
    old.rename(target)
    raise
  shutil.rmtree(old, ignore_errors=True)


def _render(content: section.Content, warnings: Sequence[str]) -> str:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['data_uri'] = _data_uri
  environment.filters['link_papers'] = _link_papers
  return environment.get_template(_TEMPLATE).render(
    content=content,
    warnings=warnings,
    made=datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
  )


def _data_uri(png: bytes) -> markupsafe.Markup:
  encoded = base64.b64encode(png).decode()
  return markupsafe.Markup('data:image/png;base64,') + encoded


def _link_papers(text: str) -> markupsafe.Markup:
  return markupsafe.Markup(
    re.sub(
      r'arXiv:(\d{4}\.\d{5})',
      r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>',
      str(markupsafe.escape(text)),
    )
  )
