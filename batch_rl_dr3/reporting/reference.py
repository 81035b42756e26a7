"""What runs are compared with, and which of them may be compared.

published/README.md says where the numbers are from. The paper does not say how
it normalises. `dqn` is taken to be (score - random) / (DQN - random) with the
*final* score of the online DQN: it made the logged data, so 1 means "as good as
the policy at the end of the log", and it is what the papers that introduced
these data compare with. The best iteration of a curve is chosen by chance, and
the mean over training is of no policy. `human` is (score - random) / (human -
random); DoubleDunk and IceHockey span few points on it.

Runs of one suite share a table only if they were played under one protocol by
one version of the numbers; those of one game, with one ROM; those of one game,
data set, logged run and seed, on the same data, which seeds may each have.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from numpy import typing as npt
import pandas as pd
from scipy import stats

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import words
from batch_rl_dr3.reporting.run_reader import Run, Setting

FOLDER = pathlib.Path(__file__).parent / 'published'
ONLINE_DQN, BEHAVIOUR = 'online_dqn', 'behaviour'
# By name: the column of the upper end, and what labels and formulas call it.
_UPPER_ENDS = {
  'dqn': (ONLINE_DQN, 'DQN', 'final score of the online DQN'),
  'human': ('human', 'human', 'human score'),
}
# Settings of the protocol that differ between games by nature.
_PER_GAME = ('environment', 'num_evaluation_episodes', 'rom', 'scale')
_MAX_NAMES = 3
_UNRECORDED = 'not recorded'
# The published method that a method of ours repeats.
COUNTERPARTS = {'cql': 'QR-CQL'}
_CONFIDENCE = 0.99
# Between evaluations of the published curves, in gradient steps.
_INTERVAL = 125_000


@functools.cache
def scores() -> pd.DataFrame:
  """Returns points of `random`, `online_dqn`, `human`, `behaviour`, by game.

  NaN if nobody has measured it. Breakout is Atari's and breakout is MinAtar's.
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

  1 is the final score of the online DQN of 'dqn', that of a human of 'human'.
  """

  name: str = 'dqn'

  @property
  def label(self) -> str:
    """The name of the scale, for axes and headings."""
    return f'{_UPPER_ENDS[self.name][1]}-normalised'

  @property
  def formula(self) -> str:
    """What a reader has to compute to get it."""
    return f'(score - random) / ({_UPPER_ENDS[self.name][2]} - random)'

  def __call__(
    self, returns: npt.NDArray[np.float64], games: tuple[str, ...]
  ) -> npt.NDArray[np.float64]:
    """Returns normalised scores of returns [runs, games, ...].

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
    shape = (-1, *[1] * (returns.ndim - 2))
    low = table['random'].to_numpy(float).reshape(shape)
    return np.asarray((returns - low) / points.to_numpy().reshape(shape))


@functools.cache
def references() -> pd.DataFrame:
  """Returns references.csv, whose columns are its own description."""
  path = FOLDER / 'references.csv'
  return pd.read_csv(path, dtype={'source': str, 'game': str})


class Published(NamedTuple):
  """A number of the paper's Table 1, in percent, and its 95% interval."""

  iqm: float
  low: float
  high: float


@functools.cache
def published() -> dict[tuple[str, str, str], Published]:
  """Returns the paper's numbers by data set, method and measure."""
  table = references().query("source == 'arXiv:2112.04716 Table 1'")
  table = table.set_index(['dataset', 'method', 'measure'])
  rows = table[['value', 'low', 'high']].itertuples(name=None)
  return {key: Published(*numbers) for key, *numbers in rows}


@functools.cache
def _legacy_roms() -> dict[str, str]:
  table = pd.read_csv(FOLDER / 'legacy_roms.csv')
  return dict(zip(table['rom'].map(_plain_name), table['md5'], strict=True))


def _plain_name(game: str) -> str:
  return game.replace('_', '').lower()


def legacy_rom(game: str) -> str | None:
  """Returns the md5 of a game's ROM in atari-py 0.2.5, None if unknown.

  'SpaceInvaders', as Dopamine spells it, is ALE's 'space_invaders'.
  """
  return _legacy_roms().get(_plain_name(game))


def differences(runs: Sequence[Run]) -> list[str]:
  """Returns every field in which runs differ and should not, in sentences."""
  suites = [run.setting.suite or 'unknown suite' for run in runs]
  games = [f'{s} {r.setting.game}' for s, r in zip(suites, runs, strict=True)]
  data = [
    f'{suite} {run.setting.label}'
    + (f', logged run {run.logged_run}' if run.logged_run else '')
    for suite, run in zip(suites, runs, strict=True)
  ]
  # Data with names are told apart by these: their hashes say nothing.
  names = [_name_and_version(run.recorded('data')) for run in runs]
  named = {
    where: groups
    for where, groups in _differing(runs, data, names).items()
    if _UNRECORDED not in groups
  }
  found = {
    'version of the numbers': _differing(
      runs, suites, [run.provenance.get('numbers_version', 1) for run in runs]
    ),
    'md5 of the ROM': _differing(
      runs, games, [run.provenance.get('rom_md5') for run in runs]
    ),
    'data set': named,
    'hash of the data': _differing(
      runs,
      [f'{d}, seed {run.seed}' for d, run in zip(data, runs, strict=True)],
      [
        None if d in named else run.data_hash
        for d, run in zip(data, runs, strict=True)
      ],
    ),
  }
  for key in sorted({key for run in runs for key in run.recorded('protocol')}):
    values = [run.recorded('protocol').get(key) for run in runs]
    scopes = games if key in _PER_GAME else suites
    found[key] = _differing(runs, scopes, values)
  return [
    f'{where}: {field} ({_listed(groups)})'
    for field, differing in found.items()
    for where, groups in differing.items()
  ]


def _listed(groups: dict[str, list[str]]) -> str:
  return '; '.join(
    f'{value} in {words.listed(names, _MAX_NAMES)}'
    for value, names in groups.items()
  )


def _name_and_version(data: dict[str, Any]) -> str:
  return ' '.join(data[key] for key in ('name', 'version') if data.get(key))


def _differing(
  runs: Sequence[Run], scopes: Sequence[str], values: Sequence[Any]
) -> dict[str, dict[str, list[str]]]:
  """Returns scopes in which runs differ, with names of runs by their values."""
  found: dict[str, dict[str, list[str]]] = {}
  for run, scope, value in zip(runs, scopes, values, strict=True):
    found.setdefault(scope, {}).setdefault(plain(value), []).append(run.name)
  return {scope: groups for scope, groups in found.items() if len(groups) > 1}


def refuse(found: Sequence[str]) -> None:
  """Raises DataError if there are `differences`."""
  if found:
    raise errors.DataError(
      'these runs cannot share a table, since they differ in '
      f'{" and in ".join(found)}. Report on them apart, or give --allow_mixed '
      'to have this printed on the page.'
    )


def rom_notes(runs: Sequence[Run]) -> Iterator[str]:
  """Yields which games were played with other ROMs than the logged data."""
  found = set()
  for run in runs:
    game, rom = run.setting.game, run.provenance.get('rom_md5')
    expected = legacy_rom(game)
    if run.setting.suite == 'atari' and (expected is None or rom != expected):
      judgement = 'other' if rom else 'unrecorded'
      found.add(('unknown' if expected is None else judgement, game))
  for judgement in ('other', 'unrecorded', 'unknown'):
    games = ', '.join(sorted(game for name, game in found if name == judgement))
    if games:
      yield words.say('notes', f'rom_{judgement}', games=games)


def data_notes(runs: Sequence[Run]) -> Iterator[str]:
  """Yields in which settings the seeds of a logged run differ in their data."""
  hashes: dict[tuple[str, str], set[str]] = {}
  for run in runs:
    where = run.setting.label, run.logged_run
    hashes.setdefault(where, set()).add(plain(run.data_hash))
  labels = {label for (label, _), found in hashes.items() if len(found) > 1}
  if labels:
    yield words.say('notes', 'mixed_data', settings='; '.join(sorted(labels)))


def shared_protocol(run: Run) -> dict[str, Any]:
  """Returns the settings of the protocol that do not differ between games."""
  protocol = run.recorded('protocol')
  return {key: protocol[key] for key in protocol if key not in _PER_GAME}


def plain(value: Any) -> str:
  """Returns a value of provenance.json as one line of text."""
  if value is None or value == '':
    return _UNRECORDED
  return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def prediction_interval(values: npt.ArrayLike) -> tuple[float, float]:
  """Returns where one more normal draw lies with 99%, by Student's t.

  mean -+ t s sqrt(1 + 1 / n) of n >= 2 values: wider than their range, outside
  which one more lies in 2 of n + 1 cases.
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
  """A run's score, in points, and those of the seeds that others published.

  Between `low` and `high` one more of these seeds is expected.
  """

  method: str
  game: str
  measure: str  # 'average' up to `gradient_steps`, or the 'score' there.
  gradient_steps: int
  value: float
  mean: float  # Of the published seeds.
  low: float
  high: float

  @property
  def is_outside(self) -> bool:
    """Whether the run's settings or data are likely to be others."""
    return not self.low <= self.value <= self.high


def public_seeds(
  method: str, game: str
) -> dict[tuple[str, int], npt.NDArray[np.float64]]:
  """Returns what others' seeds got, in points, by measure and gradient steps.

  The method is one of references.csv, such as 'QR-CQL'; the game is as ALE
  spells it in camel case, such as 'Breakout'.
  """
  table = references().query(
    "method == @method and game == @game and normalisation == 'none'"
  )
  groups = table.groupby(['measure', 'gradient_steps'], sort=False)['value']
  return {
    (str(measure), int(steps)): values.to_numpy(float)
    for (measure, steps), values in groups
  }


def public_methods(setting: Setting, methods: Iterable[str]) -> list[str]:
  """Returns the published methods that ours repeat, but for DR3, in a game."""
  if (setting.suite, setting.dataset) != ('atari', '1pct'):
    return []
  found = dict.fromkeys(COUNTERPARTS.get(words.base_of(m)) for m in methods)
  return [name for name in found if name and public_seeds(name, setting.game)]


def compare(
  method: str,
  game: str,
  gradient_steps: npt.NDArray[Any],
  returns: npt.NDArray[np.float64],
) -> list[PublicComparison]:
  """Returns a run's comparisons at the gradient steps that it has reached.

  `method` and `game` are those of `public_seeds`, `returns` the mean
  undiscounted ones of the evaluations at `gradient_steps`, ascending.
  """
  found = []
  for (measure, steps), seeds in public_seeds(method, game).items():
    reached = returns[gradient_steps <= steps]
    if len(reached) and gradient_steps[-1] > steps - _INTERVAL:
      value = reached.mean() if measure == 'average' else reached[-1]
      numbers = (float(value), float(seeds.mean()), *prediction_interval(seeds))
      found.append(PublicComparison(method, game, measure, steps, *numbers))
  return found
