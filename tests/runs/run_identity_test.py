import hashlib

import pytest

from batch_rl_dr3.runs import run_identity

BINDINGS = {
  'FixedReplayRunner.method': 'rem',
  'FeatureDotPenalty.coefficient': 0.03,
}
DATA = {'suite': 'atari', 'game': 'Pong', 'run': 1}


def identity(bindings=BINDINGS, data=DATA, seed=0, version=2):
  return run_identity.run_identity(bindings, data, seed, version)


def test_it_is_the_hash_of_what_a_run_is():
  text = (
    '{"bindings":{"FeatureDotPenalty.coefficient":"0.03",'
    '"FixedReplayRunner.method":"\'rem\'"},'
    '"data":{"game":"Pong","run":1,"suite":"atari"},'
    '"seed":0,"version":2}'
  )
  assert identity() == hashlib.sha256(text.encode()).hexdigest()[:8]


def test_the_first_numbers_are_called_as_their_package_was():
  text = '{"bindings":{},"data":{},"seed":0,"version":"0.1.0"}'
  expected = hashlib.sha256(text.encode()).hexdigest()[:8]
  assert identity({}, {}, version=1) == expected


def test_order_changes_nothing():
  reverse = dict(reversed(BINDINGS.items()))
  assert identity(reverse, dict(reversed(DATA.items()))) == identity()


@pytest.mark.parametrize(
  'binding',
  [
    'FixedReplayRunner.num_iterations',
    'FixedReplayRunner.async_evaluation',
    'scope/FixedReplayRunner.checkpoint_every_minutes',
    'batch_rl_dr3.replay.store.open_store.max_resident_bytes',
    'OfflineAgent.device',
    'FixedReplayREMAgent.steps_per_call',
    'Retry.attempts',
  ],
)
def test_what_is_the_machines_is_left_out(binding):
  assert identity({**BINDINGS, binding: 3}) == identity()


@pytest.mark.parametrize(
  'changed',
  [
    {'bindings': {**BINDINGS, 'FeatureDotPenalty.coefficient': 0.3}},
    {'bindings': {**BINDINGS, 'FixedReplayRunner.num_threads': 2}},
    {'bindings': {**BINDINGS, 'OfflineAgent.gamma': 0.9}},
    {'data': {**DATA, 'run': 2}},
    {'data': {'data_hash': 'abc'}},
    {'seed': 1},
    {'version': 3},
  ],
)
def test_anything_else_makes_another_run(changed):
  assert identity(**changed) != identity()
