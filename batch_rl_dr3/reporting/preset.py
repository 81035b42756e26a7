"""Which runs make up a published study, and how long they train."""

from collections.abc import Mapping
import dataclasses
from types import MappingProxyType

from batch_rl_dr3.config import errors


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
  """

  name: str
  title: str
  suite: str
  games: tuple[str, ...]
  methods: tuple[str, ...]
  datasets: Mapping[str, int]
  num_runs: int

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
)

# The paper's Figure 1 on the same games: sweeps/minatar_figure1.gin.
DR3_MINATAR_FIGURE1 = Preset(
  name='dr3_minatar_figure1',
  title='Four backups on the five games of MinAtar',
  suite='minatar',
  games=DR3_MINATAR.games,
  methods=('regression', 'sarsa', 'td', 'q_learning'),
  datasets=MappingProxyType({'first10pct': 50_000}),
  num_runs=3,
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


def find(name: str) -> Preset:
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
