import csv
import io

import numpy as np
import pytest

from batch_rl_dr3.reporting import run_reader, tables


def _lines(made):
  """Returns the CSV of a table by method."""
  rows = csv.DictReader(io.StringIO(made.to_csv()))
  return {row['method']: row for row in rows}


def test_final_scores(rem_pair):
  made = _lines(tables.final_scores(run_reader.load([rem_pair])))
  assert list(made) == ['rem', 'rem_dr3']
  assert made['rem'] == {
    'suite': 'minatar',
    'game': 'breakout',
    'dataset': '10pct',
    'method': 'rem',
    'last_return': '3.0',  # (2 + 4) / 2
    'interval_low': '',
    'interval_high': '',
    'best_return': '5.0',  # (4 + 6) / 2
    'average_return': str(10 / 3),  # (2 + 5 + 3) / 3
    'evaluations': '3',
    'episodes': '2',
    'truncated': '1',
    'seeds': '1',
    'gradient_steps': '300',
  }
  assert made['rem_dr3']['last_return'] == '9.0'
  assert made['rem_dr3']['average_return'] == '5.5'  # (2 + 9) / 2
  assert made['rem_dr3']['gradient_steps'] == '200'


def test_final_scores_of_two_seeds(make_run, tmp_path):
  make_run('rem', name='a', seed=0, returns={1: [0, 4], 2: [1], 3: [50]})
  make_run('rem', name='b', seed=1, returns={1: [1, 1], 2: [5]})
  collection = run_reader.load([str(tmp_path / 'runs' / '*')])
  row = _lines(tables.final_scores(collection))['rem']
  # Seed 0: 2, 1; seed 1: 1, 5. Step 3 is left out: seed 1 is not there yet.
  assert row['last_return'] == '3.0'  # (1 + 5) / 2
  assert row['best_return'] == '3.5'  # (2 + 5) / 2
  assert row['average_return'] == '2.25'  # (2 + 1 + 1 + 5) / 4
  assert (row['interval_low'], row['interval_high']) == ('1.0', '5.0')
  assert (row['episodes'], row['seeds']) == ('2', '2')
  assert row['gradient_steps'] == '2'


def test_final_metrics(rem_pair):
  made = _lines(tables.final_metrics(run_reader.load([rem_pair])))
  rem = made['rem']
  assert rem['loss_bellman'] == '0.2'
  assert rem['feature_dot_product'] == '40.0'
  assert rem['feature_norm_squared'] == '38.0'
  assert rem['effective_rank'] == '4.0'
  assert rem['mean_q'] == '2.5'
  assert rem['gradient_steps'] == '300'
  assert made['rem_dr3']['effective_rank'] == '11.0'


def test_dr3_effect_is_at_equal_gradient_steps(rem_pair):
  row = _lines(tables.dr3_effect(run_reader.load([rem_pair])))['rem']
  # REM goes on to step 300, REM + DR3 ends at 200.
  assert row['dot_product_gradient_steps'] == '200'
  assert row['dot_product_ratio'] == '0.25'  # 5 / 20
  # REM measured its rank at 100 and 300: 100 is the last that both have.
  assert row['effective_rank_gradient_steps'] == '100'
  assert row['effective_rank_difference'] == '1.0'  # 9 - 8
  assert row['return_gradient_steps'] == '200'
  assert row['return_difference'] == '4.0'  # 9 - 5
  assert (row['gradient_steps'], row['seeds']) == ('', '1')


def test_dr3_effect_needs_the_same_seed(make_run, tmp_path):
  make_run('cql', seed=0, returns={1: [1]})
  make_run('cql_dr3', name='a', seed=1, returns={1: [9]})
  collection = run_reader.load([str(tmp_path / 'runs' / '*')])
  assert tables.dr3_effect(collection).cells == []
  make_run('cql_dr3', name='b', seed=0, returns={1: [3]})
  collection = run_reader.load([str(tmp_path / 'runs' / '*')])
  row = _lines(tables.dr3_effect(collection))['cql']
  assert row['return_difference'] == '2.0'
  assert row['dot_product_ratio'] == ''


def test_dr3_effect_knows_pairs_of_unknown_methods(make_run, tmp_path):
  make_run('new', returns={1: [1]})
  make_run('new_dr3', returns={1: [3]})
  collection = run_reader.load([str(tmp_path / 'runs' / '*')])
  made = tables.dr3_effect(collection)
  assert _lines(made)['new']['return_difference'] == '2.0'
  # One column of steps, since the quantities agree in them.
  headings = [column.heading for column in made.shown]
  assert 'at step' not in headings
  assert headings[-1] == 'Gradient steps'


def test_co_adaptation(rem_pair):
  made = _lines(tables.co_adaptation(run_reader.load([rem_pair])))
  # Gamma 0.9: 0.9 * 10 / 12 = 0.75, 0.9 * 20 / 16 = 1.125, 0.9 * 40 / 38.
  rem = made['rem']
  assert (rem['met'], rem['rows_meeting'], rem['rows']) == ('yes', '1', '3')
  assert rem['first_gradient_steps'] == '200'
  assert float(rem['largest_ratio']) == pytest.approx(1.125)
  assert float(rem['last_ratio']) == pytest.approx(36 / 38)
  # 0.9 * 4 / 10 and 0.9 * 5 / 10.
  assert (made['rem_dr3']['met'], made['rem_dr3']['rows_meeting']) == (
    'no',
    '0',
  )
  assert float(made['rem_dr3']['largest_ratio']) == pytest.approx(0.45)


def test_the_criterion_is_met_where_both_sides_are_equal(make_run):
  rows = [{'gradient_steps': 1, 'divergence_ratio': 1.0}]
  folder = make_run('rem', metrics=rows)
  row = _lines(tables.co_adaptation(run_reader.load([str(folder)])))['rem']
  assert (row['met'], row['largest_ratio']) == ('yes', '1.0')


def test_gamma_is_assumed_when_the_protocol_is_silent(make_run):
  run = run_reader.load([str(make_run('rem', protocol={}))]).runs[0]
  assert tables.gamma_of(run) == 0.99


def test_runs_without_anything_make_empty_tables(make_run):
  collection = run_reader.load([str(make_run('rem'))])
  for made in tables.all_tables(collection):
    assert made.cells == []
    assert made.empty.endswith('.')
    assert made.to_csv().count('\n') == 1


def test_a_diverged_metric_is_a_dash(make_run):
  rows = [
    {'gradient_steps': 1, 'mean_q': 1},
    {'gradient_steps': 2, 'mean_q': 'nan'},
  ]
  made = tables.final_metrics(
    run_reader.load([str(make_run('rem', metrics=rows))])
  )
  assert _lines(made)['rem']['mean_q'] == ''
  assert tables.MISSING in made.cells[0]


def test_columns_that_say_nothing_are_not_shown(rem_pair, make_run):
  collection = run_reader.load([rem_pair])
  headings = [c.heading for c in tables.final_scores(collection).shown]
  assert headings[:2] == ['Method', 'Last return']
  assert '95% from' not in headings
  make_run('rem', name='other', game='freeway', returns={1: [1]})
  collection = run_reader.load([rem_pair])
  headings = [c.heading for c in tables.final_scores(collection).shown]
  assert headings[:3] == ['Game', 'Method', 'Last return']


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (None, '–'),  # noqa: RUF001
    (float('nan'), '–'),  # noqa: RUF001
    (0.0, '0.00'),
    (24000, '24,000'),
    (np.int64(3), '3'),
    (12345.6, '12,346'),
    (123.456, '123.5'),
    (1.234, '1.23'),
    (-1.234, '-1.23'),
    (0.04599, '0.0460'),
    (0.00318, '3.18e-03'),
  ],
)
def test_number(value, expected):
  assert tables.number(value) == expected


def test_signed():
  assert [tables.signed(v) for v in (1.5, -1.5, None)] == [
    '+1.50',
    '-1.50',
    tables.MISSING,
  ]
