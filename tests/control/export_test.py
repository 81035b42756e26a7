"""A policy of continuous control for other programs, and what trackers get."""

import sys
import types

import numpy as np
import pytest

from batch_rl_dr3 import export
from batch_rl_dr3.config import cli, errors
from batch_rl_dr3.evaluation import exported, pool, targets
from batch_rl_dr3.games import play
from batch_rl_dr3.runs import run_directory, run_tables
from batch_rl_dr3.training import control as runner

BINDINGS = (
  "ContinuousRunner.game='hopper'",
  "ContinuousRunner.dataset='medium'",
  'ContinuousRunner.num_iterations=1',
  'ContinuousRunner.num_gradient_steps=20',
  'ContinuousRunner.num_cloning_steps=20',
  'ContinuousRunner.num_evaluation_episodes=2',
  'ContinuousRunner.num_lanes=2',
  'ContinuousRunner.log_period=10',
  'ContinuousRunner.effective_rank_period=20',
  'ContinuousRunner.effective_rank_num_states=20',
  'ContinuousRunner.num_metric_batches=1',
  'ContinuousRunner.batch_size=8',
  'ContinuousRunner.trackers=[@TrackioTracker()]',
  'create_brac_agent.critic_layers=(8,)',
  'create_brac_agent.actor_layers=(8,)',
)


@pytest.fixture
def trackio(monkeypatch):
  rows = []
  module = types.ModuleType('trackio')
  module.init = lambda **_: None
  module.finish = lambda: None
  module.log = lambda values, step: rows.append((step, sorted(values)[0]))
  module.rows = rows
  monkeypatch.setitem(sys.modules, 'trackio', module)
  return module


@pytest.mark.slow
def test_a_policy_acts_and_scores_alike_after_it_is_exported(tmp_path, trackio):
  h5py = pytest.importorskip('h5py')
  rng = np.random.default_rng(0)
  with h5py.File(tmp_path / 'hopper.hdf5', 'w') as file:
    file.create_dataset('observations', data=rng.normal(size=(400, 11)))
    file.create_dataset('actions', data=rng.uniform(-1, 1, (400, 3)))
    file.create_dataset('rewards', data=rng.normal(size=400))
    file.create_dataset('terminals', data=np.arange(400) % 50 == 49)
    file.create_dataset('timeouts', data=np.zeros(400, bool))
  cli.gin.clear_config()
  cli.load_gin(['d4rl/brac_dr3_mujoco.gin'], BINDINGS)
  run_dir = tmp_path / 'run'
  runner.ContinuousRunner(
    str(run_dir), str(tmp_path / 'hopper.hdf5'), str(tmp_path / 'cache')
  ).run()
  assert [step for step, _ in trackio.rows] == [0, 10, 20, 20]
  assert (20, 'Eval/normalised_score') in trackio.rows
  target = targets.of_run(run_dir)
  evaluator = runner.create_evaluator(target.setup())
  states = rng.normal(size=(10_000, 11)).astype(np.float32)
  expected = evaluator._load(target.checkpoints[0].prefix)(states)
  scores = [
    (float(row['return']), int(row['length']))
    for row in run_tables.read_rows(run_dir / run_directory.SCORES)
  ]
  paths = [
    export.export(str(run_dir), name, str(tmp_path / name))
    for name in ('savedmodel', 'onnx')
  ]
  for path in paths:
    model = exported.Model(str(path), (11,), {'action': (3,)})
    np.testing.assert_allclose(
      model(states)['action'], expected, rtol=1e-4, atol=1e-5
    )
    model.close()
    episodes = evaluator.evaluate(str(path), play.evaluation_seed(0, 0))
    assert [e.length for e in episodes] == [length for _, length in scores]
    np.testing.assert_allclose(
      [e.episode_return for e in episodes], [r for r, _ in scores], rtol=1e-3
    )
  # Without a run, gin alone says what is played.
  config = (
    "include 'd4rl/brac_dr3_mujoco.gin'\nContinuousRunner.game = 'hopper'\n"
  )
  own = runner.create_evaluator(pool.Setup(config, None))
  assert own.identity.game == 'hopper'
  assert own.identity.protocol['environment'] == 'Hopper-v4'
  assert own.identity.protocol['num_evaluation_episodes'] == 10
  with pytest.raises(errors.ConfigError, match='safetensors are written of va'):
    export.export(str(run_dir), 'safetensors', str(tmp_path))
  card = (tmp_path / 'onnx' / 'README.md').read_text()
  assert 'D4RL-normalised' in card
  assert '`action` [n, 3]' in card
