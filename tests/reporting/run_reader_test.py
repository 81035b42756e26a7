import re

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import run_reader

SETTING = run_reader.Setting('minatar', 'breakout', '10pct')


def test_a_run_says_who_it_is(rem_pair):
  collection = run_reader.load([rem_pair])
  rem, rem_dr3 = collection.runs
  assert (rem.name, rem.method, rem.seed) == ('rem', 'rem', '0')
  assert (rem_dr3.name, rem_dr3.method) == ('rem_dr3', 'rem_dr3')
  assert (rem.finished, rem_dr3.finished) == (True, False)
  assert (rem.num_gradient_steps, rem_dr3.num_gradient_steps) == (300, 200)
  assert collection.settings == [SETTING]
  assert collection.methods(SETTING) == ['rem', 'rem_dr3']
  assert SETTING.label == 'breakout, 10pct'
  assert SETTING.slug == 'minatar_breakout_10pct'


def test_evaluations_average_episodes_and_count_the_truncated(rem_pair):
  rem = run_reader.load([rem_pair]).runs[0]
  # (1 + 3) / 2, (4 + 6) / 2, (2 + 4) / 2.
  assert rem.series(run_reader.RETURN).to_dict() == {
    100: 2.0,
    200: 5.0,
    300: 3.0,
  }
  assert list(rem.evaluations['episodes']) == [2, 2, 2]
  assert list(rem.evaluations['truncated']) == [0, 0, 1]


def test_a_series_has_only_steps_where_it_was_measured(rem_pair):
  rem = run_reader.load([rem_pair]).runs[0]
  assert rem.series(run_reader.EFFECTIVE_RANK).to_dict() == {100: 8.0, 300: 4.0}


def test_siblings_that_are_no_runs_are_counted(rem_pair, tmp_path):
  (tmp_path / 'runs' / 'data').mkdir()
  (tmp_path / 'runs' / 'log.txt').touch()
  skipped = run_reader.load([rem_pair]).skipped
  assert sorted(path.name for path in skipped) == ['data', 'log.txt']


def test_a_run_that_two_globs_match_is_read_once(rem_pair, tmp_path):
  collection = run_reader.load([rem_pair, str(tmp_path / '*' / 'rem')])
  assert [run.name for run in collection.runs] == ['rem', 'rem_dr3']


def test_seeds_are_in_the_order_of_numbers(make_run, tmp_path):
  for seed in (10, 2):
    make_run('rem', name=f'rem_{seed}', seed=seed, metrics=[])
  runs = run_reader.load([str(tmp_path / 'runs' / '*')]).runs
  assert [run.seed for run in runs] == ['2', '10']


def test_a_run_without_metrics_and_scores_is_empty(make_run):
  run = run_reader.load([str(make_run('rem', finished=False))]).runs[0]
  assert run.num_gradient_steps == 0
  assert run.metrics.empty
  assert run.evaluations.empty
  assert run.series(run_reader.RETURN).empty
  assert run.series(run_reader.TD_LOSS).empty


@pytest.mark.parametrize('torn', ['0,300,0.2,0.2,,4', '0,', '"'])
def test_a_torn_last_row_is_left_out(make_run, torn):
  folder = make_run('rem', metrics=[{'gradient_steps': 100, 'mean_q': 1}])
  with open(folder / 'metrics.csv', 'a') as file:
    file.write(torn)
  run = run_reader.load([str(folder)]).runs[0]
  assert run.series(run_reader.MEAN_Q).to_dict() == {100: 1.0}


def test_a_step_that_was_logged_twice_counts_once(make_run):
  rows = [
    {'gradient_steps': 100, 'mean_q': 1},
    {'gradient_steps': 200, 'mean_q': 2},
    {'gradient_steps': 100, 'mean_q': 3},
  ]
  run = run_reader.load([str(make_run('rem', metrics=rows))]).runs[0]
  assert run.series(run_reader.MEAN_Q).to_dict() == {100: 3.0, 200: 2.0}


def test_not_finite_is_told_from_not_measured(make_run):
  rows = [
    {'gradient_steps': 100, 'mean_q': 'nan'},
    {'gradient_steps': 200, 'mean_q': ''},
    {'gradient_steps': 300, 'mean_q': '-inf'},
  ]
  run = run_reader.load([str(make_run('rem', metrics=rows))]).runs[0]
  assert run.series(run_reader.MEAN_Q).to_dict() == {100: np.inf, 300: np.inf}


def test_extra_columns_are_ignored(make_run):
  folder = make_run('rem')
  (folder / 'metrics.csv').write_text(
    'note,gradient_steps,mean_q\nhello,100,1.5\n'
  )
  run = run_reader.load([str(folder)]).runs[0]
  assert run.series(run_reader.MEAN_Q).to_dict() == {100: 1.5}


def test_any_depth_is_searched_and_what_is_inside_a_run_is_part_of_it(
  make_run, tmp_path
):
  make_run('rem', name='deep/er/rem', returns={1: [1]})
  (tmp_path / 'runs' / 'deep' / 'er' / 'rem' / 'checkpoints').mkdir()
  (tmp_path / 'runs' / 'notes').mkdir()
  (tmp_path / 'runs' / 'link').symlink_to(tmp_path / 'runs' / 'deep')
  collection = run_reader.load([str(tmp_path / 'runs' / '**')])
  assert [run.name for run in collection.runs] == ['rem']
  assert collection.parent == tmp_path / 'runs' / 'deep' / 'er'
  assert [path.name for path in collection.skipped] == ['notes']


def _error(pattern):
  with pytest.raises(errors.DataError) as caught:
    run_reader.load([str(pattern)])
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_a_glob_that_matches_nothing(tmp_path):
  message = _error(tmp_path / 'nowhere' / '*')
  assert 'nowhere/*' in message
  assert 'matches nothing' in message


def test_a_folder_that_is_no_run(rem_pair, tmp_path):
  message = _error(tmp_path / 'runs')
  assert 'matches no run directory' in message
  assert "'runs/quickstart/*'" in message


def test_the_same_run_twice_names_both(make_run, tmp_path):
  make_run('rem', name='first', seed=3)
  make_run('rem', name='second', seed=3)
  message = _error(tmp_path / 'runs' / '*')
  assert re.search(r'first and \S*second are the same run', message)
  assert 'breakout, 10pct, rem, seed 3' in message


def test_one_seed_on_two_logged_runs_is_two_runs(make_run, tmp_path):
  make_run('rem', name='first', run=1)
  make_run('rem', name='second', run=2)
  assert len(run_reader.load([str(tmp_path / 'runs' / '*')]).runs) == 2


def test_metrics_without_provenance(make_run):
  folder = make_run('rem', metrics=[])
  (folder / 'provenance.json').unlink()
  assert 'has no provenance.json' in _error(folder)


@pytest.mark.parametrize('text', ['{"method": "rem"', '\x00'])
def test_provenance_that_is_no_json(make_run, text):
  folder = make_run('rem')
  (folder / 'provenance.json').write_text(text)
  assert f'cannot read {folder}/provenance.json' in _error(folder)


@pytest.mark.parametrize(
  ('text', 'told'),
  [
    ('[]', 'it is [], not an object'),
    ('{"game": "Pong"}', 'method is missing'),
    ('{"method": "rem"}', 'game is missing'),
  ],
)
def test_provenance_that_does_not_say_enough(make_run, text, told):
  folder = make_run('rem')
  (folder / 'provenance.json').write_text(text)
  assert f'{folder}/provenance.json: {told}' in _error(folder)


@pytest.mark.parametrize(
  ('name', 'text', 'expected'),
  [
    ('metrics.csv', 'gradient_steps,mean_q\n1,x\n', "line 2: mean_q is 'x'"),
    ('metrics.csv', 'mean_q\n1\n', 'line 2: no gradient_steps'),
    ('metrics.csv', 'gradient_steps,mean_q\n1,1\n,1\n', 'line 3: no gradient'),
    ('scores.csv', 'gradient_steps,return\n1,\n', 'without a return'),
    ('scores.csv', 'gradient_steps\n1\n', 'without a return'),
  ],
)
def test_damaged_csv_is_named(make_run, name, text, expected):
  folder = make_run('rem')
  (folder / name).write_text(text)
  message = _error(folder)
  assert str(folder / name) in message
  assert expected in message


def _scores_of(folder, *rows):
  header = 'suite,game,method,dataset,run,seed,gradient_steps,episode,return'
  (folder / 'scores.csv').write_text('\n'.join([header, *rows, '']))


def test_rows_of_another_run_are_refused(make_run):
  folder = make_run('rem')
  _scores_of(
    folder,
    'minatar,breakout,rem,10pct,1,0,100,0,1',
    'minatar,breakout,rem_dr3,10pct,1,0,100,1,1',
  )
  message = _error(folder)
  assert "scores.csv, line 3: method is 'rem_dr3'" in message
  assert "provenance.json says 'rem'" in message


def test_an_episode_that_is_there_twice_is_refused(make_run):
  folder = make_run('rem')
  row = 'minatar,breakout,rem,10pct,1,0,1000,{},1'
  _scores_of(folder, row.format(0), row.format(1), row.format(0))
  message = _error(folder)
  assert 'scores.csv, line 4: episode 0 of gradient step 1,000' in message


def test_a_return_that_is_not_finite_is_named(make_run):
  folder = make_run('rem')
  row = 'minatar,breakout,rem,10pct,1,0,1000,{},{}'
  _scores_of(folder, row.format(0, 1), row.format(1, 'nan'))
  assert 'scores.csv, line 3: an episode without a return' in _error(folder)


def test_a_row_that_is_too_long(make_run):
  folder = make_run('rem')
  (folder / 'metrics.csv').write_text('gradient_steps,mean_q\n1,2\n1,2,3\n')
  assert 'metrics.csv, line 3: 3 cells under a header of 2' in _error(folder)


def test_csv_that_is_no_text(make_run):
  folder = make_run('rem')
  (folder / 'metrics.csv').write_bytes(b'\xff\xfe\xff\n')
  assert 'cannot read' in _error(folder)


def test_runs_that_several_processes_read_are_the_same(make_run, tmp_path):
  for seed in range(3):
    make_run('rem', name=str(seed), seed=seed, returns={1: [seed]})
  runs = run_reader.load([str(tmp_path / 'runs' / '*')], 2).runs
  assert [run.evaluations.loc[1, 'return'] for run in runs] == [0, 1, 2]
  assert [run.name for run in runs] == ['0', '1', '2']


def test_damage_is_named_whoever_meets_it(make_run):
  folder = make_run('rem')
  (folder / 'metrics.csv').write_text('gradient_steps,mean_q\n1,x\n')
  with pytest.raises(errors.DataError, match="line 2: mean_q is 'x'"):
    run_reader.load([str(folder)], 2)
