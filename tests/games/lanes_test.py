from batch_rl_dr3.games import lanes as lanes_lib


def test_lane_seeds_are_positive_and_differ():
  seeds = [lanes_lib.lane_seed(s, lane) for s in range(20) for lane in range(8)]
  assert len(set(seeds)) == 160
  assert min(seeds) > 0
  assert max(seeds) < 2**31
