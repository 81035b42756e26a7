import gin
import pytest

from batch_rl_dr3.benchmarking import speed


@pytest.mark.slow
@pytest.mark.usefixtures('clear_gin')
def test_both_players_are_timed():
  gin.parse_config("atari_lib.create_atari_environment.game_name = 'Breakout'")
  measured = speed.measure(num_pairs=2, num_agent_steps=50, num_lanes=2)
  assert len(measured.ours) == len(measured.dopamine) == 2
  assert min(*measured.ours, *measured.dopamine) > 0
  assert measured.ratio() > 0
  assert min(measured.start_seconds) > 0


def test_the_beginning_is_not_timed(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(speed.time, 'perf_counter', lambda: now[0])
  clock = speed._Clock(num_warm=10, num_timed=100)
  # 5 steps after 3 s, 10 after 5 s; from then on 50 steps a second.
  for seconds, num_played in ((3, 5), (5, 10), (6, 60), (7, 110)):
    assert not clock.is_over()
    now[0] = 100.0 + seconds
    clock.look(num_played, 0)
  assert clock.is_over()
  assert clock.rate() == 50
  assert clock.start_seconds == 3
