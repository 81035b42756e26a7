"""The step that accelerators compile is the plain graph's, and is pure."""

import collections
import re

import numpy as np
import pytest

from batch_rl_dr3.agents import accelerator, bellman, penalties
from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store import store as replay_store
from benchmarks import setups

# isort: split
import tensorflow as tf
from tensorflow.python.eager import context


def adam():
  # The protocol's epsilon. With 1e-8, weights whose gradient is 0 but for
  # rounding move by the whole learning rate one way or the other.
  return tf.compat.v1.train.AdamOptimizer(1e-3, epsilon=3.125e-4)


def make_cql(make_agent, **kwargs):
  return make_agent(
    bellman.FixedReplayQRCQLAgent,
    num_quantiles=6,
    penalties=[
      penalties.ConservativePenalty(1.0),
      penalties.FeatureDotPenalty(0.03),
    ],
    target_update_period=2,
    **{'optimizer': adam(), **kwargs},
  )


def make_rem(make_agent, **kwargs):
  return make_agent(
    bellman.FixedReplayREMAgent,
    num_heads=6,
    penalties=[penalties.FeatureDotPenalty(0.03)],
    target_update_period=2,
    **{'optimizer': adam(), **kwargs},
  )


def make_td(make_agent, **kwargs):
  return make_agent(
    bellman.FixedReplayDQNAgent,
    backup='td',
    penalties=[penalties.FeatureDotPenalty(0.03, stop_gradient=True)],
    target_update_period=2,
    **{'optimizer': adam(), **kwargs},
  )


def assert_close(first, second):
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_allclose(
      first[name], second[name], rtol=1e-5, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize('make', [make_cql, make_rem, make_td])
def test_compiled_steps_equal_the_plain_graphs(make_agent, weights, make):
  plain, compiled = make(make_agent), make(make_agent)
  train_step = plain.make_train_step()
  expected = [train_step() for _ in range(3)]
  train_steps = compiled.make_compiled_steps('cpu')
  parts = train_steps(3)
  assert compiled.num_gradient_steps() == 3
  for name, value in expected[-1].items():
    np.testing.assert_allclose(parts[name], value, rtol=1e-5, err_msg=name)
  assert_close(weights(plain), weights(compiled))
  # One by one is the same as all at once.
  train_step()
  train_steps(1)
  assert_close(weights(plain), weights(compiled))


@pytest.mark.slow
@pytest.mark.parametrize('method', ['cql', 'rem'])
def test_the_protocols_steps_compiled_equal_the_plain_graphs(
  tmp_path, weights, method
):
  """On the Nature network, with 200 atoms and batches of 32."""
  problem = setups.ATARI
  log = setups.write_log(tmp_path, problem, 200)
  store = setups.open_store(log, tmp_path / 'cache', problem)
  plain, compiled = (setups.agent(problem, store, method) for _ in range(2))
  train_step = plain.make_train_step()
  for _ in range(3):
    train_step()
  compiled.make_compiled_steps('cpu')(3)
  assert_close(weights(plain), weights(compiled))


def test_a_store_that_does_not_fit_is_gathered_from_step_by_step(
  make_agent, weights, monkeypatch
):
  plain = make_td(make_agent)
  monkeypatch.setattr(
    replay_store.ReplayStore,
    'fits_memory',
    property(lambda store: False, lambda store, value: None),
    raising=False,
  )
  compiled = make_td(make_agent)
  assert compiled.replay.table is None
  train_step = plain.make_train_step()
  train_steps = compiled.make_compiled_steps('cpu')
  for _ in range(2):
    train_step()
    train_steps(1)
  assert_close(weights(plain), weights(compiled))


def test_steps_end_at_a_loss_that_is_not_finite(make_agent):
  agent = make_rem(make_agent, optimizer=tf.compat.v1.train.AdamOptimizer(1e30))
  parts = agent.make_compiled_steps('cpu')(50)
  assert not np.isfinite(parts['loss_total'])
  assert agent.num_gradient_steps() < 50


def lower(agent, platform):
  """Returns the HLO of the agent's steps, with every array an argument."""
  steps = agent.compiled_steps()
  specs = [tf.TensorSpec(a.shape, a.dtype) for a in steps.arguments]
  with context.eager_mode():
    function = tf.function(steps, jit_compile=True, autograph=False)
    lowered = function.experimental_get_compiler_ir(*specs)
    return lowered(stage='hlo', platform_name=platform)


# TensorFlow's wheel has no backend for platform TPU; HLO is the same language
# for all. The TPU's own graph is built below.
@pytest.mark.parametrize('make', [make_cql, make_rem])
def test_steps_lower_to_one_loop_without_the_host(make_agent, make):
  hlo = lower(make(make_agent), 'GPU')
  ops = collections.Counter(re.findall(r'= \S+(?: \S+)*? ([a-z-]+)\(', hlo))
  assert ops['convolution'] > 0
  assert ops['while'] == 1
  for talk in ('infeed', 'outfeed', 'send', 'recv', 'custom-call'):
    assert ops[talk] == 0, talk


def test_a_graph_for_a_tpu_is_built(make_agent):
  agent = make_rem(make_agent)
  with agent.graph.as_default():
    steps = agent.compiled_steps()
    results = accelerator._compiled('tpu', steps, steps.arguments)
  # The state comes back, without the 8 arrays of the data and the number of
  # steps; then the parts of the loss.
  num_parts = len(agent.loss_parts.by_name)
  assert len(results) == len(steps.arguments) - 9 + num_parts
  kinds = collections.Counter(
    operation.type for operation in agent.graph.get_operations()
  )
  assert kinds['TPUReplicateMetadata'] == 1
  assert kinds['TPUReplicatedInput'] == len(steps.arguments)
  replicated = [
    operation.type
    for operation in agent.graph.get_operations()
    if '_tpu_replicate' in operation.node_def.attr
  ]
  assert 'PyFunc' not in replicated
  assert 'Conv2D' in replicated


def test_adam_equals_tensorflows(session):
  optimizer = tf.compat.v1.train.AdamOptimizer(0.1, epsilon=1e-3)
  weight = tf.compat.v1.get_variable('w', initializer=[1.0, -2.0, 3.0])
  gradient = tf.constant([0.5, -1.0, 0.0])
  update = optimizer.apply_gradients([(gradient, weight)])
  session.run(tf.compat.v1.global_variables_initializer())
  state = accelerator.StepState(
    tf.constant(0, tf.int64),
    {'online': [tf.constant([1.0, -2.0, 3.0])]},
    {},
    ({'online': [tf.zeros(3)]}, {'online': [tf.zeros(3)]}),
    (tf.constant(0.9), tf.constant(0.999)),
  )
  for _ in range(3):
    state = accelerator.adam_step(optimizer, state, {'online': [gradient]})
    session.run(update)
  np.testing.assert_allclose(
    session.run(state.weights['online'][0]), session.run(weight), rtol=1e-6
  )


def test_another_optimiser_is_refused(make_agent):
  agent = make_td(
    make_agent, optimizer=tf.compat.v1.train.RMSPropOptimizer(1e-3)
  )
  with pytest.raises(errors.ConfigError, match='RMSPropOptimizer'):
    agent.make_compiled_steps('cpu')


def test_a_device_that_is_not_there_is_refused(make_agent):
  with pytest.raises(errors.ConfigError, match=r"'tpu', but .* finds none"):
    make_td(make_agent, device='tpu')
  with pytest.raises(errors.ConfigError, match='one of auto, cpu'):
    make_td(make_agent, device='abacus')


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ('fpu avx512f avx512_bf16', 'bfloat16'),
    ('fpu amx_tile amx_bf16', 'bfloat16'),
    ('fpu avx2 avx512f', 'float32'),
    (None, 'float32'),
  ],
)
def test_the_fastest_dtype_is_bfloat16_where_the_processor_has_it(
  make_agent, monkeypatch, tmp_path, flags, expected
):
  path = tmp_path / 'cpuinfo'
  monkeypatch.setattr(accelerator, 'CPU_INFO', path)
  if flags is not None:
    path.write_text(f'processor : 0\nflags : {flags}\n')
  assert make_rem(make_agent, compute_dtype='auto').compute_dtype == expected
  assert accelerator.find_dtype('auto', 'gpu') == 'bfloat16'
  # What is bound stays, and so does what a run began with.
  assert accelerator.find_dtype('float32', 'cpu', 'bfloat16') == 'float32'
  for recorded in ('bfloat16', 'float32'):
    assert accelerator.find_dtype('auto', 'cpu', recorded) == recorded
  with pytest.raises(
    errors.ConfigError, match="'float16'; it must be one of f"
  ):
    make_rem(make_agent, compute_dtype='float16')


def test_bfloat16_is_near_float32(make_agent):
  losses = [
    make_cql(make_agent, compute_dtype=dtype).measure()['loss_total']
    for dtype in ('float32', 'bfloat16')
  ]
  assert losses[0] != losses[1]
  np.testing.assert_allclose(*losses, rtol=0.02)
