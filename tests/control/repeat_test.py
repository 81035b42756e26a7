"""A step reads every variable before it updates it, so that runs repeat."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import data as data_lib
from batch_rl_dr3.training import control as runner

NUM_ROWS = 40


@pytest.fixture
def make_learner(request):
  """Makes learners of an agent, with the same data and first weights."""

  def make(method):
    rng = np.random.default_rng(0)
    columns = (
      rng.normal(size=(NUM_ROWS, 3)),
      np.tanh(rng.normal(size=(NUM_ROWS, 2))),
      rng.normal(size=NUM_ROWS),
      rng.normal(size=(NUM_ROWS, 3)),
      rng.random(NUM_ROWS) < 0.1,
    )
    data = data_lib.Transitions(
      *(column.astype(np.float32) for column in columns), manifest={}
    )
    agent = request.getfixturevalue(f'make_{method}')()
    # Adam's update is the one that runs apart from what it is computed from.
    for name in ('_critic', '_actor', '_alpha'):
      adam = tf.keras.optimizers.legacy.Adam(0.1)
      setattr(agent, f'{name}_optimizer', adam)
    return runner.ControlLearner(agent, data, 8, 0, 1, 8)

  return make


def unordered(run):
  """Returns the reads that what `run` runs may do after an update.

  They are pairs (read, update) of one variable in the graphs as they are
  executed, in which neither waits for the other.
  """
  context.context().enable_graph_collection()
  try:
    run()
    graphs = context.context().export_run_metadata().function_graphs
  finally:
    context.context().disable_graph_collection()
  pairs, num_updates = [], 0
  for graph in (g.post_optimization_graph for g in graphs):
    inputs = {
      node.name: [i.lstrip('^').partition(':')[0] for i in node.input]
      for node in graph.node
    }

    def ancestors(name, inputs=inputs):
      found, ahead = set(), [name]
      while ahead:
        new = set(inputs.get(ahead.pop(), ())) - found
        found |= new
        ahead += new
      return found

    reads = [n for n in graph.node if n.op == 'ReadVariableOp']
    for update in graph.node:
      if update.op in ('ResourceApplyAdam', 'AssignAddVariableOp'):
        num_updates += 1
        before = ancestors(update.name)
        pairs += [
          (read.name, update.name)
          for read in reads
          if read.input[0] == update.input[0]
          and read.name not in before
          and update.name not in ancestors(read.name)
        ]
  assert num_updates
  return pairs


def test_cloning_reads_its_weights_before_it_updates_them(make_learner):
  learning = make_learner('brac')
  assert not unordered(learning.make_cloning(1e-3).take_step)


@pytest.mark.parametrize(
  'method', [pytest.param('cql', marks=pytest.mark.slow), 'brac']
)
def test_a_step_reads_its_weights_before_it_updates_them(method, make_learner):
  learning = make_learner(method)
  step = learning.agent.train_step_counter
  train = tf.function(lambda: learning.agent.train(learning.draw(step)).loss)
  assert not unordered(train)


def test_cloning_that_was_stopped_ends_as_one_that_was_not(
  make_learner, tmp_path
):
  """Weights and the last likelihood, bit for bit."""
  prefix = str(tmp_path / 'cloning')

  def end(save_at):
    learning = make_learner('brac')
    cloning = learning.make_cloning(1e-2)
    for step in range(8):
      if step == save_at:
        cloning.save(prefix)
        learning = make_learner('brac')
        cloning = learning.make_cloning(1e-2)
        cloning.restore(prefix)
        assert cloning.num_steps == save_at
      cloning.take_step()
    weights = [v.numpy() for v in learning.agent.behaviour_network.variables]
    return [*weights, cloning.likelihood]

  for expected, found in zip(end(None), end(3), strict=True):
    np.testing.assert_array_equal(expected, found)


def test_cloning_refuses_the_checkpoint_of_another_network(
  make_learner, tmp_path
):
  prefix = str(tmp_path / 'other')
  tf.train.Checkpoint(counter=tf.Variable(0)).write(prefix)
  cloning = make_learner('brac').make_cloning(1e-2)
  with pytest.raises(errors.DataError, match='no checkpoint of this behaviour'):
    cloning.restore(prefix)
