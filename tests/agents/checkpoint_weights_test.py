"""What Dopamine's agent becomes on a fixed store."""

import numpy as np
import pytest

from batch_rl_dr3.agents import bellman, checkpoint_weights, penalties
from batch_rl_dr3.config import errors


@pytest.fixture
def trained(make_agent, tmp_path):
  """An agent after 3 steps, and its checkpoint."""
  agent = make_agent(
    bellman.FixedReplayDQNAgent, penalties=[penalties.FeatureDotPenalty(0.1)]
  )
  step = agent.make_train_step()
  for _ in range(3):
    step()
  prefix = str(tmp_path / 'tf_ckpt-0')
  agent.save(prefix)
  return agent, prefix


def test_an_agent_starts_from_another_ones_online_network(
  make_agent, weights, trained
):
  agent, prefix = trained
  started = make_agent(bellman.FixedReplayDQNAgent, init_checkpoint=prefix)
  before, after = weights(agent), weights(started)
  names = [n for n in before if n.startswith('Online/') and 'Adam' not in n]
  assert len(names) == 6
  for name in names:
    np.testing.assert_array_equal(before[name], after[name])
    np.testing.assert_array_equal(
      after[name], after[name.replace('Online', 'Target')]
    )
  # The optimiser and the step number start anew.
  assert started.num_gradient_steps() == 0
  assert not any(after[n].any() for n in after if n.endswith('/Adam:0'))
  kernel = names[0]
  fresh = weights(make_agent(bellman.FixedReplayDQNAgent))
  assert (fresh[kernel] != after[kernel]).any()


def test_a_checkpoint_of_another_network_is_no_start(make_agent, trained):
  with pytest.raises(errors.DataError, match='do not fit'):
    make_agent(
      bellman.FixedReplayREMAgent, num_heads=5, init_checkpoint=trained[1]
    )
  with pytest.raises(errors.DataError, match='cannot be read'):
    make_agent(bellman.FixedReplayDQNAgent, init_checkpoint='nowhere')


def test_written_weights_are_read_as_they_were(tmp_path, trained):
  weights = checkpoint_weights.read(trained[1])
  assert checkpoint_weights.layer_names(weights) == [
    *('Conv', 'fully_connected', 'fully_connected_1')
  ]
  checkpoint_weights.write(str(tmp_path / 'copy'), weights)
  for first, second in zip(
    weights, checkpoint_weights.read(str(tmp_path / 'copy')), strict=True
  ):
    np.testing.assert_array_equal(first, second)
  with pytest.raises(OSError):
    checkpoint_weights.write(str(tmp_path / 'tf_ckpt-0.index' / 'x'), weights)
