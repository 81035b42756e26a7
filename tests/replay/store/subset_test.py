import json

import gin
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store.subset import Subset

FIFTY_FILES = dict.fromkeys(range(50), 1_000_000)


def test_one_percent_is_the_first_10000_rows_of_every_file():
  rows = Subset('prefix', 0.01).rows_per_file(FIFTY_FILES, stack_size=4)
  assert rows == dict.fromkeys(range(50), 10_000)


def test_first_ten_percent_is_the_first_five_files():
  rows = Subset('first', 0.1).rows_per_file(FIFTY_FILES, stack_size=4)
  assert rows == dict.fromkeys(range(5), 1_000_000)


def test_first_ends_within_a_file():
  # 0.25 of 100 + 200 + 100 rows is 100.
  files = {0: 60, 1: 240, 2: 100}
  rows = Subset('first', 0.25).rows_per_file(files, stack_size=4)
  assert rows == {0: 60, 1: 40}


def test_all_takes_every_row():
  files = {0: 60, 3: 7}
  assert Subset().rows_per_file(files, stack_size=4) == {0: 60, 3: 7}


def test_fractions_are_exact_in_decimal():
  assert int(0.29 * 100) == 28
  rows = Subset('prefix', 0.29).rows_per_file({0: 100}, stack_size=4)
  assert rows == {0: 29}


def test_fractions_of_a_row_are_dropped():
  rows = Subset('prefix', 0.5).rows_per_file({0: 101, 1: 1}, stack_size=4)
  assert rows == {0: 50}


@pytest.mark.parametrize('rule', ['prefix', 'first'])
def test_a_fraction_without_a_transition_is_refused(rule):
  with pytest.raises(errors.ConfigError, match='at most 4 rows'):
    Subset(rule, 0.04).rows_per_file({0: 100}, stack_size=4)
  rows = Subset(rule, 0.05).rows_per_file({0: 100}, stack_size=4)
  assert rows == {0: 5}


@pytest.mark.parametrize(
  ('rule', 'fraction'),
  [
    ('random', 0.1),
    ('uniform', 0.0),
    ('prefix', 0.0),
    ('prefix', -0.1),
    ('first', 1.1),
    ('first', float('nan')),
    ('first', True),
    ('first', '0.1'),
    ('all', 0.5),
  ],
)
def test_wrong_values_are_refused(rule, fraction):
  with pytest.raises(errors.ConfigError, match='Subset'):
    Subset(rule, fraction)


@pytest.mark.parametrize(
  ('rule', 'seed'),
  [('prefix', 1), ('all', 1), ('uniform', -1), ('uniform', 0.5)],
)
def test_seeds_are_for_draws_alone(rule, seed):
  with pytest.raises(errors.ConfigError, match=r'Subset\.seed'):
    Subset(rule, 1.0, seed)


def test_the_manifest_has_the_seed_of_a_draw():
  assert Subset('prefix', 0.5).record() == {'rule': 'prefix', 'fraction': 0.5}
  assert json.dumps(Subset('all', 1).record()) == json.dumps(
    Subset('all', 1.0).record()
  )
  assert Subset('uniform', 0.5, 3).record() == {
    'rule': 'uniform',
    'fraction': 0.5,
    'seed': 3,
  }


def test_uniform_reads_every_row_and_counts_exactly():
  subset = Subset('uniform', 0.01)
  assert subset.rows_per_file(FIFTY_FILES, stack_size=4) == FIFTY_FILES
  assert subset.num_drawn(50_000_000) == 500_000
  assert Subset('uniform', 0.29).num_drawn(100) == 29
  with pytest.raises(errors.ConfigError, match='not one transition'):
    subset.num_drawn(99)


def test_gin_binds_it():
  with gin.unlock_config():
    gin.parse_config("Subset.rule = 'prefix'\nSubset.fraction = 0.05")
  try:
    assert Subset() == Subset('prefix', 0.05)
  finally:
    gin.clear_config()


def test_the_seed_of_a_run_names_its_draw():
  run = Subset('uniform', 0.1, 'run')
  assert run.for_run(3) == Subset('uniform', 0.1, 3)
  assert Subset('uniform', 0.1, 7).for_run(3).seed == 7
  with pytest.raises(errors.ConfigError, match="'run'"):
    run.record()
  with pytest.raises(errors.ConfigError, match='draws'):
    Subset('prefix', 0.1, 'run')
  with pytest.raises(errors.ConfigError, match='own seed'):
    Subset('uniform', 0.1, 'runs')


def test_nothing_is_held_out_of_a_whole_log():
  assert Subset('all').held_out(10) is None
  assert Subset('prefix', 0.1).held_out(0) is None
