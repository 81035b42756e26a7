"""Whole runs: resumption bit for bit, SIGTERM, divergence, refusals."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import fsspec
import h5py
import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3 import evaluate
from batch_rl_dr3.config import cli, errors
from batch_rl_dr3.evaluation import pool, targets
from batch_rl_dr3.games import play
from batch_rl_dr3.reporting import run_reader, selection, tables
from batch_rl_dr3.runs import lease, run_directory, run_tables
from batch_rl_dr3.training import control as runner

BINDINGS = (
  "ContinuousRunner.game='hopper'",
  'ContinuousRunner.num_iterations=2',
  'ContinuousRunner.num_gradient_steps=100',
  'ContinuousRunner.num_evaluation_episodes=2',
  'ContinuousRunner.num_lanes=2',
  'ContinuousRunner.log_period=50',
  'ContinuousRunner.effective_rank_period=100',
  'ContinuousRunner.effective_rank_num_states=20',
  'ContinuousRunner.num_metric_batches=1',
  'ContinuousRunner.batch_size=8',
  'create_brac_agent.critic_layers=(8,)',
  'create_brac_agent.actor_layers=(8,)',
  'create_cql_agent.critic_layers=(8,)',
  'create_cql_agent.actor_layers=(8,)',
  'DR3BracAgent.num_warm_start_steps=60',
  'DR3CqlSacAgent.num_cql_samples=2',
  'DR3CqlSacAgent.num_bc_steps=60',
)
METHODS = {
  'brac': (
    'brac_dr3_mujoco',
    'ContinuousRunner.num_cloning_steps=5',
    "ContinuousRunner.dataset='medium'",
  ),
  'cql': (
    'cql_dr3_full-replay',
    'DR3CqlSacAgent.use_lagrange_cql_alpha=True',
  ),
}


@pytest.fixture(scope='module')
def hopper(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'hopper.hdf5'
  rng = np.random.default_rng(0)
  with h5py.File(path, 'w') as file:
    file.create_dataset('observations', data=rng.normal(size=(400, 11)))
    file.create_dataset('actions', data=rng.uniform(-1, 1, (400, 3)))
    file.create_dataset('rewards', data=rng.normal(size=400))
    ends = np.arange(400) % 50 == 49
    file.create_dataset('terminals', data=ends)
    file.create_dataset('timeouts', data=np.zeros(400, bool))
  return str(path)


def make(method, data, base_dir, *bindings, cache_dir=None):
  name, *own = METHODS[method]
  cli.gin.clear_config()
  cli.load_gin([f'd4rl/{name}.gin'], [*BINDINGS, *own, *bindings])
  with cli.gin_errors():
    return runner.ContinuousRunner(
      str(base_dir), data, str(cache_dir or base_dir / 'cache')
    )


def weights(base_dir, name):
  reader = tf.train.load_checkpoint(
    str(base_dir / run_directory.CHECKPOINTS / name)
  )
  names = [n for n in reader.get_variable_to_shape_map() if '_OBJECT' not in n]
  return {name: reader.get_tensor(name) for name in names}


def last_weights(base_dir):
  return weights(base_dir, 'tf_ckpt-1')


def rows(base_dir, name):
  found = run_tables.read_rows(base_dir / name)
  for row in found:
    row.pop('gradient_steps_per_second', None)
  return found


@pytest.mark.slow
@pytest.mark.parametrize('method', METHODS)
def test_a_stopped_run_ends_as_one_that_was_not(method, hopper, tmp_path):
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  make(method, hopper, whole).run()
  first = make(method, hopper, stopped)
  take_steps = first.learner._take_steps

  def take_steps_and_stop(num_steps):
    parts = take_steps(num_steps)
    if first.learner.num_gradient_steps() == 150:
      first.stop_request.signal_name = 'SIGTERM'
    return parts

  first.learner._take_steps = take_steps_and_stop
  with pytest.raises(errors.PreemptedError, match='gradient step 150') as error:
    first.run()
  assert error.value.exit_code == 75
  make(method, hopper, stopped).run()
  for name in (run_directory.METRICS, run_directory.SCORES):
    assert rows(whole, name) == rows(stopped, name)
  expected, found = last_weights(whole), last_weights(stopped)
  assert expected.keys() == found.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(value, found[name], err_msg=name)
  assert len(rows(whole, run_directory.SCORES)) == 4
  finished = json.loads((whole / run_directory.FINISHED).read_text())
  assert finished['gradient_steps'] == 200
  provenance = json.loads((whole / run_directory.PROVENANCE).read_text())
  assert provenance['suite'] == 'd4rl'
  assert provenance['protocol']['environment'] == 'Hopper-v4'
  with pytest.raises(errors.ConfigError, match='another run'):
    make(method, hopper, whole, 'FeatureDotPenalty.coefficient=0.5').run()


# A run in a process that kills itself at the moment of a count: before a step
# of cloning, before gradient steps, or as a checkpoint is half written.
LIFE = """
import os, signal, sys
from batch_rl_dr3.config import frameworks
frameworks.import_tf_agents()
from batch_rl_dr3.runs import atomic, checkpoints
from batch_rl_dr3.training import control as runner
sys.path.insert(0, sys.argv[1])
import pathlib, runner_test
method, data, base_dir, moment = sys.argv[2:]
left = [int(moment)]
def counted(owner, name):
  original = getattr(owner, name)
  def call(*args, **kwargs):
    left[0] -= 1
    if not left[0]:
      os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
  setattr(owner, name, call)
counted(runner.Cloning, '_take_step')
counted(runner.ControlLearner, '_take_steps')
counted(atomic, 'sync')
run = runner_test.make(method, data, pathlib.Path(base_dir),
  'ContinuousRunner.checkpoint_every_minutes=1e-6',
  'ContinuousRunner.num_cloning_steps=%d' % (5 if method == 'brac' else 0))
if method == 'brac':
  make_cloning = run.learner.make_cloning
  def make(learning_rate):
    cloning = make_cloning(learning_rate)
    counted(cloning, 'take_step')
    return cloning
  run.learner.make_cloning = make
run.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize('method', METHODS)
def test_a_run_that_is_killed_again_and_again_ends_the_same(
  method, hopper, tmp_path
):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'

  def live(base_dir, moment):
    done = subprocess.run(
      [
        *(sys.executable, '-c', LIFE, str(pathlib.Path(__file__).parent)),
        *(method, hopper, str(base_dir), str(moment)),
      ],
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
    return done.returncode

  assert live(whole, 0) == 0
  moments = iter((3, 9, 14, 18, 23, 31, 37, 45))
  kills = 0
  while live(killed, next(moments, 0)):
    kills += 1
  assert kills >= 4
  for name in (run_directory.METRICS, run_directory.SCORES):
    assert rows(whole, name) == rows(killed, name)
  expected, found = last_weights(whole), last_weights(killed)
  assert expected.keys() == found.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(value, found[name], err_msg=name)


def test_a_stop_within_cloning_goes_on_from_there(hopper, tmp_path):
  """To the same behaviour policy, in the checkpoint at 0 gradient steps."""
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  # Of the whole, too: the same run, stopped when its cloning has ended.
  for folder, moments in ((whole, (5,)), (stopped, (3, 5))):
    for moment in moments:
      run = make('brac', hopper, folder)
      make_cloning = run.learner.make_cloning

      def make_and_stop(
        rate, run=run, make_cloning=make_cloning, moment=moment
      ):
        cloning = make_cloning(rate)
        take_step = cloning.take_step

        def step():
          take_step()
          if cloning.num_steps == moment:
            run.stop_request.signal_name = 'SIGTERM'

        cloning.take_step = step
        return cloning

      run.learner.make_cloning = make_and_stop
      with pytest.raises(errors.PreemptedError, match=f'step {moment} of clo'):
        run.run()
  expected, found = (
    weights(f, 'cloning/tf_ckpt-0_5') for f in (whole, stopped)
  )
  assert expected.keys() == found.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(value, found[name], err_msg=name)


@pytest.mark.slow
def test_a_run_that_diverges_says_so(hopper, tmp_path):
  run = make(
    'brac', hopper, tmp_path, 'create_brac_agent.critic_learning_rate=1e30'
  )
  with pytest.raises(errors.DivergedError, match='not finite') as error:
    run.run()
  assert error.value.exit_code == 70
  failed = json.loads((tmp_path / run_directory.FAILED).read_text())
  last = rows(tmp_path, run_directory.METRICS)[-1]
  assert failed['error'] == 'DivergedError'
  assert failed['gradient_steps'] == int(last['gradient_steps'])
  assert last['loss_total'] == 'nan'
  # And which of its parts it was.
  assert 'nan' in {last[f'loss_{name}'] for name in ('critic', 'actor')}


def test_a_base_without_a_behaviour_policy_clones_none(hopper, tmp_path):
  with pytest.raises(errors.ConfigError, match='no behaviour policy'):
    make('cql', hopper, tmp_path, 'ContinuousRunner.num_cloning_steps=5')


def test_periods_must_fit(hopper, tmp_path):
  with pytest.raises(errors.ConfigError, match='multiple'):
    make('cql', hopper, tmp_path, 'ContinuousRunner.log_period=30')


@pytest.mark.slow
def test_a_checkpoint_scores_what_its_run_scored(hopper, tmp_path):
  """Played again from its directory, without the data."""
  make('brac', hopper, tmp_path, 'create_brac_agent.gamma=0.9').run()
  target = targets.of_run(tmp_path)
  evaluator = runner.create_evaluator(
    pool.Setup(target.config, target.protocol)
  )
  scored = rows(tmp_path, run_directory.SCORES)
  assert list(target.checkpoints) == [0, 1]
  for iteration, checkpoint in target.checkpoints.items():
    episodes = evaluator.evaluate(
      checkpoint.prefix, play.evaluation_seed(0, iteration)
    )
    assert [(e.episode_return, e.length) for e in episodes] == [
      (float(row['return']), int(row['length']))
      for row in scored
      if row['iteration'] == str(iteration)
    ]
  result = pool.Result(evaluator.identity, episodes, {})
  written = targets.write_provenance(target, result)
  assert written == json.loads(
    (tmp_path / run_directory.PROVENANCE).read_text()
  )
  with pytest.raises(errors.DataError, match='no checkpoint of such an agent'):
    evaluator.evaluate(str(tmp_path / 'none'), 0)
  evaluator.close()
  # Every rule of `select` finds what it looks at, and is judged by the scores.
  collection = run_reader.load([str(tmp_path)])
  assert tables.gamma_of(collection.runs[0]) == 0.9
  names = {rule.name for rule in selection.RULES}
  ranked = selection.ranking(collection)
  assert set(ranked['rule']) == names
  assert set(ranked['checkpoint']) == {'0', '1'}
  assert np.isfinite(ranked['return']).all()
  assert set(selection.outcomes(collection)['rule']) == {*names, 'random'}


@pytest.mark.slow
def test_the_command_plays_what_has_no_scores(run_command, hopper, tmp_path):
  """As the run itself would have, and in another process while it trains."""
  run_dir, meanwhile = tmp_path / 'run', tmp_path / 'meanwhile'
  make('brac', hopper, run_dir).run()
  expected = rows(run_dir, run_directory.SCORES)
  make(
    'brac', hopper, meanwhile, 'ContinuousRunner.async_evaluation=True'
  ).run()
  assert rows(meanwhile, run_directory.SCORES) == expected
  (run_dir / run_directory.SCORES).unlink()
  done = run_command('evaluate', f'--checkpoints={run_dir}', '--num_workers=1')
  assert done.returncode == 0, done.stderr
  assert rows(run_dir, run_directory.SCORES) == expected
  target = targets.of_run(run_dir)
  foreign = dataclasses.replace(target, is_run=False)
  with pytest.raises(errors.ConfigError, match='by another program'):
    evaluate.evaluate([lambda: foreign])


@pytest.mark.slow
def test_a_run_lives_in_a_bucket_and_saves_within_an_iteration(
  hopper, tmp_path
):
  class Stop(Exception):
    pass

  url = f'memory://{tmp_path.name}/run'

  def make_there(*bindings):
    return make('brac', hopper, url, *bindings, cache_dir=tmp_path)

  first = make_there('ContinuousRunner.checkpoint_every_minutes=1e-6')
  take_steps = first.learner._take_steps

  def take_steps_or_die(num_steps):
    if first.learner.num_gradient_steps() == 150:
      raise Stop
    return take_steps(num_steps)

  first.learner._take_steps = take_steps_or_die
  with pytest.raises(Stop):
    first.run()
  again = make_there()
  steps = []
  restore = again.learner.restore

  def restore_and_note(prefix):
    restore(prefix)
    steps.append(again.learner.num_gradient_steps())

  again.learner.restore = restore_and_note
  again.run()
  assert steps == [150]
  whole = tmp_path / 'whole'
  make('brac', hopper, whole).run()
  scores = fsspec.filesystem('memory').cat_file(
    f'/{tmp_path.name}/run/{run_directory.SCORES}'
  )
  assert scores == (whole / run_directory.SCORES).read_bytes()


@pytest.mark.slow
def test_another_worker_is_waited_for_and_a_damaged_checkpoint_passed_over(
  hopper, tmp_path, monkeypatch
):
  monkeypatch.setattr(lease, 'HEARTBEAT_SECONDS', 0.05)
  run = make('brac', hopper, tmp_path)
  with (
    run_directory.Home(str(tmp_path), '').lock(),
    pytest.raises(run_directory.BusyError),
  ):
    run.run()
  assert not (tmp_path / run_directory.PROVENANCE).exists()
  run.run()
  expected = rows(tmp_path, run_directory.SCORES)
  folder = tmp_path / run_directory.CHECKPOINTS
  (folder / 'tf_ckpt-1.index').write_bytes(b'')
  (tmp_path / run_directory.FINISHED).unlink()
  make('brac', hopper, tmp_path).run()
  assert rows(tmp_path, run_directory.SCORES) == expected
  assert (folder / 'ckpt.1.json.damaged').exists()
