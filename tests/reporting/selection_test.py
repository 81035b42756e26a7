import csv
import io

import numpy as np
import pytest

from batch_rl_dr3.reporting import run_reader, selection

STEPS = [100, 200, 300, 400, 500]
COLUMNS = {
  'loss_bellman': (0.5, 0.4, 0.3, 0.35, 0.2),
  'feature_dot_product': (10, 12, 15, 40, 100),
  'divergence_ratio': (0.45, 0.54, 0.675, 1.2, 1.125),
  'effective_rank': (10, 12, 8, 5, 7),
  'mean_q': (1, 3, 3.2, 3.3, 2),
}
METRICS = [
  {'gradient_steps': step} | {name: row[i] for name, row in COLUMNS.items()}
  for i, step in enumerate(STEPS)
]
RETURNS = {100: [1], 200: [4], 300: [5, 7], 400: [2], 500: [3]}
# What each rule chooses of the five; selection_rules_test derives it.
CHOICES = {
  'last': 500,
  'dot_growth': 300,
  'co_adaptation': 100,
  'before_violation': 300,
  'rank_highest': 200,
  'rank_intact': 300,
  'td_error': 500,
  'q_peak': 400,
  'q_settled': 300,
  'mean_rank': 300,
}


def _load(tmp_path):
  return run_reader.load([str(tmp_path / 'runs' / '*')])


def test_checkpoints_are_those_whose_files_are_whole(make_run, make_checkpoint):
  folder = make_run('rem')
  for iteration in range(10):
    make_checkpoint(folder, str(iteration), 100 * (iteration + 1))
  make_checkpoint(folder, '10_1050', 1050)
  inside = folder / 'checkpoints'
  (inside / 'tf_ckpt-0.index').unlink()
  (inside / 'tf_ckpt-1.index').write_text('short')
  (inside / 'ckpt.2.json').write_text('{"files": ')
  (inside / 'ckpt.3.json').write_text('[]')
  (inside / 'ckpt.4.json').write_text('{"files": {}, "gradient_steps": 5}')
  (inside / 'ckpt.5.json').rename(inside / 'ckpt.5.json.damaged')
  found = selection.checkpoints(run_reader.load([str(folder)]).runs[0])
  assert found.to_dict() == {
    700: '6',
    800: '7',
    900: '8',
    1000: '9',
    1050: '10_1050',
  }


def test_ranking_is_over_the_checkpoints_on_disk(
  make_run, make_checkpoint, tmp_path
):
  folder = make_run('rem', metrics=METRICS, returns=RETURNS)
  for name, step in (('1', 200), ('3', 400), ('4_450', 450)):
    make_checkpoint(folder, name, step)
  make_run('cql', metrics=METRICS, returns=RETURNS)
  ranked = selection.ranking(_load(tmp_path))
  assert set(ranked['run']) == {'rem'}
  assert len(ranked) == 3 * len(selection.RULES)
  rank = ranked[ranked['rule'] == 'rank_highest']
  # The rank at 450 is that at 400, and the later of equals comes first.
  assert list(rank['checkpoint']) == ['1', '4_450', '3']
  assert list(rank['place']) == [1, 2, 3]
  assert list(rank['value']) == [12, 5, 5]
  assert list(rank['return'].fillna(-1)) == [4, -1, 2]


def test_a_rule_that_has_nothing_to_look_at_is_left_out(
  make_run, make_checkpoint, tmp_path
):
  metrics = [{'gradient_steps': s, 'mean_q': s} for s in STEPS]
  folder = make_run('rem', metrics=metrics, returns=RETURNS)
  for step in (200, 400):
    make_checkpoint(folder, str(step), step)
  collection = _load(tmp_path)
  expected = {'last', 'q_peak', 'q_settled'}
  assert set(selection.ranking(collection)['rule']) == expected
  found = selection.outcomes(collection)
  assert set(found['rule']) == expected | {selection.RANDOM}


def test_outcomes_are_the_returns_of_the_choices(make_run, tmp_path):
  make_run('rem', metrics=METRICS, returns=RETURNS)
  found = selection.outcomes(_load(tmp_path)).set_index('rule')
  chosen = found['gradient_steps'].drop(selection.RANDOM)
  assert chosen.to_dict() == CHOICES
  # Returns 1, 4, 6, 2, 3: the range is 5.
  assert found['kept'].to_dict() == {
    name: pytest.approx(100 * (np.mean(RETURNS[step]) - 1) / 5)
    for name, step in CHOICES.items()
  } | {selection.RANDOM: pytest.approx(100 * (16 / 5 - 1) / 5)}
  assert found.loc['rank_highest', 'lost_to_best'] == 2  # 6 - 4
  assert found.loc['rank_highest', 'gained_on_last'] == 1  # 4 - 3
  assert found.loc['rank_highest', 'gained'] == 20  # 100 * 1 / 5
  assert found.loc['co_adaptation', 'gained'] == -40  # 100 * (1 - 3) / 5


def test_a_loss_is_normalised_where_all_games_have_references(
  make_run, tmp_path
):
  for game in ('Pong', 'Breakout'):
    make_run(
      'rem',
      name=game,
      suite='atari',
      game=game,
      metrics=METRICS,
      returns=RETURNS,
    )
  collection = _load(tmp_path)
  measured = selection.measure(selection.outcomes(collection))
  # 6 - 4 points; DQN is 15.9 + 20.7 above random play, and 93.9 - 1.7.
  expected = (200 / 36.6 + 200 / 92.2) / 2
  lost = measured.set_index('rule')['lost_normalised']
  assert lost['rank_highest'] == pytest.approx(expected)
  make_run('rem', name='other', game='maze', metrics=METRICS, returns=RETURNS)
  measured = selection.measure(selection.outcomes(_load(tmp_path)))
  assert measured['lost_normalised'].isna().all()


def test_choices_do_not_depend_on_returns(make_run, tmp_path):
  make_run('rem', metrics=METRICS, returns=RETURNS)
  other = {step: [-values[0]] for step, values in RETURNS.items()}
  make_run('cql', metrics=METRICS, returns=other)
  found = selection.outcomes(_load(tmp_path))
  by_run = found.pivot_table(
    index='rule', columns='run', values='gradient_steps'
  )
  assert (by_run['rem'] == by_run['cql']).all()


def test_the_measure_is_over_runs_in_which_the_choice_matters(
  make_run, tmp_path
):
  make_run('rem', metrics=METRICS, returns=RETURNS)
  # Here all but rank_highest's choice, 200, are as bad as can be.
  make_run(
    'cql',
    metrics=METRICS,
    returns={s: [9 if s == 200 else -1] for s in STEPS},
  )
  make_run('dqn', metrics=METRICS, returns={s: [21] for s in STEPS})
  make_run('dqn', name='one', seed=1, metrics=METRICS, returns={100: [1]})
  collection = _load(tmp_path)
  measured = selection.measure(selection.outcomes(collection))
  row = measured.set_index('rule').loc['rank_highest']
  assert row['runs'] == 2
  assert row['kept'] == 80  # (60 + 100) / 2
  assert (row['kept_low'], row['kept_high']) == (60, 100)
  assert row['gained'] == 60  # (20 + 100) / 2
  assert row['gained_on_last'] == 5.5  # (1 + 10) / 2
  assert row['lost_to_best'] == 1  # (2 + 0) / 2
  assert (row['better'], row['equal'], row['worse']) == (2, 0, 0)
  assert (row['kept_rem'], row['kept_cql']) == (60, 100)
  last = measured.set_index('rule').loc['last']
  assert (last['better'], last['equal'], last['worse']) == (0, 2, 0)
  made = selection.worth(collection)
  assert 'Measured on 2 of 4 runs' in made.caption
  assert made.caption.endswith('1 game. So few say next to nothing.')
  headings = [column.heading for column in made.shown]
  assert headings[-3:] == ['Kept: REM', 'Kept: CQL', 'Runs']
  assert 'in points' in headings


def test_rules_keep_their_order_whatever_a_run_logged(make_run, tmp_path):
  make_run('dqn', metrics=[], returns=RETURNS)
  make_run('rem', metrics=METRICS, returns=RETURNS)
  measured = selection.measure(selection.outcomes(_load(tmp_path)))
  assert list(measured['rule']) == [*CHOICES, 'random']
  assert list(measured['runs']) == [2, *[1] * 9, 2]


def test_points_of_different_games_are_not_averaged_on_the_page(
  make_run, tmp_path
):
  make_run('rem', metrics=METRICS, returns=RETURNS)
  make_run('rem', name='b', game='asterix', metrics=METRICS, returns=RETURNS)
  made = selection.worth(_load(tmp_path))
  assert '2 games' in made.caption
  assert 'in points' not in [column.heading for column in made.shown]
  rows = list(csv.DictReader(io.StringIO(made.to_csv())))
  assert [row['rule'] for row in rows] == [*CHOICES, 'random']
  assert rows[0]['kept'] == '40.0'
  assert rows[-1]['choice'] == 'any, the expectation'


def test_the_table_is_a_sentence_where_nothing_can_be_lost(make_run, tmp_path):
  make_run('rem', metrics=METRICS, returns={s: [21] for s in STEPS})
  made = selection.worth(_load(tmp_path))
  assert made.cells == []
  assert made.empty.endswith('.')


def test_choices_shows_the_top(make_run, make_checkpoint, tmp_path):
  folder = make_run('rem', metrics=METRICS)
  for step in STEPS:
    make_checkpoint(folder, str(step // 100), step)
  ranked = selection.ranking(_load(tmp_path))
  made = selection.choices(ranked)
  assert made.frame.set_index('rule')['gradient_steps'].to_dict() == CHOICES
  assert [c.heading for c in made.shown] == [
    'Run',
    'Rule',
    'Checkpoint',
    'Gradient steps',
    'Value',
  ]
  top = selection.choices(ranked, 2)
  assert 'Place' in [c.heading for c in top.shown]
  assert len(top.cells) == 20
