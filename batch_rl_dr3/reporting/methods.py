"""Methods: how they are called, ordered, and paired with and without DR3."""

from collections.abc import Iterable

_NAMES = {
  'dqn': 'DQN',
  'rem': 'REM',
  'cql': 'CQL',
  'dqn_cql': 'CQL on DQN',
  'brac': 'BRAC',
  'cog': 'COG',
  # Variants of the paper's studies.
  'regression': 'Regression on returns',
  'sarsa': 'Offline SARSA',
  'td': 'TD-learning',
  'q_learning': 'Q-learning',
  'dqn_rank': 'DQN + rank penalty',
  'rem_rank': 'REM + rank penalty',
  'cql_rank': 'CQL + rank penalty',
  'cql_label_noise': 'CQL + DR3, label noise',
  'cql_dr3_stop_gradient': 'CQL + DR3, gradient stopped',
  'cql_dr3_same_action': "CQL + DR3 where a = a'",
  'from_dr3_dqn': 'DQN from a DR3 checkpoint',
  'from_dr3_cql': 'CQL on DQN from a DR3 checkpoint',
  'dqn_c0.001': 'DQN, c0 0.001',
  'dqn_c0.01': 'DQN, c0 0.01',
  'dqn_adaptive': 'DQN + adaptive cosine',
  'dqn_adaptive_c0': 'DQN + adaptive DR3',
}
_DR3 = '_dr3'


def base_of(method: str) -> str:
  """Returns the method without DR3: 'rem' of 'rem_dr3' and of 'rem'."""
  return method.removesuffix(_DR3)


def has_dr3(method: str) -> bool:
  """Returns whether the method's name says that it has the DR3 penalty."""
  return method.endswith(_DR3)


def with_dr3(base: str) -> str:
  """Returns the name of `base` with DR3: 'rem_dr3' of 'rem'."""
  return base + _DR3


def display_name(method: str) -> str:
  """Returns 'REM + DR3' for 'rem_dr3'; an unknown name as it is."""
  base = base_of(method)
  if base not in _NAMES:
    return method
  return _NAMES[base] + (' + DR3' if has_dr3(method) else '')


def ordered(methods: Iterable[str]) -> list[str]:
  """Returns each method once: known ones first, a base before its DR3."""
  known = list(_NAMES)

  def key(method: str) -> tuple[int, str, bool]:
    base = base_of(method)
    rank = known.index(base) if base in known else len(known)
    return rank, base, has_dr3(method)

  return sorted(set(methods), key=key)
