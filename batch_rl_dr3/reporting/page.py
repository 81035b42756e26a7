"""The page of a study: the paper's tables and figures, and what is missing."""

import base64
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import datetime
import functools
import os
import pathlib
import re
import shutil

import jinja2
import markupsafe

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import (
  figures,
  findings,
  methods,
  overview,
  reference,
  run_reader,
  statistics,
  study_figures,
  study_tables,
  watch,
)
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.overview import Content, Section
from batch_rl_dr3.reporting.study_figures import QUANTITIES
from batch_rl_dr3.runs import atomic

# Figure 4, Figure 5, the feature dot product, and profiles.
_NUM_OVER_GAMES = len(QUANTITIES) + 1


def study_content(
  study: study_lib.Study,
  collection: run_reader.Collection,
  normalisation: reference.Normalisation,
  bootstrap: statistics.Bootstrap,
  num_processes: int,
) -> Content:
  """Returns what the page says.

  Args:
    study: the runs that it is about.
    collection: all that were read.
    normalisation: the scale of scores.
    bootstrap: makes the intervals.
    num_processes: how many figures are drawn at a time.
  """
  tables = study_tables.StudyTables(study, normalisation, bootstrap)
  # First, so that the processes that draw find rliable loaded.
  table_1, other = tables.table_1(), tables.statistics()
  drawn = _draw(
    study,
    study_figures.StudyFigures(study, normalisation, bootstrap),
    num_processes,
  )
  figure_4, figure_5, dot_product, profiles = (
    [figure] if figure else [] for figure in drawn[:_NUM_OVER_GAMES]
  )
  return Content(
    title=study.preset.title,
    summary=_study_summary(study),
    notes=[*_study_notes(study), *overview.of_files(collection)],
    sections=[
      Section('', [table_1, *figure_4]),
      Section('', [findings.findings(study, normalisation, bootstrap)]),
      Section('', [other, tables.improvement(), *profiles]),
      Section('', [tables.stability(), *figure_5, *dot_product]),
      *_per_game(study, normalisation, drawn[_NUM_OVER_GAMES:]),
      Section(
        'Which runs there are',
        [study_tables.presence(study, dataset) for dataset in study.datasets],
      ),
      overview.selection_section(collection),
      Section('', [overview.runs_table(collection)], is_folded=True),
    ],
    glossary=overview.of_study(study.preset, normalisation, bootstrap),
    facts=overview.facts(collection, few=False),
  )


def _draw(
  study: study_lib.Study,
  drawer: study_figures.StudyFigures,
  num_processes: int,
) -> list[figures.Figure | None]:
  """Returns the figures over games, then those of each game by data set."""
  tasks: list[Callable[[], figures.Figure | None]] = [
    *(functools.partial(drawer.over_games, q) for q in QUANTITIES),
    drawer.profiles,
    *(
      functools.partial(drawer.per_game, quantity, dataset)
      for dataset in study.datasets
      for quantity in QUANTITIES
    ),
  ]
  return run_reader.run_tasks(tasks, num_processes, 'drawing', 'figure')


def _per_game(
  study: study_lib.Study,
  normalisation: reference.Normalisation,
  drawn: Sequence[figures.Figure | None],
) -> Iterator[Section]:
  size = len(QUANTITIES)
  for index, dataset in enumerate(study.datasets):
    of_dataset = drawn[index * size : (index + 1) * size]
    yield Section(
      f'Each game, {study_lib.dataset_name(dataset)}',
      [
        *(
          study_tables.game_scores(study, normalisation, dataset, name)
          for name in study.measures
        ),
        *(figure for figure in of_dataset if figure is not None),
      ],
    )


def _study_summary(study: study_lib.Study) -> str:
  runs = [run for found in study.runs.values() for run in found]
  finished = sum(map(study.is_finished, runs))
  wanted = study.preset
  num_wanted = (
    len(wanted.games)
    * len(wanted.methods)
    * len(wanted.datasets)
    * wanted.num_runs
  )
  of_paper = [run for run in runs if run.method in wanted.methods]
  return (
    f'{len(of_paper):,} of {num_wanted:,} runs ({len(wanted.games)} games x '
    f'{len(wanted.methods)} methods x {len(wanted.datasets)} data sets x '
    f'{wanted.num_runs} runs); {finished:,} of {len(runs):,} finished'
  )


def _study_notes(study: study_lib.Study) -> Iterator[str]:
  for dataset in study.preset.datasets:
    name = study_lib.dataset_name(dataset)
    if dataset not in study.datasets:
      yield f'There are no runs on {name}.'
      continue
    lacking = []
    for method in study.methods:
      cell = study.scores(dataset, method)
      if method not in study.methods_on(dataset):
        phrase = 'no runs'
      elif cell is None:
        phrase = 'no finished runs, so no scores'
      elif cell.lacks:
        phrase = '; '.join(cell.lacks)
      else:
        continue
      lacking.append(f'{methods.display_name(method)} ({phrase})')
    if lacking:
      yield f'Incomplete on {name}: {", ".join(lacking)}.'
  if study.strangers:
    reasons = sorted({reason for _, reason in study.strangers})
    yield (
      f'{len(study.strangers)} of the runs that were read do not belong to '
      f'{study.preset.name} and are left out: {overview.listed(reasons)}.'
    )


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
    refresh_seconds: after which the page loads itself again, and begins with
      how each run stands; None for a page of runs as they are.
  """

  preset: str | None = None
  normalisation: reference.Normalisation = dataclasses.field(
    default_factory=reference.Normalisation
  )
  bootstrap: statistics.Bootstrap = dataclasses.field(
    default_factory=statistics.Bootstrap
  )
  allow_mixed: bool = False
  cache: run_reader.RunCache | None = None
  num_processes: int = 1
  refresh_seconds: float | None = None


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
  is_followed = options.refresh_seconds is not None
  collection = run_reader.load(
    patterns,
    options.cache,
    options.num_processes,
    leave_out_unreadable=is_followed,
  )
  if output_dir is None:
    target = collection.parent / 'report'
  else:
    target = pathlib.Path(output_dir).expanduser()
  target = target.resolve()
  _refuse_foreign(target)
  atomic.make_directory(target.parent)
  mixed = reference.differences(collection.runs)
  if not options.allow_mixed:
    reference.refuse(mixed)
  html, content = make(collection, options, [d.sentence for d in mixed])
  new = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
  try:
    _write(new, html, content)
    if is_followed and target.is_dir():
      _update(target, new)
    else:
      _replace(target, new)
  except OSError as error:
    raise atomic.FileError(target, error) from error
  finally:
    shutil.rmtree(new, ignore_errors=True)
  return target / INDEX


def make(
  collection: run_reader.Collection,
  options: Options,
  warnings: Sequence[str] = (),
) -> tuple[str, overview.Content]:
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
  elif options.preset == study_lib.DR3_D4RL:
    content = overview.d4rl_content(collection)
  else:
    about = study_lib.select_runs(
      study_lib.find_preset(options.preset), collection
    )
    content = study_content(
      about,
      collection,
      options.normalisation,
      options.bootstrap,
      options.num_processes,
    )
  if options.refresh_seconds is not None:
    standing = overview.Section('', [watch.progress_table(collection)])
    content = dataclasses.replace(
      content, sections=[standing, *content.sections]
    )
  return _render(content, warnings, options.refresh_seconds), content


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


def _write(folder: pathlib.Path, html: str, content: overview.Content) -> None:
  atomic.make_directory(folder / _FIGURES)
  atomic.make_directory(folder / _TABLES)
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


def _update(target: pathlib.Path, new: pathlib.Path) -> None:
  """Puts the files of `new` into `target` one by one, the page last.

  A page that loads itself again finds one at any moment.
  """
  kept = {path.relative_to(new) for path in new.rglob('*') if path.is_file()}
  for name in sorted(kept, key=lambda name: name.name == INDEX):
    (target / name).parent.mkdir(exist_ok=True)
    (new / name).replace(target / name)
  for path in target.rglob('*'):
    if path.is_file() and path.relative_to(target) not in kept:
      path.unlink()


def _render(
  content: overview.Content,
  warnings: Sequence[str],
  refresh_seconds: float | None,
) -> str:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / 'templates'),
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
    refresh_seconds=refresh_seconds,
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
