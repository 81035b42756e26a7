"""The page of a report: its sections, its files, and how they are written."""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import datetime
from functools import partial
import itertools
import math
import pathlib
import re
import shlex
import time
from typing import Any, NamedTuple

import markupsafe
import numpy as np
import pandas as pd

from batch_rl_dr3.analysis import returns
from batch_rl_dr3.config import errors, templates
from batch_rl_dr3.reporting import (
  figures,
  reference,
  run_reader,
  selection,
  statistics,
  study_tables,
  tables,
  watch,
  words,
)
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.run_reader import Collection, Run
from batch_rl_dr3.reporting.study import Study
from batch_rl_dr3.runs import atomic, run_directory

INDEX = 'index.html'
_FIGURES, _TABLES = 'figures', 'tables'
_MAX_NAMED_SETTINGS = 3
# Seeds below which an interval over them is too narrow.
_FEW_SEEDS = 5
# Seconds by which the clocks of two machines may differ unnoticed.
_CLOCK_TOLERANCE = 60.0
# A list or table in provenance.json that is longer is only counted.
_MAX_NESTED_CHARACTERS = 160

Block = tables.Table | figures.Figure
_Lines = tuple[tuple[str, str], ...]


class Section(NamedTuple):
  """A part of a page."""

  title: str  # Empty where each block has its own.
  blocks: Sequence[Block]
  is_folded: bool = False  # Whether the page shows it only when asked for.


class Fact(NamedTuple):
  """Something that runs share."""

  heading: str
  runs: str  # Whom it is true of; empty for all.
  lines: _Lines  # Names and values; a plain value has no name.


@dataclasses.dataclass(frozen=True)
class Content:
  """All that a page says of its runs."""

  title: str
  summary: str
  notes: Sequence[str]  # What limits the meaning of its numbers.
  sections: Sequence[Section]
  glossary: Mapping[str, str]
  facts: Sequence[Fact]  # What the runs were made from and with.

  @property
  def blocks(self) -> list[Block]:
    """Every table and figure."""
    return [block for section in self.sections for block in section.blocks]

  @property
  def tables(self) -> list[tables.Table]:
    """Every table."""
    return [b for b in self.blocks if isinstance(b, tables.Table)]

  @property
  def figures(self) -> list[figures.Figure]:
    """Every figure."""
    return [b for b in self.blocks if isinstance(b, figures.Figure)]


def runs_content(collection: Collection) -> Content:
  """Returns what a page says of each game and data set on its own."""
  first, *others = tables.all_tables(collection)
  settings = [setting.label for setting in collection.settings]
  title = '; '.join(settings)
  if len(settings) > _MAX_NAMED_SETTINGS:
    title = f'{len(settings)} pairs of game and data set'
  return Content(
    title=f'DR3 report: {title}',
    summary=_summary(collection),
    notes=notes_of_runs(collection),
    sections=[
      Section('', [first]),
      Section('', figures.all_figures(collection)),
      Section('', others),
      _selection_section(collection),
      Section('', [tables.runs_table(collection)]),
    ],
    glossary=words.parts('quantities'),
    facts=_facts(collection, 'facts_of_games', 'facts'),
  )


def _summary(collection: Collection) -> str:
  suites = sorted({s.suite for s in collection.settings if s.suite})
  counts = {
    'run': len(collection.runs),
    'game': len({setting[:2] for setting in collection.settings}),
    'method': len({run.method for run in collection.runs}),
    'seed': len({run.replicate for run in collection.runs}),
  }
  parts = {n: f'{count} {n}{"s" * (count != 1)}' for n, count in counts.items()}
  if suites:
    parts['game'] += f' ({", ".join(suites)})'
  return ' · '.join(parts.values())


def _selection_section(collection: Collection) -> Section:
  """Returns the part of a page about choosing a checkpoint, folded."""
  table = selection.worth(collection)
  blocks: list[Block] = [table]
  if len(table.frame):
    draw = partial(selection.draw, table.frame)
    caption = words.say('selection', 'figure')
    blocks.append(figures.make('selection', table.title, caption, draw))
  return Section(table.title, blocks, is_folded=True)


# The first blocks of the pages of continuous control.
_CONTROL: dict[str, Callable[[Collection], list[Block]]] = {
  'dr3_d4rl': lambda c: [tables.table_2(c.runs), tables.brac_table(c.runs)],
  'dr3_cog': lambda c: [tables.cog_table(c.runs), figures.figure_3(c)],
}


def control_content(preset: str, collection: Collection) -> Content:
  """Returns what a page says of continuous control.

  Raises:
    DataError: if no run is of the preset's suite.
  """
  about = study_lib.CONTROL[preset]
  runs = [r for r in collection.runs if r.setting.suite == about['suite']]
  if not runs:
    raise errors.DataError(
      f'no run is of {about["subject"]}, which --preset={preset} is about. '
      'Leave --preset out, or name other --runs.'
    )
  own = dataclasses.replace(collection, runs=tuple(runs))
  plain = runs_content(collection)
  sections = [Section('', _CONTROL[preset](own)), *plain.sections]
  return dataclasses.replace(plain, title=about['title'], sections=sections)


def study_content(
  study: Study, collection: Collection, num_processes: int
) -> Content:
  """Returns what a page says of a study, of all the runs that were read."""
  # First, so that the processes that draw find rliable loaded.
  table_1 = study_tables.table_1(study)
  other = study_tables.statistics_table(study)
  draw: list[Callable[[], figures.Figure | None]] = [
    *(partial(figures.over_games, study, q) for q in figures.QUANTITIES),
    partial(figures.profiles, study),
    *(
      partial(figures.per_game, study, quantity, dataset)
      for dataset in study.datasets
      for quantity in figures.QUANTITIES
    ),
  ]
  drawn = iter(run_reader.run_tasks(draw, num_processes, 'drawing', 'figure'))
  figure_4, figure_5, dot_product, profiles = itertools.islice(drawn, 4)

  def section(
    title: str, *blocks: Block | None, folded: bool = False
  ) -> Section:
    return Section(title, [b for b in blocks if b is not None], folded)

  games = [
    section(
      f'Each game, {words.dataset_name(dataset)}',
      *(study_tables.game_scores(study, dataset, m) for m in study.measures),
      *itertools.islice(drawn, len(figures.QUANTITIES)),
    )
    for dataset in study.datasets
  ]
  presence = [study_tables.presence(study, name) for name in study.datasets]
  return Content(
    title=study.preset.title,
    summary=_study_summary(study),
    notes=notes_of_study(study, collection),
    sections=[
      section('', table_1, figure_4),
      section('', study_tables.findings(study)),
      section('', other, study_tables.improvement(study), profiles),
      section('', study_tables.stability(study), figure_5, dot_product),
      *games,
      section('Which runs there are', *presence),
      _selection_section(collection),
      section('', tables.runs_table(collection), folded=True),
    ],
    glossary=_study_glossary(study),
    facts=_facts(collection, 'facts'),
  )


def _study_summary(study: Study) -> str:
  runs = [run for found in study.runs.values() for run in found]
  preset = study.preset
  counts = (len(preset.games), len(preset.methods), len(preset.datasets))
  games, methods, datasets = counts
  num_of_paper = sum(run.method in preset.methods for run in runs)
  return (
    f'{num_of_paper:,} of {math.prod(counts) * preset.num_runs:,} runs '
    f'({games} games x {methods} methods x {datasets} data sets x '
    f'{preset.num_runs} runs); '
    f'{sum(map(study.is_finished, runs)):,} of {len(runs):,} finished'
  )


def _study_glossary(study: Study) -> dict[str, str]:
  """Returns how the numbers of a study's page are made."""
  lengths = ', '.join(
    f'{steps:,} on {words.dataset_name(dataset)}'
    for dataset, steps in study.preset.datasets.items()
  )
  count = study.preset.num_final_evaluations
  final = 'last_return' if count == 1 else 'mean_return'
  values = {
    'lengths': lengths,
    'final': words.say('final', final, count=count),
    'formula': study.normalisation.formula,
    'reference': words.say('references', study.preset.suite),
    'num_resamples': study.bootstrap.num_resamples,
    'seed': study.bootstrap.seed,
  }
  quantities = words.parts('quantities')
  del quantities['TD loss']
  return words.parts('study_glossary', **values) | quantities


# Notes: what limits the meaning of a page's numbers, a sentence each.

_note = partial(words.say, 'notes')


def notes_of_runs(collection: Collection) -> list[str]:
  """Returns the notes of a page on each game and data set on its own."""
  return [
    *_extent(collection),
    *_unfinished(collection),
    *_unequal_steps(collection),
    *_odd_numbers(collection),
    *_assumed(collection),
    *notes_of_files(collection),
  ]


def notes_of_study(study: Study, collection: Collection) -> list[str]:
  """Returns the notes of a study's page."""
  found = []
  for dataset in study.preset.datasets:
    name = words.dataset_name(dataset)
    if dataset not in study.datasets:
      found.append(_note('no_runs_on', dataset=name))
      continue
    lacking = ', '.join(
      f'{words.display_name(method)} ({lacks})'
      for method in study.methods
      if (lacks := _lacks(study, dataset, method))
    )
    if lacking:
      found.append(_note('incomplete', dataset=name, methods=lacking))
  if strangers := study.strangers:
    reasons = words.listed(sorted({reason for _, reason in strangers}))
    count, title = len(strangers), study.preset.name
    found.append(_note('strangers', count=count, study=title, reasons=reasons))
  return [*found, *notes_of_files(collection)]


def _lacks(study: Study, dataset: str, method: str) -> str:
  if (dataset, method) not in study.lines:
    return 'no runs'
  cell = study.scores(dataset, method)
  return '; '.join(cell.lacks) if cell else 'no finished runs, so no scores'


def notes_of_files(collection: Collection) -> Iterator[str]:
  """Yields what is odd about files and ROMs, whatever the report is about."""
  dated = [run.name for run in collection.runs if _is_from_future(run)]
  if dated:
    yield _note('from_future', runs=words.listed(dated))
  for run in collection.runs:
    lowest = run.evaluations.get('lowest', pd.Series(dtype=float))
    wrapped = lowest[returns.is_wrapped(lowest.to_numpy(float))]
    if len(wrapped):
      values = {'lowest': wrapped.min(), 'step': wrapped.idxmin()}
      values |= {'count': len(wrapped), 'total': len(lowest)}
      yield _note('wrapped', run=run.name, **values)
  yield from reference.rom_notes(collection.runs)
  yield from reference.data_notes(collection.runs)
  yield from _public(collection)


def _is_from_future(run: Run) -> bool:
  names = (run_directory.METRICS, run_directory.SCORES)
  files = [run.folder / name for name in names]
  latest = max((f.stat().st_mtime for f in files if f.exists()), default=0.0)
  return latest > time.time() + _CLOCK_TOLERANCE


def _extent(collection: Collection) -> Iterator[str]:
  num_games = len({setting[:2] for setting in collection.settings})
  num_seeds = [len(collection.select(*line)) for line in collection.lines]
  fewest = min(num_seeds)
  if len(collection.runs) == 1:
    yield _note('one_run')
  if max(num_seeds) == 1 and num_games == 1:
    yield _note('one_game_one_seed')
  elif fewest == 1:
    yield _note('one_seed')
  elif fewest < _FEW_SEEDS:
    yield _note('few_seeds', count=fewest)


def _unfinished(collection: Collection) -> Iterator[str]:
  unfinished = [run.name for run in collection.runs if not run.finished]
  if unfinished:
    yield _note('unfinished', runs=', '.join(unfinished))
  for run in collection.runs:
    if run.evaluations.empty:
      yield _note('not_evaluated', run=run.name)
    if not len(run.metrics):
      yield _note('not_measured', run=run.name)


def _unequal_steps(collection: Collection) -> Iterator[str]:
  for setting in collection.settings:
    steps: dict[str, int] = {}
    for method in collection.methods(setting):
      name = words.display_name(method)
      curve = collection.curve(setting, method, run_reader.RETURN)
      if curve.last_step is not None:
        steps[name] = curve.last_step
      elif curve.num_seeds:
        yield _note('no_shared_step', setting=setting.label, method=name)
    if len(set(steps.values())) > 1:
      last = ', '.join(f'{name} at {step:,}' for name, step in steps.items())
      yield _note('unequal_steps', setting=setting.label, steps=last)


def _odd_numbers(collection: Collection) -> Iterator[str]:
  for run in collection.runs:
    for quantity in run_reader.METRICS:
      values = run.series(quantity)
      wrong = values[np.isinf(values)]
      if len(wrong):
        names = {'run': run.name, 'quantity': quantity, 'step': wrong.index[0]}
        counts = {'count': len(wrong), 'total': len(values)}
        yield _note('not_finite', **names, **counts)
  every = pd.concat([run.evaluations for run in collection.runs])
  count, total = (int(every[name].sum()) for name in ('truncated', 'episodes'))
  if count:
    yield _note('truncated', count=count, total=total)


def _assumed(collection: Collection) -> Iterator[str]:
  runs = collection.runs
  names = [run.name for run in runs if 'gamma' not in run.recorded('protocol')]
  if names:
    who = 'every run' if len(names) == len(runs) else ', '.join(names)
    yield _note('no_gamma', runs=who, gamma=tables.DEFAULT_GAMMA)
  if len({reference.plain(run.provenance.get('versions')) for run in runs}) > 1:
    yield _note('versions')


def _public(collection: Collection) -> Iterator[str]:
  """Yields how runs stand to the public ones of the same settings."""
  for run in collection.runs:
    curve = run.series(run_reader.RETURN)
    steps, points = curve.index.to_numpy(), curve.to_numpy()
    methods = reference.public_methods(run.setting, [run.method])
    # With DR3 a run has other settings.
    for method in methods if run.method in reference.COUNTERPARTS else ():
      for found in reference.compare(method, run.setting.game, steps, points):
        verdict = 'outside' if found.is_outside else 'within'
        numbers = dataclasses.asdict(found)
        yield _note('public', run=run.name, verdict=verdict, **numbers)


# What the runs were made from and with.


def _facts(collection: Collection, *sections: str) -> list[Fact]:
  """Returns each distinct fact once, with the runs that it is true of."""
  facts = []
  headings = [item for s in sections for item in words.parts(s).items()]
  for key, heading in headings:
    groups: dict[_Lines, list[str]] = {}
    for run in collection.runs:
      groups.setdefault(_fact_lines(key, run), []).append(run.name)
    facts += [
      Fact(heading, '' if len(groups) == 1 else words.listed(names), lines)
      for lines, names in groups.items()
    ]
  return facts


def _fact_lines(key: str, run: Run) -> _Lines:
  value = run.provenance.get(key)
  if key == 'command' and isinstance(value, list):
    # A flag a line: it can be copied, and no flag is broken.
    value = shlex.join(map(str, value)).replace(' --', ' \\\n  --')
  if key == 'data':
    value = {'hash': run.data_hash} | run.recorded('data')
    value.pop('data_hash', None)
  if key == 'protocol':
    value = reference.shared_protocol(run)
  if isinstance(value, dict) and value:
    return tuple((name, _fact_line(value[name])) for name in sorted(value))
  return (('', _fact_line(value)),)


def _fact_line(value: Any) -> str:
  line = reference.plain(value)
  if isinstance(value, list | dict) and len(line) > _MAX_NESTED_CHARACTERS:
    noun = 'entry' if len(value) == 1 else 'entries'
    return f'{len(value)} {noun}, see provenance.json'
  return line


# The report.


@dataclasses.dataclass(frozen=True)
class Options:
  """What a report is about, and how."""

  # The study that the runs are taken for; None reports on each game and data
  # set on its own.
  preset: str | None = None
  normalisation: reference.Normalisation = study_lib.DQN
  bootstrap: statistics.Bootstrap = study_lib.BOOTSTRAP
  # Whether runs that cannot be compared are reported on all the same, with a
  # warning on the page.
  allow_mixed: bool = False
  num_processes: int = 1  # Runs read, and figures of a study drawn, at a time.
  # After which the page loads itself again, and begins with how each run
  # stands; None for a page of runs as they are.
  refresh_seconds: float | None = None


def write_report(
  patterns: Sequence[str],
  output_dir: str | None = None,
  options: Options | None = None,
) -> pathlib.Path:
  """Reads runs, writes their report, whole or not at all, and returns its page.

  It goes into `output_dir`, or into `report` beside the runs; an earlier report
  there is replaced. One that is followed is replaced file by file, the page
  last, so that a browser finds one at any moment.

  Raises:
    DataError: if the runs cannot be read, or cannot share a table.
    UsageError: if `output_dir` holds anything but a report.
    WriteError: if it cannot be written.
  """
  options = options or Options()
  is_followed = options.refresh_seconds is not None
  collection = run_reader.load(
    patterns, options.num_processes, leave_out_unreadable=is_followed
  )
  default = collection.parent / 'report'
  target = pathlib.Path(output_dir or default).expanduser().resolve()
  _refuse_foreign(target)
  atomic.make_directory(target.parent)
  mixed = reference.differences(collection.runs)
  if not options.allow_mixed:
    reference.refuse(mixed)
  html, content = make(collection, options, mixed)
  with contextlib.ExitStack() as stack:
    folder = target
    if not (is_followed and target.is_dir()):
      folder = stack.enter_context(atomic.whole_folder(target))
    _write(folder, html, content)
  return target / INDEX


def make(
  collection: Collection, options: Options, warnings: Sequence[str] = ()
) -> tuple[str, Content]:
  """Returns the page, with its figures inside it, and what it says.

  The `warnings` are why the runs may not be compared.

  Raises:
    DataError: if no run belongs to the preset.
  """
  if options.preset is None:
    content = runs_content(collection)
  elif options.preset in _CONTROL:
    content = control_content(options.preset, collection)
  else:
    study = study_lib.select_runs(
      study_lib.PRESETS[options.preset],
      collection,
      options.normalisation,
      options.bootstrap,
    )
    content = study_content(study, collection, options.num_processes)
  if options.refresh_seconds is not None:
    standing = Section('', [watch.progress_table(collection)])
    content = dataclasses.replace(
      content, sections=[standing, *content.sections]
    )
  now = datetime.datetime.now(datetime.UTC)
  html = render(
    'page.html',
    content=content,
    warnings=warnings,
    refresh_seconds=options.refresh_seconds,
    made=now.strftime('%Y-%m-%d %H:%M UTC'),
  )
  return html, content


def _refuse_foreign(target: pathlib.Path) -> None:
  """Raises unless replacing `target` can destroy nothing but a report."""
  if target.exists() and not target.is_dir():
    raise atomic.FileError(target, NotADirectoryError(20, 'it is a file'))
  for path in target.iterdir() if target.is_dir() else ():
    if path.name not in (INDEX, _FIGURES, _TABLES):
      raise errors.UsageError(
        f'{target} holds {path.name}, which is no part of a report and would '
        'be lost. Choose another --output_dir.'
      )


def _write(folder: pathlib.Path, html: str, content: Content) -> None:
  """Writes each file of a report whole, the page last, and removes others."""
  in_figures = atomic.make_directory(folder / _FIGURES)
  in_tables = atomic.make_directory(folder / _TABLES)
  files: dict[pathlib.Path, bytes] = {}
  for figure in content.figures:
    files[in_figures / f'{figure.name}.png'] = figure.wide
    files[in_figures / f'{figure.name}_narrow.png'] = figure.narrow
    files[in_figures / f'{figure.name}.pdf'] = figure.pdf
  for table in content.tables:
    files[in_tables / f'{table.name}.csv'] = table.to_csv().encode()
    files[in_tables / f'{table.name}.tex'] = table.to_latex().encode()
  files[folder / INDEX] = html.encode()
  for path, data in files.items():
    with atomic.whole_file(path, durable=False) as file:
      file.write(data)
  for path in folder.rglob('*'):
    if path.is_file() and path not in files:
      path.unlink()


def render(template: str, **values: Any) -> str:
  """Returns an HTML page from a template; what values say is escaped."""
  environment = templates.environment(__package__, autoescape=True)
  environment.filters['base64'] = lambda data: base64.b64encode(data).decode()
  environment.filters['link_papers'] = _link_papers
  return environment.get_template(template).render(values)


def _link_papers(text: str) -> markupsafe.Markup:
  link = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
  escaped = str(markupsafe.escape(text))
  return markupsafe.Markup(re.sub(r'arXiv:(\d{4}\.\d{5})', link, escaped))
