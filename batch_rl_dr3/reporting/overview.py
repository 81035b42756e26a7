"""What a page is made of: sections of tables and figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import pathlib
import shlex
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from batch_rl_dr3.analysis import returns
from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import (
  figures,
  methods,
  reference,
  run_reader,
  selection,
  statistics,
  tables,
)
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.tables import (
  INCOMPLETE,
  Column,
  Table,
  build,
  number,
  signed,
  text,
)

Block = tables.Table | figures.Figure


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of a page.

  Attributes:
    title: its heading; empty where each block has its own.
    blocks: what is in it, in order.
    is_folded: whether the page shows it only when it is asked for.
  """

  title: str
  blocks: Sequence[Block]
  is_folded: bool = False


@dataclasses.dataclass(frozen=True)
class Fact:
  """Something that runs share.

  Attributes:
    heading: what it is about.
    runs: whom it is true of; empty for all.
    lines: names and values; a plain value has no name.
  """

  heading: str
  runs: str
  lines: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Content:
  """All that a page says of its runs.

  Attributes:
    title: of the page.
    summary: what it is about, in a line.
    notes: what limits the meaning of its numbers, a sentence each.
    sections: in order.
    glossary: what its words mean.
    facts: what the runs were made from and with.
  """

  title: str
  summary: str
  notes: Sequence[str]
  sections: Sequence[Section]
  glossary: Mapping[str, str]
  facts: Sequence[Fact]

  @property
  def tables(self) -> list[tables.Table]:
    """Every table."""
    return [b for b in self._blocks if isinstance(b, tables.Table)]

  @property
  def figures(self) -> list[figures.Figure]:
    """Every figure."""
    return [b for b in self._blocks if isinstance(b, figures.Figure)]

  @property
  def _blocks(self) -> list[Block]:
    return [block for section in self.sections for block in section.blocks]


QUANTITIES: Mapping[str, str] = MappingProxyType(
  {
    'Return': "The sum of an evaluation episode's rewards, not discounted, "
    'averaged over the episodes of an evaluation.',
    'TD loss': 'The Bellman error term of the training loss, without penalties '
    'such as DR3 or CQL, averaged over a sample of the data that is drawn once '
    'for the run.',
    'Feature dot product': "The mean over the same sample of φ(s, a)·φ(s', a')"
    ", φ being the input of the Q-network's last layer; DR3 penalises it "
    '(Kumar et al. 2022, arXiv:2112.04716).',
    'Effective rank': 'srank of the feature matrix: the smallest k for which '
    'the k largest singular values make up a share of at least 1 - δ of the '
    'sum of all, δ = 0.01 (Kumar et al. 2021, arXiv:2010.14498).',
  }
)

# Where a suite's reference scores are from.
_REFERENCES = {
  'atari': 'The reference scores are means over the last 5 iterations and 5 '
  "runs of Dopamine's published DQN curves.",
  'minatar': "The reference scores were measured by this package's `collect`: "
  '100,000 steps of random play; the last 50,000 of the 500,000 steps of the '
  'online DQN, with epsilon 0.1.',
}


def of_study(
  chosen: study_lib.Preset,
  normalisation: reference.Normalisation,
  bootstrap: statistics.Bootstrap,
) -> dict[str, str]:
  """Returns how the numbers of a study's page are made."""
  lengths = ', '.join(
    f'{steps:,} on {study_lib.dataset_name(dataset)}'
    for dataset, steps in chosen.datasets.items()
  )
  kept = ('Return', 'Feature dot product', 'Effective rank')
  count = chosen.num_final_evaluations
  final = (
    'the return of its last evaluation up to there'
    if count == 1
    else f'the mean of its last {count} evaluations up to there'
  )
  return {
    'Final score, average over training': 'The paper reports "either [...] the '
    'average performance over the course of training or the final performance '
    f'at the end of training", the end being at so many gradient steps: '
    f'{lengths}. Here the final score of a run is '
    f'{final}, and its average is the mean of all evaluations up '
    'to there. Whether the authors smooth over the last evaluations is not in '
    'the text.',
    'Normalised score': f'{normalisation.formula}, in percent. How the paper '
    'normalises is not in its text; the final score of the online DQN, which '
    'made the data, is what it is taken to normalise by. '
    f'{_REFERENCES[chosen.suite]}',
    'IQM and intervals': 'The interquartile mean is that of all runs of all '
    'games without the lowest and the highest quarter. Intervals are 95% '
    'percentile intervals of a stratified bootstrap: runs are drawn again '
    f'within each game, {bootstrap.num_resamples:,} times, seed '
    f'{bootstrap.seed} (rliable 1.2.0; Agarwal et al. 2021, arXiv:2108.13264).',
    'Incomplete sets': 'Scores are of finished runs alone. A statistic over '
    'games needs as many runs of each, so where runs are missing it is of the '
    f'largest block of games and runs that there is; {INCOMPLETE} marks it.',
    **{name: QUANTITIES[name] for name in kept},
  }


_FEW_SEEDS = 5
_MAX_NAMES = 12


def notes(collection: run_reader.Collection) -> list[str]:
  """Returns what limits the report's meaning, one sentence each."""
  return [
    *_extent(collection),
    *_unfinished(collection),
    *_unequal_steps(collection),
    *_not_finite(collection),
    *_truncated(collection),
    *_assumed(collection),
    *of_files(collection),
  ]


def of_files(collection: run_reader.Collection) -> Iterator[str]:
  """Yields what is odd about files and ROMs, whatever the report is about."""
  dated = [run.name for run in collection.runs if run.from_future]
  if dated:
    yield (
      f'Files of {listed(dated)} are dated in the future: the clock of the '
      'machine that wrote them, or of this one, is wrong. They were read, not '
      'taken from the cache.'
    )
  yield from _wrapped(collection)
  yield from reference.rom_notes(collection.runs)
  yield from reference.data_notes(collection.runs)


def _wrapped(collection: run_reader.Collection) -> Iterator[str]:
  for run in collection.runs:
    if 'lowest' not in run.evaluations:
      continue
    lowest = run.evaluations['lowest']
    wrapped = lowest[returns.is_wrapped(lowest.to_numpy(float))]
    if len(wrapped):
      yield (
        f'{run.name}: an episode returned {wrapped.min():,.0f} at gradient '
        f'step {wrapped.idxmin():,}, which no game can give: the score on the '
        f'screen wrapped, in {len(wrapped)} of {len(lowest)} evaluations. '
        'Their means are worth nothing.'
      )


def listed(names: list[str]) -> str:
  """Returns the first few of many names, and how many more there are."""
  more = len(names) - _MAX_NAMES
  shown = ', '.join(names[:_MAX_NAMES])
  return f'{shown} and {more} more' if more > 0 else shown


def _extent(collection: run_reader.Collection) -> Iterator[str]:
  num_runs = len(collection.runs)
  num_games = len({setting[:2] for setting in collection.settings})
  num_seeds = [
    len(collection.select(setting, method))
    for setting in collection.settings
    for method in collection.methods(setting)
  ]
  if num_runs == 1:
    yield 'One run: there is nothing to compare it with.'
  if max(num_seeds) == 1 and num_games == 1:
    yield (
      'One game, one seed: this shows that the machinery works; it is not '
      'evidence about the methods.'
    )
  elif min(num_seeds) == 1:
    yield (
      'At least one method has one seed only: no interval, and a difference '
      'can be chance.'
    )
  elif min(num_seeds) < _FEW_SEEDS:
    yield (
      f'As few as {min(num_seeds)} seeds: a bootstrap interval over so few is '
      'too narrow.'
    )


def _unfinished(collection: run_reader.Collection) -> Iterator[str]:
  unfinished = [run.name for run in collection.runs if not run.finished]
  if unfinished:
    yield (
      f'Not finished: {", ".join(unfinished)}. The report shows '
      'unfinished runs as far as they are.'
    )
  for run in collection.runs:
    if run.evaluations.empty:
      yield f'{run.name} has not been evaluated yet, so it has no return.'
    if run.metrics.empty:
      yield f'{run.name} has not logged any metrics yet.'


def _unequal_steps(collection: run_reader.Collection) -> Iterator[str]:
  for setting in collection.settings:
    steps: dict[str, int] = {}
    for method in collection.methods(setting):
      name = methods.display_name(method)
      curve = figures.curve_of(collection, setting, method, run_reader.RETURN)
      if curve.last_step is not None:
        steps[name] = curve.last_step
      elif curve.num_seeds:
        yield (
          f'{setting.label}: the seeds of {name} were never evaluated at the '
          'same gradient step, so it has no score.'
        )
    if len(set(steps.values())) > 1:
      listed = ', '.join(f'{name} at {step:,}' for name, step in steps.items())
      yield (
        f'{setting.label}: the last returns are at different gradient steps '
        f'({listed}).'
      )


def _not_finite(collection: run_reader.Collection) -> Iterator[str]:
  for run in collection.runs:
    for quantity in run_reader.METRICS:
      values = run.series(quantity)
      wrong = values[np.isinf(values)]
      if len(wrong):
        yield (
          f'{run.name}: {quantity} is not finite in {len(wrong)} of '
          f'{len(values)} rows, first at gradient step {wrong.index[0]:,}; '
          'the figures have a gap there, the tables a dash.'
        )


def _truncated(collection: run_reader.Collection) -> Iterator[str]:
  every = [run.evaluations for run in collection.runs]
  num_truncated = sum(int(e['truncated'].sum()) for e in every)
  if num_truncated:
    num_episodes = sum(int(e['episodes'].sum()) for e in every)
    yield (
      f'{num_truncated:,} of {num_episodes:,} evaluation episodes were '
      'cut short by a limit on steps; their returns count as they are.'
    )


def _assumed(collection: run_reader.Collection) -> Iterator[str]:
  names = [
    run.name
    for run in collection.runs
    if 'gamma' not in reference.mapping(run, 'protocol')
  ]
  if names:
    who = (
      'every run' if len(names) == len(collection.runs) else ', '.join(names)
    )
    yield (
      f'Gamma is not in the protocol of {who}; {tables.DEFAULT_GAMMA} is '
      'assumed.'
    )
  versions = {
    reference.plain(run.provenance.get('versions')) for run in collection.runs
  }
  if len(versions) > 1:
    yield 'The runs were made with different versions of software, see below.'


# A list or table in provenance.json that is longer is only counted.
_MAX_NESTED_CHARACTERS = 160
# Facts of provenance.json that the page states, with their headings.
_FACTS = (
  ('protocol', 'Protocol'),
  ('versions', 'Versions'),
  ('git_revision', 'Git revision'),
  ('device', 'Device'),
)
# Those that differ between games, stated where there are few of them.
_FACTS_OF_FEW = (
  ('data', 'Data'),
  ('rom_md5', 'ROM (MD5)'),
  ('command', 'Command'),
)


def facts(collection: run_reader.Collection, few: bool) -> list[Fact]:
  """Returns each distinct fact once, with the runs that it is true of.

  Args:
    collection: the runs.
    few: whether they are few enough to state what differs between games.
  """
  chosen = (*_FACTS_OF_FEW, *_FACTS) if few else _FACTS
  return [
    fact
    for key, heading in chosen
    for fact in _grouped(collection, heading, functools.partial(_lines, key))
  ]


def _grouped(
  collection: run_reader.Collection,
  heading: str,
  lines: Callable[[run_reader.Run], tuple[tuple[str, str], ...]],
) -> list[Fact]:
  groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
  for run in collection.runs:
    groups.setdefault(lines(run), []).append(run.name)
  return [
    Fact(heading, '' if len(groups) == 1 else listed(names), fact)
    for fact, names in groups.items()
  ]


def _lines(key: str, run: run_reader.Run) -> tuple[tuple[str, str], ...]:
  value = run.provenance.get(key)
  if key == 'command' and isinstance(value, list):
    # A flag a line: it can be copied, and no flag is broken.
    value = shlex.join(map(str, value)).replace(' --', ' \\\n  --')
  if key == 'data':
    value = {'hash': reference.data_hash(run)} | reference.mapping(run, 'data')
    value.pop('data_hash', None)
  if key == 'protocol':
    value = reference.shared_protocol(run)
  if isinstance(value, dict) and value:
    return tuple((name, _line(value[name])) for name in sorted(value))
  return (('', _line(value)),)


def _line(value: Any) -> str:
  line = reference.plain(value)
  if isinstance(value, list | dict) and len(line) > _MAX_NESTED_CHARACTERS:
    noun = 'entry' if len(value) == 1 else 'entries'
    return f'{len(value)} {noun}, see provenance.json'
  return line


def runs_table(collection: run_reader.Collection) -> Table:
  """Returns a line for every run."""
  return build(
    'runs',
    'The runs',
    f'In {collection.parent}{_skipped(collection)}.',
    'There are no runs.',
    (
      text('folder', 'Folder'),
      text('method', 'Method', methods.display_name),
      text('suite', 'Suite', when='never'),
      text('game', 'Game'),
      text('dataset', 'Data set', _or_unknown),
      text('run', 'Logged run', _or_unknown),
      text('seed', 'Seed', _or_unknown),
      Column('gradient_steps', 'Gradient steps'),
      Column('evaluations', 'Evaluations'),
      text('finished', 'Finished'),
      text('data_hash', 'Data', when='never'),
      text('rom_md5', 'ROM (MD5)', when='never'),
      text('version', 'Version', when='never'),
    ),
    [_run_row(run) for run in collection.runs],
  )


def _run_row(run: run_reader.Run) -> dict[str, Any]:
  return run.setting._asdict() | {
    'folder': run.name,
    'method': run.method,
    'run': run.logged_run,
    'seed': run.seed,
    'gradient_steps': run.num_gradient_steps,
    'evaluations': len(run.evaluations),
    'finished': 'yes' if run.finished else 'no',
    'data_hash': reference.data_hash(run),
    'rom_md5': run.provenance.get('rom_md5'),
    'version': reference.mapping(run, 'versions').get('batch_rl_dr3'),
  }


def _skipped(collection: run_reader.Collection) -> str:
  if not collection.skipped:
    return ''
  names = [path.name for path in collection.skipped]
  what = (
    'it is no run directory'
    if len(names) == 1
    else ('they are no run directories')
  )
  return f'. Skipped, since {what}: {len(names)} ({listed(names)})'


def _or_unknown(value: str) -> str:
  return value or 'unknown'


_MAX_NAMED_SETTINGS = 3


def selection_section(collection: run_reader.Collection) -> Section:
  """Returns the part of a page about choosing a checkpoint, folded."""
  table = selection.worth(collection)
  blocks: list[Block] = [table]
  if len(table.frame):
    blocks.append(
      figures.make(
        'selection',
        table.title,
        selection.CAPTION,
        functools.partial(selection.draw, table.frame),
      )
    )
  return Section(table.title, blocks, is_folded=True)


def content(collection: run_reader.Collection) -> Content:
  """Returns what the page says."""
  first, *others = tables.all_tables(collection)
  return Content(
    title=_title(collection),
    summary=_summary(collection),
    notes=notes(collection),
    sections=[
      Section('', [first]),
      Section('', figures.all_figures(collection)),
      Section('', others),
      selection_section(collection),
      Section('', [runs_table(collection)]),
    ],
    glossary=QUANTITIES,
    facts=facts(collection, few=True),
  )


def _count(number: int, noun: str) -> str:
  return f'{number} {noun if number == 1 else noun + "s"}'


def _title(collection: run_reader.Collection) -> str:
  settings = collection.settings
  if len(settings) > _MAX_NAMED_SETTINGS:
    return f'DR3 report: {len(settings)} pairs of game and data set'
  return 'DR3 report: ' + '; '.join(setting.label for setting in settings)


def _summary(collection: run_reader.Collection) -> str:
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


_SUITE = 'd4rl'
_TABLE_2 = ('cql', 'cql_dr3')
_BRAC = ('brac', 'brac_dr3')
_PAPERS_BRAC_GAIN = 13.8
_NUM_BRAC_TASKS = 15


@functools.cache
def published_d4rl() -> pd.DataFrame:
  """Returns Table 2 of the paper, a row for each game and method."""
  return pd.read_csv(pathlib.Path(__file__).parent / 'published/dr3_table2.csv')


def d4rl_content(collection: run_reader.Collection) -> Content:
  """Returns what the page says.

  Raises:
    DataError: if no run is of continuous control.
  """
  runs = [run for run in collection.runs if run.setting.suite == _SUITE]
  if not runs:
    raise errors.DataError(
      'no run is of continuous control, which '
      f'--preset={study_lib.DR3_D4RL} is about. Leave --preset out, or name '
      'other --runs.'
    )
  plain = content(collection)
  return dataclasses.replace(
    plain,
    title='DR3 on D4RL',
    sections=[
      Section('', [table_2(runs), brac_table(runs)]),
      *plain.sections,
    ],
  )


def final_d4rl_score(run: run_reader.Run) -> float | None:
  """Returns the normalised score of the last evaluation, in percent.

  None without an evaluation, or where D4RL's scale does not apply.
  """
  scale = run.provenance.get('protocol', {}).get('scale')
  returns = run.evaluations[run_reader.RETURN]
  if scale is None or returns.empty:
    return None
  low, high = scale
  return float(100 * (returns.iloc[-1] - low) / (high - low))


def _statistics(runs: list[run_reader.Run], method: str) -> dict[str, Any]:
  """Returns mean and deviation over the finished runs of one method."""
  of_method = [r for r in runs if r.method == method and r.finished]
  found = [s for s in map(final_d4rl_score, of_method) if s is not None]
  return {
    f'{method}_mean': float(np.mean(found)) if found else None,
    f'{method}_deviation': float(np.std(found)) if len(found) > 1 else None,
    f'{method}_runs': len(found),
  }


def _spread(mean: Any, deviation: Any, *_: Any) -> str:
  if pd.isna(mean) or pd.isna(deviation):
    return number(mean)
  return f'{number(mean)} ± {number(deviation)}'


def table_2(runs: list[run_reader.Run]) -> Table:
  """Returns CQL and CQL + DR3 on the seven tasks, beside the paper's."""
  rows = []
  for game, numbers in published_d4rl().groupby('game', sort=False):
    row: dict[str, Any] = {'game': game}
    factor = 0.01 if str(game).startswith('antmaze') else 1.0
    of_game = [run for run in runs if run.setting.game == game]
    for method in _TABLE_2:
      row |= _statistics(of_game, method)
      for name in (f'{method}_mean', f'{method}_deviation'):
        row[name] = None if row[name] is None else factor * row[name]
      (paper,) = numbers[numbers['method'] == method].to_dict('records')
      row[f'paper_{method}_mean'] = paper['mean']
      row[f'paper_{method}_deviation'] = paper['deviation']
    rows.append(row)
  columns = [text('game', 'Task')]
  for method in _TABLE_2:
    name = methods.display_name(method)
    ends = (f'{method}_mean', f'{method}_deviation')
    columns += [
      Column(ends, name, _spread),
      Column(f'{method}_runs', 'Runs', str),
      Column(tuple(f'paper_{e}' for e in ends), f'{name}, paper', _spread),
    ]
  return build(
    'table_2',
    'CQL and CQL + DR3 on antmaze and the kitchen',
    'Final scores of finished runs, mean ± standard deviation over runs: '
    'percent of the tasks on the kitchen, the share of episodes that reach '
    "the goal on antmaze. Paper: Table 2, arXiv:2112.04716, on D4RL's -v0, "
    'whose environments and data are not those of these runs.',
    'No task is known.',
    columns,
    rows,
  )


def brac_table(runs: list[run_reader.Run]) -> Table:
  """Returns BRAC and the others on MuJoCo, and what DR3 adds to each."""
  games = published_d4rl()['game'].unique()
  settings = dict.fromkeys(
    run.setting for run in runs if run.setting.game not in games
  )
  rows = []
  for setting in settings:
    of_setting = [run for run in runs if run.setting == setting]
    for base in dict.fromkeys(methods.base_of(r.method) for r in of_setting):
      row: dict[str, Any] = {
        'game': setting.game,
        'dataset': setting.dataset,
        'method': base,
      }
      for name, method in (('base', base), ('dr3', methods.with_dr3(base))):
        for key, value in _statistics(of_setting, method).items():
          row[name + key.removeprefix(method)] = value
      both = row['base_mean'] is not None and row['dr3_mean'] is not None
      row['gain'] = row['dr3_mean'] - row['base_mean'] if both else None
      rows.append(row)
  return build(
    'brac',
    'MuJoCo tasks, with and without DR3',
    'Final normalised scores of finished runs, percent, mean ± standard '
    f'deviation over runs. {_brac_medians(rows)}',
    'No run is of a MuJoCo task.',
    (
      text('game', 'Game'),
      text('dataset', 'Data set'),
      text('method', 'Method', methods.display_name),
      Column(('base_mean', 'base_deviation'), 'Without DR3', _spread),
      Column('base_runs', 'Runs', str),
      Column(('dr3_mean', 'dr3_deviation'), 'With DR3', _spread),
      Column('dr3_runs', 'Runs with', str),
      Column('gain', 'DR3 adds', signed),
    ),
    rows,
  )


def _brac_medians(rows: list[dict[str, Any]]) -> str:
  """Returns what DR3 adds to BRAC's median, beside the paper's number."""
  paper = (
    f'Paper: over {_NUM_BRAC_TASKS} tasks, DR3 adds {_PAPERS_BRAC_GAIN} to the '
    "median of BRAC's."
  )
  whole = [r for r in rows if r['method'] == _BRAC[0] and r['gain'] is not None]
  if not whole:
    return paper
  base, with_dr3 = (
    float(np.median([row[f'{name}_mean'] for row in whole]))
    for name in ('base', 'dr3')
  )
  return (
    f'{paper} Here, over {len(whole)}: {signed(with_dr3 - base)} '
    f'({number(base)} and {number(with_dr3)}).'
  )
