import pytest

from batch_rl_dr3.reporting import words


@pytest.mark.parametrize(
  ('method', 'expected'),
  [
    ('rem', 'REM'),
    ('rem_dr3', 'REM + DR3'),
    ('cql', 'CQL'),
    ('cql_dr3', 'CQL + DR3'),
    ('dqn', 'DQN'),
    ('dqn_dr3', 'DQN + DR3'),
    ('awac_dr3', 'awac_dr3'),
    ('my-method', 'my-method'),
  ],
)
def test_display_name(method, expected):
  assert words.display_name(method) == expected


def test_a_base_comes_before_its_dr3_and_known_before_unknown():
  names = ['zed_dr3', 'cql_dr3', 'zed', 'rem_dr3', 'cql', 'rem', 'dqn', 'rem']
  assert words.ordered(names) == [
    'dqn',
    'rem',
    'rem_dr3',
    'cql',
    'cql_dr3',
    'zed',
    'zed_dr3',
  ]
