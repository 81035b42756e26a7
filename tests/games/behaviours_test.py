import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.games import behaviours
from batch_rl_dr3.games import lanes as lanes_lib


def test_scripted_behaviour_takes_the_epsilons_in_turn():
  game = lanes_lib.Game('fake', 'game', 2, (1,), 1, None, {})
  seen = []

  def script(observation, step):
    seen.append(step)
    return 1

  player = behaviours.ScriptedBehaviour(game, 0, script, (0.0, 1.0))
  shares = []
  for _ in range(4):
    actions = [player.begin_episode(np.zeros(1, np.uint8))]
    actions += [player.step(0.0, np.zeros(1, np.uint8)) for _ in range(199)]
    player.end_episode(0.0)
    shares.append(np.mean(actions))
  assert shares[0] == shares[2] == 1.0
  # Half of 200, with a standard deviation of 0.035.
  assert abs(shares[1] - 0.5) < 0.15
  assert abs(shares[3] - 0.5) < 0.15
  assert seen == list(range(200)) * 2


@pytest.mark.parametrize('epsilons', [(), (1.1,)])
def test_wrong_epsilons_are_refused(epsilons):
  game = lanes_lib.Game('fake', 'game', 2, (1,), 1, None, {})
  with pytest.raises(errors.ConfigError, match='epsilons'):
    behaviours.ScriptedBehaviour(game, 0, behaviours.hold_action, epsilons)


def test_a_script_may_not_leave_the_action_set():
  game = lanes_lib.Game('fake', 'game', 2, (1,), 1, None, {})
  player = behaviours.ScriptedBehaviour(game, 0, lambda o, t: 2, (0.0,))
  with pytest.raises(errors.ConfigError, match='actions 0 to 1'):
    player.begin_episode(np.zeros(1, np.uint8))
