"""The stock path that is raced against does the same arithmetic."""

import numpy as np
import pytest

import batch_rl_dr3  # noqa: F401
from benchmarks import setups

SMALL = setups.MINATAR


@pytest.fixture(scope='module')
def small_store(tmp_path_factory):
  folder = tmp_path_factory.mktemp('benchmark')
  log = setups.write_log(folder, SMALL, 200)
  return setups.open_store(log, folder / 'cache', SMALL)


def set_weights(agent, values):
  variables = agent.online_convnet.variables + agent.target_convnet.variables
  for variable, value in zip(variables, values, strict=True):
    variable.load(value, agent._sess)


@pytest.mark.parametrize('with_dr3', [False, True])
def test_cql_has_the_same_loss_and_the_same_step(small_store, with_dr3):
  ours = setups.agent(SMALL, small_store, 'cql', with_dr3)
  stock = setups.stock_agent(
    SMALL, small_store, 'cql', with_dr3, constant_batch=True
  )
  initial = ours._sess.run(
    ours.online_convnet.variables + ours.target_convnet.variables
  )
  set_weights(stock, initial)
  batch = ours.replay.batch_at(small_store.valid_indices()[:32])
  tensors = ours.replay.transition
  feed = {tensors[name]: array for name, array in batch.items()}
  losses = [
    ours._sess.run([ours.loss_parts.total, ours._train_op], feed)[0],
    stock._sess.run([stock.loss, stock._train_op])[0],
  ]
  np.testing.assert_allclose(*losses, rtol=1e-5)
  for mine, theirs, before in zip(
    ours._sess.run(ours.online_convnet.variables),
    stock._sess.run(stock.online_convnet.variables),
    initial,
    strict=False,
  ):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    assert (mine != before).any()


def test_the_stock_agent_learns_from_its_own_buffer(small_store):
  stock = setups.stock_agent(SMALL, small_store, 'rem')
  before = stock._sess.run(stock.online_convnet.variables)
  setups.stock_step(stock)()
  after = stock._sess.run(stock.online_convnet.variables)
  assert any((a != b).any() for a, b in zip(after, before, strict=True))
  memory = stock._replay.memory
  padding = small_store.stack_size - 1
  assert memory.add_count >= small_store.num_rows - padding


def test_a_constant_batch_is_one_batch(small_store):
  agent = setups.agent(SMALL, small_store, 'rem', constant_batch=True)
  indices = agent.replay.transition['indices']
  step = agent.make_train_step()
  first = agent._sess.run(indices)
  step()
  np.testing.assert_array_equal(first, agent._sess.run(indices))
