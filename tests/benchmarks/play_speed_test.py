import gin
import pytest

from benchmarks import play_speed


@pytest.mark.slow
@pytest.mark.usefixtures('clear_gin')
def test_both_players_play_whole_episodes_and_are_timed():
  gin.parse_config("atari_lib.create_atari_environment.game_name = 'Breakout'")
  measured = play_speed.measure(num_pairs=2, num_agent_steps=50, num_lanes=2)
  assert len(measured.ours) == len(measured.dopamine) == 2
  assert min(*measured.ours, *measured.dopamine) > 0
  assert measured.seconds > 0


def test_the_ratio_is_the_median_of_pairs():
  measured = play_speed.Speed([4.0, 9.0, 2.0], [2.0, 3.0, 2.0], 1.0)
  assert measured.ratio() == 2.0  # Of 2, 3 and 1.
  assert measured.quartiles() == (1.5, 2.5)
