"""Which runs make up a published study, and how long they train."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from types import MappingProxyType

import numpy as np
from numpy import typing as npt
import pandas as pd

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import methods, run_reader, statistics


@dataclasses.dataclass(frozen=True)
class Preset:
  """Games x methods x data sets x runs that one report is about.

  Attributes:
    name: what the command line calls it.
    title: what the page calls it.
    suite: the suite of the games.
    games: as their suite spells them.
    methods: those of the paper; runs of others are shown beside them.
    datasets: the gradient steps that each data set is trained for.
    num_runs: of each game, method and data set.
    num_final_evaluations: whose mean is a run's final score. One evaluation of
      MinAtar alone has a standard deviation of 9 to 16 points.
  """

  name: str
  title: str
  suite: str
  games: tuple[str, ...]
  methods: tuple[str, ...]
  datasets: Mapping[str, int]
  num_runs: int
  num_final_evaluations: int = 1

  @property
  def is_published(self) -> bool:
    """Whether it is the paper's own study, whose numbers are known."""
    return self.suite == 'atari'


# The games are listed in follow-up work by the paper's authors. The lengths are
# those of the paper's Table 1: 104 and 200 iterations of 62,500 gradient steps.
DR3_ATARI17 = Preset(
  name='dr3_atari17',
  title='DR3 on 17 Atari games',
  suite='atari',
  games=(
    'Asterix',
    'BeamRider',
    'Breakout',
    'DemonAttack',
    'DoubleDunk',
    'Enduro',
    'IceHockey',
    'Jamesbond',
    'MsPacman',
    'Pong',
    'Qbert',
    'RoadRunner',
    'Seaquest',
    'SpaceInvaders',
    'WizardOfWor',
    'YarsRevenge',
    'Zaxxon',
  ),
  methods=('rem', 'rem_dr3', 'cql', 'cql_dr3'),
  datasets=MappingProxyType(
    {'1pct': 6_500_000, '5pct': 12_500_000, 'first10pct': 12_500_000}
  ),
  num_runs=5,
)

# This package's study at laptop scale: sweeps/minatar.gin.
DR3_MINATAR = Preset(
  name='dr3_minatar',
  title='DR3 on the five games of MinAtar',
  suite='minatar',
  games=('asterix', 'breakout', 'freeway', 'seaquest', 'space_invaders'),
  methods=('rem', 'rem_dr3', 'cql', 'cql_dr3'),
  datasets=MappingProxyType({'10pct': 100_000}),
  num_runs=3,
  num_final_evaluations=5,
)

# The paper's Figure 1 on the same games: studies/figure1.gin.
DR3_MINATAR_FIGURE1 = Preset(
  name='dr3_minatar_figure1',
  title='Four backups on the five games of MinAtar',
  suite='minatar',
  games=DR3_MINATAR.games,
  methods=('regression', 'sarsa', 'td', 'q_learning'),
  datasets=MappingProxyType({'first10pct': 50_000}),
  num_runs=3,
  num_final_evaluations=5,
)

PRESETS = MappingProxyType(
  {
    study.name: study
    for study in (DR3_ATARI17, DR3_MINATAR, DR3_MINATAR_FIGURE1)
  }
)
# Continuous control has no grid of games and data sets: `d4rl_page`.
DR3_D4RL = 'dr3_d4rl'
NAMES = (*PRESETS, DR3_D4RL)
_DATASET_NAMES = {
  '1pct': '1%',
  '5pct': '5%',
  '10pct': '10%',
  'first10pct': 'first 10%',
}


def find_preset(name: str) -> Preset:
  """Returns the preset of a name.

  Raises:
    UsageError: if there is none.
  """
  if name not in PRESETS:
    raise errors.UsageError(
      f'no preset {name!r}; choose one of {", ".join(NAMES)}.'
    )
  return PRESETS[name]


def dataset_name(dataset: str) -> str:
  """Returns '1%' for '1pct'; an unknown name as it is."""
  return _DATASET_NAMES.get(dataset, dataset)


Array = npt.NDArray[np.float64]

AVERAGE, FINAL, LAST = 'average', 'final', 'last'
# Points of a curve: more cannot be told apart in a figure.
_MAX_POINTS = 50


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
  """One quantity of one method on one data set.

  Attributes:
    games: G names.
    steps: int64 [T], gradient steps at which every run has the quantity.
    values: float64 [R, G, T].
    lacks: what is missing of the preset, one phrase each; empty if nothing.
    num_final: evaluations whose mean is a run's final score.
  """

  games: tuple[str, ...]
  steps: npt.NDArray[np.int64]
  values: Array
  lacks: tuple[str, ...]
  num_final: int = 1

  @property
  def num_runs(self) -> int:
    """How many runs each game has."""
    return len(self.values)

  def only(self, games: Sequence[str]) -> 'Cell':
    """Returns the cell without the games that are not named."""
    kept = [index for index, game in enumerate(self.games) if game in games]
    return dataclasses.replace(
      self,
      games=tuple(self.games[index] for index in kept),
      values=self.values[:, kept],
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
  """The runs of a collection that a preset is about.

  Attributes:
    preset: which runs there should be.
    runs: those there are, by data set, method and game.
    strangers: names of runs that the preset is not about, with the reason.
  """

  preset: Preset
  runs: Mapping[tuple[str, str, str], Sequence[run_reader.Run]]
  strangers: tuple[tuple[str, str], ...]

  @functools.cached_property
  def methods(self) -> list[str]:
    """The methods of the preset and those that were run beside them."""
    return methods.ordered(
      [*self.preset.methods, *(method for _, method, _ in self.runs)]
    )

  @functools.cached_property
  def datasets(self) -> list[str]:
    """The data sets of the preset of which there are runs."""
    there = {dataset for dataset, _, _ in self.runs}
    return [name for name in self.preset.datasets if name in there]

  @property
  def measures(self) -> tuple[str, ...]:
    """The scores that are told of a run; the last where it is not the final."""
    if self.preset.num_final_evaluations > 1:
      return AVERAGE, FINAL, LAST
    return AVERAGE, FINAL

  @property
  def lines(self) -> list[tuple[str, str]]:
    """Data sets and methods of which there are runs, in order."""
    there = {(dataset, method) for dataset, method, _ in self.runs}
    return [
      (dataset, method)
      for dataset in self.datasets
      for method in self.methods
      if (dataset, method) in there
    ]

  def methods_on(self, dataset: str) -> list[str]:
    """Returns the methods of which there are runs on a data set."""
    return [method for name, method in self.lines if name == dataset]

  def is_finished(self, run: run_reader.Run) -> bool:
    """Returns whether a run was evaluated at its end.

    That is the end it was given, or the preset's for its data set.
    """
    if run.evaluations.empty:
      return False
    return run.finished or bool(
      run.evaluations.index[-1] >= self.preset.datasets[run.setting.dataset]
    )

  def count(self, dataset: str, method: str, game: str) -> tuple[int, int]:
    """Returns how many runs have finished and how many have not."""
    runs = self.runs.get((dataset, method, game), ())
    finished = sum(map(self.is_finished, runs))
    return finished, len(runs) - finished

  @functools.cache  # noqa: B019, the study lives as long as the report.
  def scores(self, dataset: str, method: str) -> Cell | None:
    """Returns the returns, in points, of finished runs; None without any."""
    return self._cell(dataset, method, run_reader.RETURN, True, None)

  @functools.cache  # noqa: B019
  def measurements(
    self, dataset: str, method: str, quantity: str
  ) -> Cell | None:
    """Returns a quantity of finished runs at every gradient step they share.

    `curve` is thinned for drawing, which moves its second point.
    """
    return self._cell(dataset, method, quantity, True, None)

  @functools.cache  # noqa: B019
  def curve(self, dataset: str, method: str, quantity: str) -> Cell | None:
    """Returns a quantity against gradient steps, at 50 steps at most.

    Args:
      dataset: one of `datasets`.
      method: one of `methods`.
      quantity: one of `scores.METRICS`, or `scores.RETURN`.
    """
    for finished in (True, False):
      cell = self._cell(dataset, method, quantity, finished, _MAX_POINTS)
      if cell is not None:
        break
    return cell

  def _cell(
    self,
    dataset: str,
    method: str,
    quantity: str,
    finished: bool,
    max_points: int | None,
  ) -> Cell | None:
    target = self.preset.datasets[dataset]
    series = {}
    for game in self.preset.games:
      runs = self.runs.get((dataset, method, game), ())
      found = [
        _until(run.series(quantity), target)
        for run in runs
        if self.is_finished(run) or not finished
      ]
      if found := [values for values in found if len(values)]:
        series[game] = found
    games, num_runs = _largest_block({g: len(s) for g, s in series.items()})
    if not games:
      return None
    block = [series[game][:num_runs] for game in games]
    steps = functools.reduce(
      np.intersect1d, (s.index.to_numpy() for row in block for s in row)
    )
    steps = _thinned(steps, max_points)
    values = np.array(
      [[s.reindex(steps).to_numpy(float) for s in row] for row in block]
    ).swapaxes(0, 1)
    return self._complete(
      Cell(
        games,
        steps,
        values.reshape(num_runs, len(games), -1),
        (),
        self.preset.num_final_evaluations,
      ),
      dataset,
      sum(map(len, series.values())),
      finished,
    )

  def _complete(
    self, cell: Cell, dataset: str, num_found: int, finished: bool
  ) -> Cell:
    """Returns the cell with what it lacks, without what is not finite."""
    lacks = []
    if not finished:
      lacks.append('no run has finished')
    if len(cell.games) < len(self.preset.games):
      lacks.append(f'{len(cell.games)} of {len(self.preset.games)} games')
    if cell.num_runs < self.preset.num_runs:
      lacks.append(f'{cell.num_runs} of {self.preset.num_runs} runs of each')
    if (left_out := num_found - cell.values[..., :1].size) and cell.steps.size:
      lacks.append(f'{left_out} left out where games have more runs')
    finite = np.isfinite(cell.values).all(axis=(0, 1))
    if not finite.all():
      lacks.append(f'{(~finite).sum()} steps are not finite')
    steps = cell.steps[finite]
    if not steps.size:
      lacks.append('no gradient step at which every run was measured')
    elif steps[-1] < self.preset.datasets[dataset]:
      lacks.append(
        f'up to {_millions(steps[-1])} of '
        f'{_millions(self.preset.datasets[dataset])} gradient steps'
      )
    return dataclasses.replace(
      cell, steps=steps, values=cell.values[..., finite], lacks=tuple(lacks)
    )


def select_runs(chosen: Preset, collection: run_reader.Collection) -> Study:
  """Returns the runs of a collection that a preset is about.

  Raises:
    DataError: if it is about none of them.
  """
  runs: dict[tuple[str, str, str], list[run_reader.Run]] = {}
  strangers = []
  for run in collection.runs:
    setting = run.setting
    if setting.suite != chosen.suite:
      strangers.append((run.name, f'suite {setting.suite or "unknown"}'))
    elif setting.game not in chosen.games:
      strangers.append((run.name, f'game {setting.game}'))
    elif setting.dataset not in chosen.datasets:
      strangers.append((run.name, f'data set {setting.dataset or "unknown"}'))
    else:
      key = (setting.dataset, run.method, setting.game)
      runs.setdefault(key, []).append(run)
  if not runs:
    name, reason = strangers[0]
    raise errors.DataError(
      f'none of the {len(strangers)} runs belongs to {chosen.name}: {name} is '
      f'of {reason}. Leave --preset out, or name other --runs.'
    )
  return Study(chosen, runs, tuple(strangers))


def on_shared_games(cells: Sequence[Cell | None]) -> list[Cell]:
  """Returns cells without the games that not all of them have.

  Args:
    cells: None, or one without steps, has no game.

  Returns:
    As many cells; none at all if they share no game.
  """
  there = [cell for cell in cells if cell is not None and cell.steps.size]
  if len(there) < len(cells):
    return []
  games = set.intersection(*(set(cell.games) for cell in there))
  return [cell.only(tuple(games)) for cell in there] if games else []


def measure(cell: Cell, name: str) -> Array:
  """Returns a score of each run, `run_score` of its evaluations.

  Args:
    cell: of returns, in any unit.
    name: AVERAGE, FINAL or LAST.

  Returns:
    float64 [runs, games].
  """
  return run_score(cell.values, name, cell.num_final)


def run_score(returns: Array, name: str, num_final: int) -> Array:
  """Returns the mean over some of the evaluations of a run.

  Args:
    returns: float64 [..., T].
    name: AVERAGE, over all; FINAL, over the last `num_final`; or LAST.
    num_final: a preset's `num_final_evaluations`.

  Returns:
    float64 [...].
  """
  counts = {AVERAGE: returns.shape[-1], FINAL: num_final, LAST: 1}
  return np.asarray(returns[..., -counts[name] :].mean(axis=-1))


def stability(curves: Array, num_final: int = 1) -> Array:
  """Returns what `stability_statistics` needs of each run.

  Args:
    curves: normalised scores, float64 [runs, games, steps].
    num_final: a preset's `num_final_evaluations`.

  Returns:
    float64 [runs, games, 3]: the final score, the best one, the area lost.
  """
  final = run_score(curves, FINAL, num_final)
  area = statistics.area_lost(curves)
  return np.stack([final, curves.max(axis=-1), area], axis=-1)


def stability_statistics(parts: Array) -> Array:
  """Returns final over best, and the area lost after the peak.

  Args:
    parts: what `stability` returns.

  Returns:
    float64 [2]: the IQM of final scores over the IQM of each run's best, NaN
    if that is not positive; the IQM of the areas lost.
  """
  final, best, area = statistics.iqm(parts)
  return np.array([final / best if best > 0 else np.nan, area])


def _until(series: pd.Series, target: int) -> pd.Series:
  return series[series.index <= target]


def _thinned(
  steps: npt.NDArray[np.int64], max_points: int | None
) -> npt.NDArray[np.int64]:
  """Returns at most so many steps, evenly spread, the last among them."""
  if max_points is None or len(steps) <= max_points:
    return steps
  chosen = np.linspace(0, len(steps) - 1, max_points).round().astype(int)
  return steps[chosen]


def _largest_block(counts: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
  """Returns the games and the number of runs of the most runs in all.

  Of blocks with as many runs, the one with more games. Games stay in order.
  """
  best: tuple[tuple[str, ...], int] = ((), 0)
  for num_runs in sorted(set(counts.values())):
    games = tuple(game for game, n in counts.items() if n >= num_runs)
    if len(games) * num_runs > len(best[0]) * best[1]:
      best = (games, num_runs)
  return best


def _millions(steps: int) -> str:
  return f'{steps / 1e6:.3g}M'
