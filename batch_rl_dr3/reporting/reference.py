"""What runs are compared with, and which of them may be compared.

Four CSV files ship beside this module.

`atari17_scores.csv`: scores of the 17 games. `random` and `human` are those of
published evaluation code. The `dqn_` columns are of the online DQN (Nature
settings, sticky actions) of Dopamine's published baseline curves, 5 runs:
`dqn_final_last5_mean5runs` is the mean over the last 5 of its 200 iterations
and over the runs. `dqn_adam_jax_final` is of Dopamine's later DQN with Adam.

The paper does not say how it normalises. `dqn` is taken to be
(score - random) / (DQN - random) with the *final* score of the online DQN: it
made the logged data, so 1 means "as good as the policy at the end of the log",
and it is what the papers that introduced these data compare with. The best
iteration of a curve is chosen by chance, the mean over training is of no
policy, and the Adam agent made no data. `human` is
(score - random) / (human - random); DoubleDunk and IceHockey span few points on
it, so that small differences in points become large there.

`minatar_scores.csv`: the same for the five games of MinAtar, measured here.
`random`: the mean return of 100,000 steps of uniformly random play,
`collect --gin_files=collect/minatar_uniform.gin`. `online_dqn`: that of the
last tenth of the 500,000 steps of `collect/minatar_study.gin`, whose agent
made the logged data while it learnt, with epsilon 0.1; one run, seed 0.
`behaviour`: the mean return of all episodes of that log. There are no human
scores.

`dr3_table1.csv`: Table 1 of the paper (Kumar et al., ICLR 2022,
arXiv:2112.04716), normalised average performance in percent. Its text has no
table of final scores: they are unknown here.

`legacy_roms.csv`: the md5 of each ROM in the wheel of atari-py 0.2.5 on PyPI
(atari_py-0.2.5-cp36-cp36m-manylinux1_x86_64.whl, folder atari_roms). The
logged data was made with atari-py of that version or older.

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

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import run_reader

_FOLDER = pathlib.Path(__file__).parent / 'published'
ONLINE_DQN, BEHAVIOUR = 'online_dqn', 'behaviour'
_UPPER_ENDS = {'dqn': ONLINE_DQN, 'human': 'human'}
NORMALISATIONS = tuple(_UPPER_ENDS)


@functools.cache
def scores() -> pd.DataFrame:
  """Returns `random`, `online_dqn`, `human`, `behaviour`, a row per game.

  In points; a score that nobody has measured is NaN. Games are spelt as their
  suite does, so that Breakout is Atari's and breakout is MinAtar's.
  """
  atari, minatar = (
    pd.read_csv(_FOLDER / name, index_col='game')
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
        f'{", ".join(NORMALISATIONS)}.'
      )

  @property
  def label(self) -> str:
    """The name of the scale, for axes and headings."""
    return f'{"DQN" if self.name == "dqn" else "human"}-normalised'

  @property
  def formula(self) -> str:
    """What a reader has to compute to get it."""
    return {
      'dqn': '(score - random) / (final score of the online DQN - random)',
      'human': '(score - random) / (human score - random)',
    }[self.name]

  def __call__(
    self, returns: npt.NDArray[np.float64], games: tuple[str, ...]
  ) -> npt.NDArray[np.float64]:
    """Returns normalised scores."""
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
    points = (table[_UPPER_ENDS[self.name]] - table['random']).astype(float)
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
  table = pd.read_csv(_FOLDER / 'dr3_table1.csv')
  return {
    (row['dataset'], row['method'], row['measure']): Published(
      row['iqm'], row['low'], row['high']
    )
    for row in table.to_dict('records')
  }


@functools.cache
def _legacy_roms() -> dict[str, str]:
  table = pd.read_csv(_FOLDER / 'legacy_roms.csv')
  return {_plain(r['rom']): r['md5'] for r in table.to_dict('records')}


def _plain(game: str) -> str:
  return game.replace('_', '').lower()


def legacy_rom(game: str) -> str | None:
  """Returns the md5 of a game's ROM in atari-py 0.2.5, None if unknown.

  Args:
    game: as Dopamine ('SpaceInvaders') or ALE ('space_invaders') spells it.
  """
  return _legacy_roms().get(_plain(game))


# Settings of the protocol that differ between games by nature.
_PER_GAME = ('environment', 'num_evaluation_episodes', 'rom', 'scale')
_MAX_NAMES = 3


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
      f'{value} in {_named(names)}' for value, names in self.groups.items()
    )
    return f'{self.where}: {self.field} ({groups})'


def differences(runs: Sequence[run_reader.Run]) -> list[Difference]:
  """Returns every field in which runs differ and should not."""
  found = [
    *_differences(runs, _suite, 'version of the numbers', _version),
    *_differences(runs, _game, 'md5 of the ROM', _rom),
    *_data_differences(runs),
  ]
  for key in sorted({key for run in runs for key in mapping(run, 'protocol')}):
    scope = _game if key in _PER_GAME else _suite
    found += _differences(runs, scope, key, functools.partial(_setting, key))
  return found


def refuse(found: Sequence[Difference]) -> None:
  """Raises DataError if runs differ, naming fields and runs."""
  if found:
    raise errors.DataError(
      'these runs cannot share a table, since they differ in '
      f'{" and in ".join(d.sentence for d in found)}. Report on them apart, or '
      'give --allow_mixed to have this printed on the page.'
    )


def rom_notes(runs: Sequence[run_reader.Run]) -> Iterator[str]:
  """Yields which games were played with other ROMs than the logged data."""
  groups: dict[str, set[str]] = {}
  for run in runs:
    if run.setting.suite == 'atari':
      groups.setdefault(_judged(run), set()).add(run.setting.game)
  sentences = {
    'other': 'were evaluated with another ROM than that of atari-py 0.2.5, '
    'which or an older one the logged data was made with',
    'unrecorded': 'do not record the md5 of their ROM, so whether it is that '
    'of the logged data is unknown',
    'unknown': 'have no ROM in atari-py 0.2.5, so which one the logged data '
    'was made with is unknown',
  }
  for key, sentence in sentences.items():
    if games := sorted(groups.get(key, ())):
      yield f'Runs of {", ".join(games)} {sentence}.'


def data_notes(runs: Sequence[run_reader.Run]) -> Iterator[str]:
  """Yields in which settings the seeds of a logged run differ in their data."""
  hashes: dict[tuple[str, str], set[str]] = {}
  for run in runs:
    key = run.setting.label, run.logged_run
    hashes.setdefault(key, set()).add(plain(data_hash(run)))
  mixed = sorted(
    {label for (label, _), found in hashes.items() if len(found) > 1}
  )
  if mixed:
    yield (
      f'Seeds differ in their data, the same for every method, on '
      f'{"; ".join(mixed)}: intervals hold for other data, too.'
    )


def mapping(run: run_reader.Run, key: str) -> dict[str, Any]:
  """Returns a table of provenance.json, empty if there is none."""
  value = run.provenance.get(key)
  return value if isinstance(value, dict) else {}


def shared_protocol(run: run_reader.Run) -> dict[str, Any]:
  """Returns the settings of the protocol that do not differ between games."""
  protocol = mapping(run, 'protocol')
  return {key: protocol[key] for key in protocol if key not in _PER_GAME}


def data_hash(run: run_reader.Run) -> Any:
  """Returns what identifies a run's data, None if it was not recorded."""
  data = mapping(run, 'data')
  return (
    data.get('hash') or data.get('data_hash') or run.provenance.get('data_hash')
  )


def plain(value: Any) -> str:
  """Returns a value of provenance.json as one line of text."""
  if value is None or value == '':
    return 'not recorded'
  return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _differences(
  runs: Sequence[run_reader.Run],
  scope: Callable[[run_reader.Run], str],
  field: str,
  value_of: Callable[[run_reader.Run], Any],
) -> Iterator[Difference]:
  scopes: dict[str, dict[str, list[str]]] = {}
  for run in runs:
    groups = scopes.setdefault(scope(run), {})
    groups.setdefault(plain(value_of(run)), []).append(run.name)
  for where, groups in scopes.items():
    if len(groups) > 1:
      yield Difference(where, field, groups)


def _data_differences(runs: Sequence[run_reader.Run]) -> Iterator[Difference]:
  """Yields which data differ: by name and version where these do, too."""
  named = [
    found
    for found in _differences(runs, _data, 'data set', _name_and_version)
    if 'not recorded' not in found.groups
  ]
  yield from named
  there = {found.where for found in named}
  rest = [run for run in runs if _data(run) not in there]
  yield from _differences(rest, _seed_of_data, 'hash of the data', data_hash)


def _name_and_version(run: run_reader.Run) -> str:
  data = mapping(run, 'data')
  return ' '.join(data[key] for key in ('name', 'version') if data.get(key))


def _suite(run: run_reader.Run) -> str:
  return run.setting.suite or 'unknown suite'


def _game(run: run_reader.Run) -> str:
  return f'{_suite(run)} {run.setting.game}'


def _data(run: run_reader.Run) -> str:
  logged_run = f', logged run {run.logged_run}' if run.logged_run else ''
  return f'{_suite(run)} {run.setting.label}{logged_run}'


def _seed_of_data(run: run_reader.Run) -> str:
  return f'{_data(run)}, seed {run.seed}'


def _setting(key: str, run: run_reader.Run) -> Any:
  return mapping(run, 'protocol').get(key)


def _version(run: run_reader.Run) -> Any:
  return run.provenance.get('numbers_version', 1)


def _rom(run: run_reader.Run) -> Any:
  return run.provenance.get('rom_md5')


def _judged(run: run_reader.Run) -> str:
  expected = legacy_rom(run.setting.game)
  if expected is None:
    return 'unknown'
  if not _rom(run):
    return 'unrecorded'
  return 'same' if _rom(run) == expected else 'other'


def _named(names: Sequence[str]) -> str:
  listed = ', '.join(names[:_MAX_NAMES])
  more = len(names) - _MAX_NAMES
  return f'{listed} and {more} more' if more > 0 else listed
