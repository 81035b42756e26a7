"""The report: a folder with a page, figures as PNG and tables as CSV."""

import base64
from collections.abc import Callable, Sequence
import datetime
import functools
import os
import pathlib
import shlex
import shutil
from typing import Any

import jinja2
import markupsafe

from batch_rl_dr3 import errors, run_directory
from batch_rl_dr3.reporting import (
  figures,
  methods,
  notes,
  scores,
  table,
  tables,
)

INDEX = 'index.html'
_FIGURES = 'figures'
_TABLES = 'tables'
_TEMPLATE = 'page.html'
_MAX_NAMED_SETTINGS = 3
# A list or table in provenance.json that is longer is only counted.
_MAX_NESTED_CHARACTERS = 160
# Facts of provenance.json that the page states, with their headings.
_FACTS = (
  ('data', 'Data'),
  ('protocol', 'Protocol'),
  ('rom_md5', 'ROM (MD5)'),
  ('versions', 'Versions'),
  ('git_revision', 'Git revision'),
  ('device', 'Device'),
)


def write_report(
  patterns: Sequence[str], output_dir: str | None = None
) -> pathlib.Path:
  """Reads runs and writes their report, whole or not at all.

  Args:
    patterns: globs of run directories.
    output_dir: where the report goes; None for `report` beside the runs. An
      earlier report there is replaced.

  Returns:
    The page.

  Raises:
    DataError: if the runs cannot be read.
    UsageError: if `output_dir` holds anything but a report.
    WriteError: if it cannot be written.
  """
  collection = scores.load(patterns)
  if output_dir is None:
    target = collection.parent / 'report'
  else:
    target = pathlib.Path(output_dir).expanduser()
  target = target.resolve()
  _refuse_foreign(target)
  run_directory.make_directory(target.parent)
  new = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
  try:
    _write(new, collection)
    _replace(target, new)
  except OSError as error:
    raise run_directory.WriteError(target, error) from error
  finally:
    shutil.rmtree(new, ignore_errors=True)
  return target / INDEX


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


def _write(folder: pathlib.Path, collection: scores.Collection) -> None:
  drawn = figures.all_figures(collection)
  tabled = tables.all_tables(collection)
  run_directory.make_directory(folder / _FIGURES)
  run_directory.make_directory(folder / _TABLES)
  for figure in drawn:
    (folder / _FIGURES / f'{figure.name}.png').write_bytes(figure.wide)
    narrow = folder / _FIGURES / f'{figure.name}_narrow.png'
    narrow.write_bytes(figure.narrow)
  for entry in tabled:
    path = folder / _TABLES / f'{entry.name}.csv'
    path.write_text(entry.to_csv(), encoding='utf-8')
  html = render(collection, drawn, tabled)
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


def render(
  collection: scores.Collection,
  drawn: Sequence[figures.Figure],
  tabled: Sequence[table.Table],
) -> str:
  """Returns the page, with its figures inside it.

  Args:
    collection: the runs that the page lists.
    drawn: its figures.
    tabled: its tables.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['data_uri'] = _data_uri
  return environment.get_template(_TEMPLATE).render(
    title=_title(collection),
    made=datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
    summary=_summary(collection),
    warnings=notes.warnings(collection),
    notes=notes.notes(collection),
    figures=drawn,
    tables=tabled,
    runs=[_run_row(run) for run in collection.runs],
    facts=[
      (heading, _grouped(collection, functools.partial(_items, key)))
      for key, heading in _FACTS
    ],
    commands=_grouped(collection, _command),
    parent=collection.parent,
    skipped=[path.name for path in collection.skipped],
  )


def _data_uri(png: bytes) -> markupsafe.Markup:
  encoded = base64.b64encode(png).decode()
  return markupsafe.Markup('data:image/png;base64,') + encoded


def _count(number: int, noun: str, plural: str | None = None) -> str:
  return f'{number} {noun if number == 1 else plural or noun + "s"}'


def _title(collection: scores.Collection) -> str:
  settings = collection.settings
  if len(settings) > _MAX_NAMED_SETTINGS:
    return f'DR3 report: {len(settings)} pairs of game and data set'
  return 'DR3 report: ' + '; '.join(setting.label for setting in settings)


def _summary(collection: scores.Collection) -> str:
  games = {setting[:2] for setting in collection.settings}
  suites = sorted({s.suite for s in collection.settings if s.suite})
  names = methods.ordered(run.method for run in collection.runs)
  seeds = {run.replicate for run in collection.runs}
  parts = [
    _count(len(collection.runs), 'run'),
    _count(len(games), 'game') + (f' ({", ".join(suites)})' if suites else ''),
    _count(len(names), 'method'),
    _count(len(seeds), 'seed'),
  ]
  return ' · '.join(parts)


def _run_row(run: scores.Run) -> dict[str, str]:
  return {
    'Folder': run.name,
    'Method': methods.display_name(run.method),
    'Game': run.setting.game,
    'Data set': run.setting.dataset or 'unknown',
    'Logged run': run.logged_run or 'unknown',
    'Seed': run.seed or 'unknown',
    'Gradient steps': f'{run.num_gradient_steps:,}',
    'Evaluations': str(len(run.evaluations)),
    'Finished': 'yes' if run.finished else 'no',
  }


def _items(key: str, run: scores.Run) -> list[tuple[str, str]]:
  """Returns a fact as lines of name and value; a plain value has no name."""
  value = run.provenance.get(key)
  if key == 'data':
    value = {'hash': notes.data_hash(run)} | notes.mapping(run, 'data')
    value.pop('data_hash', None)
  if isinstance(value, dict) and value:
    return [(name, _line(value[name])) for name in sorted(value)]
  return [('', _line(value))]


def _line(value: Any) -> str:
  text = notes.plain(value)
  if isinstance(value, list | dict) and len(text) > _MAX_NESTED_CHARACTERS:
    return f'{_count(len(value), "entry", "entries")}, see provenance.json'
  return text


def _command(run: scores.Run) -> list[tuple[str, str]]:
  value = run.provenance.get('command')
  if isinstance(value, list):
    value = shlex.join(map(str, value))
  return [('', notes.plain(value))]


def _grouped(
  collection: scores.Collection,
  lines: Callable[[scores.Run], list[tuple[str, str]]],
) -> list[dict[str, Any]]:
  """Returns each distinct fact once, with the runs that it is true of."""
  groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
  for run in collection.runs:
    groups.setdefault(tuple(lines(run)), []).append(run.name)
  return [
    {
      'runs': '' if len(groups) == 1 else ', '.join(names),
      'lines': fact,
    }
    for fact, names in groups.items()
  ]
