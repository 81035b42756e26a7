"""What runs are compared with: reference scores, the paper's table, old ROMs.

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
"""

import dataclasses
import functools
import pathlib

import numpy as np
from numpy import typing as npt
import pandas as pd

from batch_rl_dr3.config import errors

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
