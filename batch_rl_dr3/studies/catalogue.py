"""The studies that train: their runs and what is drawn of them.

A run is a base method of a suite (`atari/methods/<base>.gin` or
`minatar/<base>.gin`) and what the study changes of it (`studies/<change>.gin`,
bindings), so that the same study serves MinAtar and Atari.
"""

import dataclasses

# What is drawn: columns of metrics.csv, and `return`.
RETURN = 'return'
_DOT = 'feature_dot_product'
_RANK = 'effective_rank'


@dataclasses.dataclass(frozen=True)
class Variant:
  """One of the things that a study trains.

  Attributes:
    method: its name in runs, tables and figures.
    base: the base method's gin file.
    change: the study's gin file; None for the base method as it is.
    bindings: further changes.
    starts_from: the method whose last checkpoint it starts from.
    is_drawn: whether it is in the figure.
  """

  method: str
  base: str
  change: str | None = None
  bindings: tuple[str, ...] = ()
  starts_from: str | None = None
  is_drawn: bool = True

  def gin_files(self, suite: str, dataset: str | None) -> list[str]:
    """Returns the files that say what is trained.

    Args:
      suite: 'minatar' or 'atari'.
      dataset: part of the data, such as '1pct'; None for the suite's own.
    """
    folder = 'atari/methods' if suite == 'atari' else suite
    return [
      f'{folder}/{self.base}.gin',
      *([f'{suite}/datasets/{dataset}.gin'] if dataset else []),
      *([f'studies/{self.change}.gin'] if self.change else []),
    ]


@dataclasses.dataclass(frozen=True)
class Study:
  """What is trained, and what is drawn of it.

  Attributes:
    name: of the command and the files.
    title: above the figure.
    question: what it is to show, a sentence.
    variants: what is trained, in order.
    quantities: the rows of the figure.
  """

  name: str
  title: str
  question: str
  variants: tuple[Variant, ...]
  quantities: tuple[str, ...]

  @property
  def methods(self) -> list[str]:
    """The methods of the figure."""
    return [v.method for v in self.variants if v.is_drawn]


def _plain(*methods: str) -> list[Variant]:
  return [Variant(method, method) for method in methods]


_FIXED = [
  Variant(
    f'dqn_c{value}_dr3',
    'dqn_dr3',
    bindings=(
      f"FixedReplayRunner.method='dqn_c{value}_dr3'",
      f'FeatureDotPenalty.coefficient={value}',
    ),
  )
  for value in ('0.001', '0.01')
]

STUDIES = {
  study.name: study
  for study in (
    Study(
      'figure1',
      'Which backups co-adapt features',
      'The dot product is to grow under TD- and Q-learning, and to stay low '
      'under SARSA and regression, while all Q-values converge.',
      tuple(
        Variant(name, 'dqn', f'figure1_{name}')
        for name in ('regression', 'sarsa', 'td', 'q_learning')
      ),
      (_DOT, 'mean_q'),
    ),
    Study(
      'figure2',
      'Training on without DR3 from a DR3 checkpoint',
      'Return is to fall and the dot product to grow from the start, while '
      'losses do not.',
      (
        Variant('dqn_cql_dr3', 'dqn_cql_dr3', is_drawn=False),
        Variant('from_dr3_dqn', 'dqn', 'figure2_dqn', (), 'dqn_cql_dr3'),
        Variant('from_dr3_cql', 'dqn_cql', 'figure2_cql', (), 'dqn_cql_dr3'),
      ),
      (RETURN, _DOT, 'loss_bellman', 'loss_total'),
    ),
    Study(
      'figure5',
      'Effective rank with and without DR3',
      'The rank is to fall without DR3 and to hold with it; beside it the '
      'penalty that acts on the rank itself.',
      tuple(
        variant
        for base in ('dqn', 'rem', 'cql')
        for variant in (
          *_plain(base, f'{base}_dr3'),
          Variant(f'{base}_rank', base, f'figure5_{base}_rank'),
        )
      ),
      (_RANK, _DOT, RETURN),
    ),
    Study(
      'figure6',
      'Sigma of label noise against Sigma = I',
      'Both regularisers are to improve CQL alike.',
      (
        *_plain('cql', 'cql_dr3'),
        Variant('cql_label_noise', 'cql', 'figure6_cql_label_noise'),
      ),
      (RETURN, _DOT, _RANK, 'label_noise_anisotropy'),
    ),
    Study(
      'table_a1',
      'Which gradients DR3 needs',
      'DR3 with the gradient stopped is to be between the base and DR3.',
      (
        *_plain('cql', 'cql_dr3'),
        *(
          Variant(f'cql_dr3_{name}', 'cql_dr3', f'table_a1_{name}')
          for name in ('stop_gradient', 'same_action')
        ),
      ),
      (RETURN, _DOT, _RANK, 'divergence_ratio'),
    ),
    Study(
      'adaptive',
      'A coefficient that looks for a cosine',
      'One target is to do what c0 does after tuning.',
      (
        *_plain('dqn', 'dqn_dr3'),
        *_FIXED,
        Variant('dqn_adaptive', 'dqn', 'adaptive_dqn'),
        Variant('dqn_adaptive_c0', 'dqn', 'adaptive_dqn_c0'),
      ),
      (
        RETURN,
        _DOT,
        _RANK,
        'divergence_ratio',
        'feature_cosine',
        'adaptive_coefficient',
      ),
    ),
  )
}
