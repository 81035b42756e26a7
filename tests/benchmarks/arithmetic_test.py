import batch_rl_dr3  # noqa: F401
from batch_rl_dr3.agents import networks
from benchmarks import arithmetic


class Tiny(networks.ValueNetwork):
  convolutions = ((2, 3, 2),)
  num_features = 5


def test_operations_by_hand():
  # 5 x 5 frames, stride 2: 3 x 3 places; 3*3*2 filters * 3*3*4 inputs = 648.
  # Features: 3*3*2 * 5 = 90. Last layer: 5 * 7 = 35. Sum 773.
  # Without DR3: 4 * 773 - 648 = 2444. With: + 3 * 738 - 648 = 1566: 4010.
  for with_dr3, expected in ((False, 2444), (True, 4010)):
    operations = arithmetic.operations_per_step(
      Tiny, (5, 5), 4, 7, batch_size=2, with_dr3=with_dr3
    )
    assert operations == 2 * 2 * expected
