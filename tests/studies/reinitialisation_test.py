import numpy as np

from batch_rl_dr3.studies import reinitialisation


def test_each_layer_is_set_back_alone_and_in_both_ways():
  shapes = [(3, 3, 4, 16), (16,), (1600, 128), (128,), (128, 6), (6,)]
  trained, initial, fresh = (
    [np.full(shape, value, np.float32) for shape in shapes]
    for value in (1, 2, 3)
  )
  resets = reinitialisation.resets(trained, initial, fresh)
  assert [(r.layer, r.kind) for r in resets] == [
    (layer, kind)
    for layer in ('Conv', 'fully_connected', 'fully_connected_1')
    for kind in ('initial', 'fresh')
  ]
  for i, reset in enumerate(resets):
    values = [weight.flat[0] for weight in reset.weights]
    expected = [1] * 6
    expected[i // 2 * 2 : i // 2 * 2 + 2] = [2 + i % 2] * 2
    assert values == expected


def test_a_sample_of_states_does_not_depend_on_their_order():
  rng = np.random.default_rng(0)
  states = rng.integers(0, 256, (9000, 5), dtype=np.uint8)
  samples = []
  for order in (np.arange(9000), rng.permutation(9000)):
    sample = reinitialisation.StateSample(9000)
    for chunk in np.array_split(states[order], 7):
      sample.add(chunk)
    sample.add(states[:100])  # Seen again: they count once.
    samples.append(sample.states)
  np.testing.assert_array_equal(*samples)
  # About every fourth is kept, 2,048 at most.
  assert 1900 < len(samples[0]) <= 2048
  assert {bytes(s) for s in samples[0]} < {bytes(s) for s in states}
