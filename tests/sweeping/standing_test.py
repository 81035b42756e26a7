import json
import os
import time

import pytest

from batch_rl_dr3.runs import results, state
from batch_rl_dr3.sweeping import standing


@pytest.fixture
def runs(make_sweep):
  return make_sweep().runs()


def age(folder, seconds):
  then = time.time() - seconds
  for path in folder.iterdir():
    os.utime(path, (then, then))


def test_every_state_is_told_by_the_directory(runs, write_run, tmp_path):
  write_run(runs[0], finished=True)
  write_run(runs[1], steps=(0, 500, 1000), rate=50.0, attempts=1)
  write_run(
    runs[2], steps=(0, 500), attempts=2, is_set_aside=True, error='train: nan'
  )
  age(write_run(runs[3], steps=(0, 500), rate=50.0, attempts=1), 1000)
  stopped = write_run(runs[4], steps=(0, 500), attempts=1, exit_code=75)
  (stopped / state.NAME).touch()
  found = standing.read(runs, str(tmp_path))
  assert [one.state for one in found] == [
    'done',
    'running',
    'failed',
    'stalled',
    'stalled',
    'waiting',
  ]
  running = found[1]
  assert (running.steps, running.steps_per_second) == (1000, 50.0)
  assert running.seconds_left == (100_000 - 1000) / 50
  text = standing.to_text(found, 20)
  assert text.startswith(
    '6 runs: 1 running, 1 failed, 2 stalled, 1 waiting, 1 done\n'
    # One is whole, one has 1,000 steps and three have 500.
    '102,500 of 600,000 gradient steps; 50 steps/s, 2:45:50 left'
  )
  assert 'attempt 2: train: nan' in text
  assert '1,000/100,000  50.0 steps/s  33:00 left' in text
  assert json.loads(standing.to_json(found))[0]['state'] == 'done'


def test_a_run_by_hand_after_an_attempt_is_running(runs, write_run, tmp_path):
  folder = write_run(runs[0], steps=(0, 500), attempts=1, exit_code=75)
  age(folder, 50)
  assert standing.read(runs, str(tmp_path))[0].state == 'stalled'
  (folder / 'metrics.csv').touch()
  assert standing.read(runs, str(tmp_path))[0].state == 'running'


def test_a_run_that_failed_by_hand_says_why(runs, write_run, tmp_path):
  folder = write_run(runs[0], steps=(0, 500))
  (folder / 'failed.json').write_text('{"message": "the loss is not finite"}')
  (one, *_) = standing.read(runs, str(tmp_path))
  assert (one.state, one.error) == ('stalled', 'the loss is not finite')


def test_play_between_rows_is_no_stall(runs, write_run, tmp_path):
  # A row takes 500 / 5 = 100 s, so that ten of them are waited for.
  folder = write_run(runs[0], steps=(0, 500), rate=5.0)
  age(folder, 900)
  assert standing.read(runs, str(tmp_path))[0].state == 'running'
  age(folder, 1100)
  assert standing.read(runs, str(tmp_path))[0].state == 'stalled'


def test_results_that_are_kept_apart_count(runs, tmp_path):
  study = str(tmp_path / 'results')
  run = results.KeptRun({}, {'scores.csv': [], 'metrics.csv': []})
  results.write(study, {runs[2].kept_folder: run})
  found = standing.read(runs, str(tmp_path / 'runs'), study)
  assert [one.state == 'done' for one in found] == [
    index == 2 for index in range(6)
  ]


def test_a_run_that_is_to_be_longer_is_not_done(
  make_sweep, write_run, tmp_path
):
  game = "create_minatar_lanes.game_name='{game}'"
  longer = 'FixedReplayRunner.num_iterations=30'
  run = make_sweep().runs()[0]
  longer_run = make_sweep(gin_bindings=[game, longer]).runs()[0]
  assert longer_run.folder == run.folder
  write_run(run, steps=(0, 100_000), finished=True)
  assert standing.is_done(run, str(tmp_path), None)
  assert not standing.is_done(longer_run, str(tmp_path), None)


def test_long_lists_are_cut_and_say_so(runs, write_run, tmp_path):
  for run in runs:
    write_run(run, attempts=1, is_set_aside=True, error='train: broken')
  text = standing.to_text(standing.read(runs, str(tmp_path)), 2)
  assert text.count('train: broken') == 2
  assert text.endswith('and 4 more')
