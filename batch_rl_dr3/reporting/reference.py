"""What runs are compared with, and which of them may be compared.

published/README.md says where the numbers are from. The paper does not say how
it normalises. `dqn` is taken to be (score - random) / (DQN - random) with the
*final* score of the online DQN: it made the logged data, so 1 means "as good as
the policy at the end of the log", and it is what the papers that introduced
these data compare with. The best iteration of a curve is chosen by chance, the
mean over training is of no policy, and the Adam agent made no data. `human` is
(score - random) / (human - random); DoubleDunk and IceHockey span few points on
it, so that small differences in points become large there.

Runs of one suite share a table only if they were played under one protocol by
one version of the numbers; those of one game, with one ROM; those of one game,
data set, logged run and seed, on the same data. Seeds may each have data of
their own, as long as it is the same for every method.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
from numpy import typing as npt
import pandas as pd
from scipy import stats

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import words
from batch_rl_dr3.reporting.run_reader import Run

FOLDER = pathlib.Path(__file__).parent / 'published'
ONLINE_DQN, BEHAVIOUR = 'online_dqn', 'behaviour'
# By name: the column of the upper end, and what it is called in the formula.
_UPPER_ENDS = {
  'dqn': (ONLINE_DQN, 'final score of the online DQN'),
  'human': ('human', 'human score'),
}
# Settings of the protocol that differ between games by nature.
_PER_GAME = ('environment', 'num_evaluation_episodes', 'rom', 'scale')
_MAX_NAMES = 3


@functools.cache
def scores() -> pd.DataFrame:
  """Returns `random`, `online_dqn`, `human`, `behaviour`, a row per game.

  In points; a score that nobody has measured is NaN. Games are spelt as their
  suite does, so that Breakout is Atari's and breakout is MinAtar's.
  """
  atari, minatar = (
    pd.read_csv(FOLDER / name, index_col='game')
    for name in ('atari17_scores.csv', 'minatar_scores.csv')
  )
  atari = atari.rename(columns={'dqn_final_last5_mean5runs': ONLINE_DQN})
  return pd.concat([atari, minatar]).reindex(
    columns=['random', ONLINE_DQN, 'human', BEHAVIOUR]
  )


@dataclasses.dataclass(frozen=True)
class Normalisation:
  """Scores on a scale that games share: 0 is random play.

  Attributes:
    name: 'dqn', where 1 is the final score of the online DQN, or 'human',
      where 1 is the score of a human.
  """

  name: str = 'dqn'

  def __post_init__(self) -> None:
    """Raises UsageError if there is no such normalisation."""
    if self.name not in _UPPER_ENDS:
      raise errors.UsageError(
        f'no normalisation {self.name!r}; choose one of '
        f'{", ".join(_UPPER_ENDS)}.'
      )

  @property
  def label(self) -> str:
    """The name of the scale, for axes and headings."""
    return f'{"DQN" if self.name == "dqn" else "human"}-normalised'

  @property
  def formula(self) -> str:
    """What a reader has to compute to get it."""
    return f'(score - random) / ({_UPPER_ENDS[self.name][1]} - random)'

  def __call__(
    self, returns: npt.NDArray[np.float64], games: tuple[str, ...]
  ) -> npt.NDArray[np.float64]:
    """Returns normalised scores of returns [runs, games, ...]."""
    low = scores().loc[list(games), 'random'].to_numpy(float)
    shape = (-1, *[1] * (returns.ndim - 2))
    return np.asarray(
      (returns - low.reshape(shape)) / self.points(games).reshape(shape)
    )

  def points(self, games: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Returns what 1 on the scale is worth in points, float64 [games].

    Raises:
      UsageError: if a game has no score at the scale's upper end.
    """
    table = scores().loc[list(games)]
    points = (table[_UPPER_ENDS[self.name][0]] - table['random']).astype(float)
    unknown = points.index[points.isna()]
    if len(unknown):
      raise errors.UsageError(
        f'there is no {self.name} score of {", ".join(unknown)} to normalise '
        'by; choose another --normalisation.'
      )
    return points.to_numpy()


@dataclasses.dataclass(frozen=True)
class Published:
  """A number of the paper's Table 1, in percent, and its 95% interval."""

  iqm: float
  low: float
  high: float


@functools.cache
def published() -> dict[tuple[str, str, str], Published]:
  """Returns the paper's numbers by data set, method and measure."""
  table = references()
  table = table[table['source'] == 'arXiv:2112.04716 Table 1']
  return {
    (row['dataset'], row['method'], row['measure']): Published(
      row['value'], row['low'], row['high']
    )
    for row in table.to_dict('records')
  }


@functools.cache
def _legacy_roms() -> dict[str, str]:
  table = pd.read_csv(FOLDER / 'legacy_roms.csv')
  return dict(zip(table['rom'].map(_plain_name), table['md5'], strict=True))


def _plain_name(game: str) -> str:
  return game.replace('_', '').lower()


def legacy_rom(game: str) -> str | None:
  """Returns the md5 of a game's ROM in atari-py 0.2.5, None if unknown.

  Args:
    game: as Dopamine ('SpaceInvaders') or ALE ('space_invaders') spells it.
  """
  return _legacy_roms().get(_plain_name(game))


@dataclasses.dataclass(frozen=True)
class Difference:
  """A field in which runs differ that have to agree in it.

  Attributes:
    where: the suite, the game, or the game and the data.
    field: what it is called.
    groups: names of runs by what they say.
  """

  where: str
  field: str
  groups: dict[str, list[str]]

  @property
  def sentence(self) -> str:
    """All of it on one line."""
    groups = '; '.join(
      f'{value} in {words.listed(names, _MAX_NAMES)}'
      for value, names in self.groups.items()
    )
    return f'{self.where}: {self.field} ({groups})'


def differences(runs: Sequence[Run]) -> list[Difference]:
  """Returns every field in which runs differ and should not."""
  # Data with names are told apart by these: their hashes say nothing.
  named = [
    found
    for found in _differences(runs, _data, 'data set', _name_and_version)
    if 'not recorded' not in found.groups
  ]
  there = {found.where for found in named}
  rest = [run for run in runs if _data(run) not in there]
  keys = {key for run in runs for key in run.recorded('protocol')}
  return [
    *_differences(
      runs,
      _suite,
      'version of the numbers',
      lambda run: run.provenance.get('numbers_version', 1),
    ),
    *_differences(runs, _game, 'md5 of the ROM', _rom),
    *named,
    *_differences(
      rest,
      lambda run: f'{_data(run)}, seed {run.seed}',
      'hash of the data',
      lambda run: run.data_hash,
    ),
    *(
      difference
      for key in sorted(keys)
      for difference in _differences(
        runs,
        _game if key in _PER_GAME else _suite,
        key,
        functools.partial(_setting, key),
      )
    ),
  ]


def refuse(found: Sequence[Difference]) -> None:
  """Raises DataError if runs differ, naming fields and runs."""
  if found:
    raise errors.DataError(
      'these runs cannot share a table, since they differ in '
      f'{" and in ".join(d.sentence for d in found)}. Report on them apart, or '
      'give --allow_mixed to have this printed on the page.'
    )


def _differences(
  runs: Sequence[Run],
  scope: Callable[[Run], str],
  field: str,
  value_of: Callable[[Run], Any],
) -> Iterator[Difference]:
  scopes: dict[str, dict[str, list[str]]] = {}
  for run in runs:
    groups = scopes.setdefault(scope(run), {})
    groups.setdefault(plain(value_of(run)), []).append(run.name)
  for where, groups in scopes.items():
    if len(groups) > 1:
      yield Difference(where, field, groups)


def rom_notes(runs: Sequence[Run]) -> Iterator[str]:
  """Yields which games were played with other ROMs than the logged data."""
  groups: dict[str, set[str]] = {}
  for run in runs:
    if run.setting.suite == 'atari':
      groups.setdefault(_judged(run), set()).add(run.setting.game)
  for judgement in ('other', 'unrecorded', 'unknown'):
    if games := sorted(groups.get(judgement, ())):
      yield words.say('notes', f'rom_{judgement}', games=', '.join(games))


def _judged(run: Run) -> str:
  expected = legacy_rom(run.setting.game)
  if expected is None:
    return 'unknown'
  if not _rom(run):
    return 'unrecorded'
  return 'same' if _rom(run) == expected else 'other'


def data_notes(runs: Sequence[Run]) -> Iterator[str]:
  """Yields in which settings the seeds of a logged run differ in their data."""
  hashes: dict[tuple[str, str], set[str]] = {}
  for run in runs:
    key = run.setting.label, run.logged_run
    hashes.setdefault(key, set()).add(plain(run.data_hash))
  mixed = {label for (label, _), found in hashes.items() if len(found) > 1}
  if mixed:
    yield words.say('notes', 'mixed_data', settings='; '.join(sorted(mixed)))


def shared_protocol(run: Run) -> dict[str, Any]:
  """Returns the settings of the protocol that do not differ between games."""
  protocol = run.recorded('protocol')
  return {key: protocol[key] for key in protocol if key not in _PER_GAME}


def plain(value: Any) -> str:
  """Returns a value of provenance.json as one line of text."""
  if value is None or value == '':
    return 'not recorded'
  return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _name_and_version(run: Run) -> str:
  data = run.recorded('data')
  return ' '.join(data[key] for key in ('name', 'version') if data.get(key))


def _suite(run: Run) -> str:
  return run.setting.suite or 'unknown suite'


def _game(run: Run) -> str:
  return f'{_suite(run)} {run.setting.game}'


def _data(run: Run) -> str:
  logged_run = f', logged run {run.logged_run}' if run.logged_run else ''
  return f'{_suite(run)} {run.setting.label}{logged_run}'


def _setting(key: str, run: Run) -> Any:
  return run.recorded('protocol').get(key)


def _rom(run: Run) -> Any:
  return run.provenance.get('rom_md5')


# The published method that a method of ours repeats.
COUNTERPARTS = {'cql': 'QR-CQL'}
_CONFIDENCE = 0.99
# Between evaluations of the published curves, in gradient steps.
_INTERVAL = 125_000


@functools.cache
def references() -> pd.DataFrame:
  """Returns references.csv, whose columns are its own description."""
  path = FOLDER / 'references.csv'
  return pd.read_csv(path, dtype={'source': str, 'game': str})


def prediction_interval(values: npt.ArrayLike) -> tuple[float, float]:
  """Returns where one more normal draw lies with 99%, by Student's t.

  mean -+ t s sqrt(1 + 1 / n): wider than the range of n draws, outside which
  one more lies in 2 of n + 1 cases.

  Args:
    values: float64 [n], at least two.
  """
  sample = np.asarray(values, float)
  low, high = stats.t.interval(
    _CONFIDENCE,
    len(sample) - 1,
    loc=sample.mean(),
    scale=sample.std(ddof=1) * np.sqrt(1 + 1 / len(sample)),
  )
  return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class PublicComparison:
  """A run's score and those of the seeds that others have published.

  Attributes:
    measure: 'average' over training up to `gradient_steps`, or the 'score'
      there.
    value: the run's, in points.
    mean: of the published seeds.
    low: of the interval in which one more seed is expected.
    high: likewise.
  """

  method: str
  game: str
  measure: str
  gradient_steps: int
  value: float
  mean: float
  low: float
  high: float

  @property
  def is_outside(self) -> bool:
    """Whether the run's settings or data are likely to be others."""
    return not self.low <= self.value <= self.high


def compare(
  method: str,
  game: str,
  gradient_steps: npt.NDArray[Any],
  returns: npt.NDArray[np.float64],
) -> list[PublicComparison]:
  """Returns a run's comparisons at the gradient steps that it has reached.

  Args:
    method: of references.csv, such as 'QR-CQL'.
    game: as ALE spells it in camel case, such as 'Breakout'.
    gradient_steps: int [evaluations], ascending.
    returns: mean undiscounted return of each evaluation, in points.
  """
  table = references()
  table = table[
    (table['method'] == method)
    & (table['game'] == game)
    & (table['normalisation'] == 'none')
  ]
  found = []
  for (measure, steps), rows in table.groupby(
    ['measure', 'gradient_steps'], sort=False
  ):
    reached = returns[gradient_steps <= steps]
    if not len(reached) or gradient_steps[-1] <= steps - _INTERVAL:
      continue
    value = reached.mean() if measure == 'average' else reached[-1]
    seeds = rows['value'].to_numpy(float)
    found.append(
      PublicComparison(
        method,
        game,
        measure,
        int(steps),
        float(value),
        float(seeds.mean()),
        *prediction_interval(seeds),
      )
    )
  return found
