"""The page of a report: its sections, its files, and how they are written."""

import base64
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import datetime
from functools import partial
import itertools
import math
import pathlib
import re
import shlex
from typing import Any

import markupsafe

from batch_rl_dr3.config import errors, templates
from batch_rl_dr3.reporting import (
  figures,
  findings,
  reference,
  run_reader,
  selection,
  statistics,
  study_figures,
  study_tables,
  tables,
  watch,
  words,
)
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.run_reader import Collection, Run
from batch_rl_dr3.reporting.study import Study
from batch_rl_dr3.reporting.study_figures import QUANTITIES
from batch_rl_dr3.runs import atomic

INDEX = 'index.html'
_FIGURES, _TABLES = 'figures', 'tables'
_MAX_NAMED_SETTINGS = 3
# A list or table in provenance.json that is longer is only counted.
_MAX_NESTED_CHARACTERS = 160
# Of provenance.json, with headings: what differs between games, stated where
# there are few of them, and what does not.
_OF_GAMES = {'data': 'Data', 'rom_md5': 'ROM (MD5)', 'command': 'Command'}
_OF_ALL = {
  **{'protocol': 'Protocol', 'versions': 'Versions'},
  **{'git_revision': 'Git revision', 'device': 'Device'},
}

Block = tables.Table | figures.Figure
_Lines = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of a page."""

  title: str  # Empty where each block has its own.
  blocks: Sequence[Block]
  is_folded: bool = False  # Whether the page shows it only when asked for.


@dataclasses.dataclass(frozen=True)
class Fact:
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
  def tables(self) -> list[tables.Table]:
    """Every table."""
    blocks = itertools.chain(*(section.blocks for section in self.sections))
    return [block for block in blocks if isinstance(block, tables.Table)]

  @property
  def figures(self) -> list[figures.Figure]:
    """Every figure."""
    blocks = itertools.chain(*(section.blocks for section in self.sections))
    return [block for block in blocks if isinstance(block, figures.Figure)]


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
    notes=findings.notes_of_runs(collection),
    sections=[
      Section('', [first]),
      Section('', figures.all_figures(collection)),
      Section('', others),
      _selection_section(collection),
      Section('', [tables.runs_table(collection)]),
    ],
    glossary=words.parts('quantities'),
    facts=_facts(collection, _OF_GAMES | _OF_ALL),
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
    *(partial(study_figures.over_games, study, q) for q in QUANTITIES),
    partial(study_figures.profiles, study),
    *(
      partial(study_figures.per_game, study, quantity, dataset)
      for dataset in study.datasets
      for quantity in QUANTITIES
    ),
  ]
  drawn = run_reader.run_tasks(draw, num_processes, 'drawing', 'figure')
  figure_4, figure_5, dot_product, profiles, *per_game = (
    [figure] if figure else [] for figure in drawn
  )
  size = len(QUANTITIES)
  games = [
    Section(
      f'Each game, {words.dataset_name(dataset)}',
      [
        *(study_tables.game_scores(study, dataset, m) for m in study.measures),
        *itertools.chain(*per_game[index * size : (index + 1) * size]),
      ],
    )
    for index, dataset in enumerate(study.datasets)
  ]
  presence = [study_tables.presence(study, name) for name in study.datasets]
  return Content(
    title=study.preset.title,
    summary=_study_summary(study),
    notes=findings.notes_of_study(study, collection),
    sections=[
      Section('', [table_1, *figure_4]),
      Section('', [findings.findings(study)]),
      Section('', [other, study_tables.improvement(study), *profiles]),
      Section('', [study_tables.stability(study), *figure_5, *dot_product]),
      *games,
      Section('Which runs there are', presence),
      _selection_section(collection),
      Section('', [tables.runs_table(collection)], is_folded=True),
    ],
    glossary=_study_glossary(study),
    facts=_facts(collection, _OF_ALL),
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
  values = {
    'lengths': lengths,
    'final': words.say(
      'final', 'last_return' if count == 1 else 'mean_return', count=count
    ),
    'formula': study.normalisation.formula,
    'reference': words.say('references', study.preset.suite),
    'num_resamples': study.bootstrap.num_resamples,
    'seed': study.bootstrap.seed,
  }
  quantities = words.parts('quantities')
  del quantities['TD loss']
  return words.parts('study_glossary', **values) | quantities


def _facts(collection: Collection, headings: Mapping[str, str]) -> list[Fact]:
  """Returns each distinct fact once, with the runs that it is true of."""
  facts = []
  for key, heading in headings.items():
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


@dataclasses.dataclass(frozen=True)
class Options:
  """What a report is about, and how."""

  # The study that the runs are taken for; None reports on each game and data
  # set on its own.
  preset: str | None = None
  normalisation: reference.Normalisation = dataclasses.field(
    default_factory=reference.Normalisation
  )
  bootstrap: statistics.Bootstrap = dataclasses.field(
    default_factory=statistics.Bootstrap
  )
  # Whether runs that cannot be compared are reported on all the same, with a
  # warning on the page.
  allow_mixed: bool = False
  cache: run_reader.RunCache | None = None  # None keeps nothing that was read.
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
    patterns,
    options.cache,
    options.num_processes,
    leave_out_unreadable=is_followed,
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
      study_lib.find_preset(options.preset),
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
  return _render(content, warnings, options.refresh_seconds), content


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


def _render(
  content: Content, warnings: Sequence[str], refresh_seconds: float | None
) -> str:
  return render(
    'page.html',
    content=content,
    warnings=warnings,
    refresh_seconds=refresh_seconds,
    made=datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
  )


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
