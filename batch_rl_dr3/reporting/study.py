"""Studies: which runs make one up, and their numbers as arrays."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
import tomllib
from typing import Any

import numpy as np
from numpy import typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import reference, run_reader, statistics, words
from batch_rl_dr3.reporting.statistics import Array

AVERAGE, FINAL, LAST = 'average', 'final', 'last'
# Points of a curve: more cannot be told apart in a figure.
_MAX_POINTS = 50
DQN = reference.Normalisation()
BOOTSTRAP = statistics.Bootstrap()


@dataclasses.dataclass(frozen=True)
class Preset:
  """Games x methods x data sets x runs that one report is about.

  published/presets.toml says what the fields are.
  """

  name: str
  title: str
  suite: str
  games: Sequence[str]
  methods: Sequence[str]
  datasets: Mapping[str, int]
  num_runs: int
  num_final_evaluations: int = 1

  @property
  def is_published(self) -> bool:
    """Whether it is the paper's own study, whose numbers are known."""
    return self.suite == 'atari'


_FIELDS: dict[str, dict[str, Any]] = tomllib.loads(
  (reference.FOLDER / 'presets.toml').read_text(encoding='utf-8')
)
# Continuous control has no grid of games and data sets.
CONTROL = {name: f for name, f in _FIELDS.items() if 'subject' in f}
PRESETS = {
  name: Preset(name, **fields)
  for name, fields in _FIELDS.items()
  if name not in CONTROL
}


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
  """One quantity of one method on one data set."""

  games: tuple[str, ...]
  steps: npt.NDArray[np.int64]  # [T], at which every run has the quantity.
  values: Array  # [runs, games, T].
  lacks: tuple[str, ...]  # What is missing of the preset, a phrase each.
  num_final: int = 1  # Evaluations whose mean is a run's final score.

  @property
  def num_runs(self) -> int:
    """How many runs each game has."""
    return len(self.values)

  def only(self, games: set[str]) -> 'Cell':
    """Returns the cell without the games that are not named."""
    at = [index for index, game in enumerate(self.games) if game in games]
    names = tuple(self.games[index] for index in at)
    return dataclasses.replace(self, games=names, values=self.values[:, at])


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
  """The runs of a collection that a preset is about."""

  preset: Preset
  # By data set, method and game.
  runs: Mapping[tuple[str, str, str], Sequence[run_reader.Run]]
  strangers: tuple[tuple[str, str], ...]  # Names of other runs, with reasons.
  normalisation: reference.Normalisation
  bootstrap: statistics.Bootstrap

  @functools.cached_property
  def methods(self) -> list[str]:
    """The methods of the preset and those that were run beside them."""
    return words.ordered(
      [*self.preset.methods, *(method for _, method, _ in self.runs)]
    )

  @functools.cached_property
  def lines(self) -> list[tuple[str, str]]:
    """Data sets and methods of which there are runs, in order."""
    there = {(dataset, method) for dataset, method, _ in self.runs}
    lines = itertools.product(self.preset.datasets, self.methods)
    return [line for line in lines if line in there]

  @functools.cached_property
  def datasets(self) -> list[str]:
    """The data sets of the preset of which there are runs."""
    return list(dict.fromkeys(dataset for dataset, _ in self.lines))

  @property
  def measures(self) -> tuple[str, ...]:
    """The scores that are told of a run; the last where it is not the final."""
    last = (LAST,) if self.preset.num_final_evaluations > 1 else ()
    return AVERAGE, FINAL, *last

  def methods_on(self, dataset: str) -> list[str]:
    """Returns the methods of which there are runs on a data set."""
    return [method for name, method in self.lines if name == dataset]

  def is_finished(self, run: run_reader.Run) -> bool:
    """Returns whether a run was evaluated at its own end or the preset's."""
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

  def scores(self, dataset: str, method: str) -> Cell | None:
    """Returns the returns, in points, of finished runs; None without any."""
    return self.measurements(dataset, method, run_reader.RETURN)

  def normalised(self, cell: Cell, name: str) -> Array:
    """Returns the normalised scores of `measure`, float64 [runs, games]."""
    return self.normalisation(measure(cell, name), cell.games)

  @functools.cache  # noqa: B019, the study lives as long as the report.
  def measurements(
    self, dataset: str, method: str, quantity: str
  ) -> Cell | None:
    """Returns a quantity of finished runs at every gradient step they share."""
    return self._cell(dataset, method, quantity)

  @functools.cache  # noqa: B019
  def curve(self, dataset: str, method: str, quantity: str) -> Cell | None:
    """Returns a quantity at 50 steps at most, of finished runs if any."""
    key = dataset, method, quantity
    return self._cell(*key, max_points=_MAX_POINTS) or self._cell(
      *key, finished=False, max_points=_MAX_POINTS
    )

  def _cell(
    self,
    dataset: str,
    method: str,
    quantity: str,
    finished: bool = True,
    max_points: int | None = None,
  ) -> Cell | None:
    target = self.preset.datasets[dataset]
    series = {
      game: [
        values
        for run in self.runs.get((dataset, method, game), ())
        if self.is_finished(run) or not finished
        if len(values := run.series(quantity).loc[:target])
      ]
      for game in self.preset.games
    }
    games, num_runs = _largest_block({g: len(s) for g, s in series.items()})
    if not games:
      return None
    block = [s for game in games for s in series[game][:num_runs]]
    steps, values = run_reader.align(block)
    if max_points is not None and len(steps) > max_points:
      # Evenly spread, the last among them.
      chosen = np.linspace(0, len(steps) - 1, max_points).round().astype(int)
      steps, values = steps[chosen], values[:, chosen]
    values = values.reshape(len(games), num_runs, -1).swapaxes(0, 1)
    finite = np.isfinite(values).all(axis=(0, 1))
    left_out = steps.size and sum(map(len, series.values())) - len(block)
    shared = steps[finite]
    last = int(shared[-1]) if shared.size else 0
    wanted = self.preset.num_runs
    lacks = {
      'no run has finished': not finished,
      f'{len(games)} of {len(series)} games': len(games) < len(series),
      f'{num_runs} of {wanted} runs of each': num_runs < wanted,
      f'{left_out} left out where games have more runs': left_out,
      f'{(~finite).sum()} steps are not finite': not finite.all(),
      'no gradient step at which every run was measured': not shared.size,
      f'up to {_millions(last)} of {_millions(target)} gradient steps': (
        shared.size and last < target
      ),
    }
    return Cell(
      games,
      shared,
      values[..., finite],
      tuple(phrase for phrase, is_so in lacks.items() if is_so),
      self.preset.num_final_evaluations,
    )


def select_runs(
  chosen: Preset,
  collection: run_reader.Collection,
  normalisation: reference.Normalisation = DQN,
  bootstrap: statistics.Bootstrap = BOOTSTRAP,
) -> Study:
  """Returns the runs that a preset is about; DataError if it is about none."""
  runs: dict[tuple[str, str, str], list[run_reader.Run]] = {}
  strangers = []
  for run in collection.runs:
    suite, game, dataset = run.setting
    if suite != chosen.suite:
      strangers.append((run.name, f'suite {suite or "unknown"}'))
    elif game not in chosen.games:
      strangers.append((run.name, f'game {game}'))
    elif dataset not in chosen.datasets:
      strangers.append((run.name, f'data set {dataset or "unknown"}'))
    else:
      runs.setdefault((dataset, run.method, game), []).append(run)
  if not runs:
    name, reason = strangers[0]
    raise errors.DataError(
      f'none of the {len(strangers)} runs belongs to {chosen.name}: {name} is '
      f'of {reason}. Leave --preset out, or name other --runs.'
    )
  return Study(chosen, runs, tuple(strangers), normalisation, bootstrap)


def on_shared_games(cells: Sequence[Cell | None]) -> list[Cell]:
  """Returns as many cells of the games that all of them have; [] if none.

  A cell that is None, or has no step, has no game.
  """
  there = [cell for cell in cells if cell is not None and cell.steps.size]
  if len(there) < len(cells):
    return []
  games = set.intersection(*(set(cell.games) for cell in there))
  return [cell.only(games) for cell in there] if games else []


def measure(cell: Cell, name: str) -> Array:
  """Returns a score of each run of a cell of returns, [runs, games]."""
  return run_score(cell.values, name, cell.num_final)


def run_score(returns: Array, name: str, num_final: int) -> Array:
  """Returns the mean over some of a run's evaluations, the last axis.

  AVERAGE is over all of them, FINAL over the last `num_final`, LAST over one.
  """
  counts = {AVERAGE: returns.shape[-1], FINAL: num_final, LAST: 1}
  return np.asarray(returns[..., -counts[name] :].mean(axis=-1))


def stability(curves: Array, num_final: int = 1) -> Array:
  """Returns each run's final score, best score and area lost, [..., 3].

  Of normalised scores [runs, games, steps].
  """
  final = run_score(curves, FINAL, num_final)
  area = statistics.area_lost(curves)
  return np.stack([final, curves.max(axis=-1), area], axis=-1)


def stability_statistics(parts: Array) -> Array:
  """Returns final over best, and the area lost, of what `stability` returns.

  Each is an IQM; the ratio is NaN if the IQM of the best is not positive.
  """
  final, best, area = statistics.iqm(parts)
  return np.array([final / best if best > 0 else np.nan, area])


def _largest_block(counts: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
  """Returns the games and runs of each that make the most runs in all.

  Of blocks with as many runs, the one with more games.
  """
  blocks = [
    (tuple(game for game, n in counts.items() if n >= num_runs > 0), num_runs)
    for num_runs in sorted({*counts.values()})
  ]
  return max(blocks, key=lambda block: len(block[0]) * block[1])


def _millions(steps: int) -> str:
  return f'{steps / 1e6:.3g}M'
