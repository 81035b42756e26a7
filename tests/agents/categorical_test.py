"""The categorical losses by literals, and against Dopamine's and SciPy's."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from batch_rl_dr3.agents import bellman, penalties
from batch_rl_dr3.config import errors

# isort: split
from dopamine.tf.agents.rainbow import rainbow_agent
import gin
import tensorflow as tf

GAMMA = 0.9
make_categorical = pytest.fixture(
  lambda make_agent: (
    lambda **kwargs: make_agent(
      bellman.FixedReplayCategoricalAgent,
      **{'num_atoms': 5, 'gamma': GAMMA, **kwargs},
    )
  )
)


@pytest.fixture(autouse=True)
def support(clear_gin):
  """Atoms -2, -1, 0, 1, 2, so that some targets lie outside."""
  gin.bind_parameter('categorical_support.v_min', -2.0)
  gin.bind_parameter('categorical_support.v_max', 2.0)


def test_a_projection_by_hand(session):
  # On 0, 1, 2: a return of 0.5 with 0.4 gives 0.2 to 0 and to 1; 3 with 0.6 is
  # clipped to 2. In the second row 1.75 gives 0.25 to 1 and 0.75 to 2, and -1
  # is clipped to 0.
  projected = bellman.project(
    tf.constant([[0.5, 3.0], [1.75, -1.0]]),
    tf.constant([[0.4, 0.6], [0.8, 0.2]]),
    tf.constant([0.0, 1.0, 2.0]),
  )
  np.testing.assert_allclose(
    session.run(projected), [[0.2, 0.2, 0.6], [0.2, 0.2, 0.6]], atol=1e-6
  )


def test_a_projection_is_dopamines(session):
  rng = np.random.default_rng(0)
  returns = tf.constant(rng.normal(0, 8, (20, 51)), tf.float32)
  probabilities = tf.nn.softmax(tf.constant(rng.normal(size=(20, 51))), axis=1)
  probabilities = tf.cast(probabilities, tf.float32)
  atoms = tf.linspace(-10.0, 10.0, 51)
  ours, dopamines = session.run(
    [
      bellman.project(returns, probabilities, atoms),
      rainbow_agent.project_distribution(returns, probabilities, atoms),
    ]
  )
  np.testing.assert_allclose(ours, dopamines, atol=2e-6)
  np.testing.assert_allclose(ours.sum(axis=1), 1.0, rtol=1e-5)


def test_bins_of_a_gaussian_by_hand(session):
  # Atoms -1, 0, 1 have the edges -1.5, -0.5, 0.5, 1.5: at mean 0 and sigma 0.5
  # -3, -1, 1, 3 deviations. Phi(1) - Phi(-1) = 0.6826895 of Phi(3) - Phi(-3) =
  # 0.9973002 is 0.6845376; the rest is shared. A mean of 7 counts as 1: the
  # edges are -5, -3, -1, 1 deviations away, and Phi(1) = 0.8413447,
  # Phi(-1) = 0.1586553, Phi(-3) = 0.0013499, Phi(-5) = 3e-7.
  bins = bellman.gaussian_bins(
    tf.constant([0.0, 7.0]), tf.constant([-1.0, 0.0, 1.0]), 0.5
  )
  np.testing.assert_allclose(
    session.run(bins),
    [
      [0.1577312, 0.6845376, 0.1577312],
      [0.0013496 / 0.8413444, 0.1573054 / 0.8413444, 0.6826895 / 0.8413444],
    ],
    atol=1e-6,
  )


def test_bins_of_a_gaussian_are_scipys(session):
  means = np.random.default_rng(0).normal(0, 6, 30).astype(np.float32)
  atoms = np.linspace(-10, 10, 51)
  bins = session.run(
    bellman.gaussian_bins(
      tf.constant(means), tf.constant(atoms, tf.float32), 0.75
    )
  )
  edges = np.append(atoms - 0.2, 10.2)
  below = scipy.stats.norm.cdf(
    edges, np.clip(means, -10, 10)[:, np.newaxis], 0.75 * 0.4
  )
  expected = np.diff(below) / (below[:, -1:] - below[:, :1])
  np.testing.assert_allclose(bins, expected, atol=2e-6)
  # Away from the ends the mean is kept: that is what is learnt from it.
  inner = np.abs(means) < 9
  np.testing.assert_allclose((bins @ atoms)[inner], means[inner], atol=1e-3)


def read(agent):
  """Returns the batch and the logits that its loss is of."""
  with agent.graph.as_default():
    next_q = agent.online_convnet(
      agent._replay.transition['next_state']
    ).q_values
  return agent.run(
    {
      **dict(agent._replay.transition),
      'online_next_q': next_q,
      'logits': agent.batch.atoms,
      'target_logits': agent.batch.target_atoms,
    }
  )


@pytest.mark.parametrize('double_q', [False, True])
@pytest.mark.parametrize('update_horizon', [1, 3])
@pytest.mark.parametrize('loss', ['c51', 'hl_gauss'])
def test_the_loss_is_dopamines_cross_entropy(
  make_categorical, loss, double_q, update_horizon
):
  agent = make_categorical(
    loss=loss, double_q=double_q, update_horizon=update_horizon
  )
  agent.make_train_step()()  # The target network differs from here on.
  batch = read(agent)
  assert batch['terminal'].any()
  atoms = np.arange(-2.0, 3.0)
  probabilities = scipy.special.softmax(batch['target_logits'], axis=2)
  next_q = probabilities @ atoms
  chosen = batch['online_next_q'] if double_q else next_q
  rows, actions = np.arange(32), chosen.argmax(axis=1)
  discounts = GAMMA**update_horizon * (1.0 - batch['terminal'])
  if loss == 'c51':
    returns = batch['reward'][:, None] + discounts[:, None] * atoms
    with agent.graph.as_default():
      target = agent.run(
        rainbow_agent.project_distribution(
          tf.constant(returns, tf.float32),
          tf.constant(probabilities[rows, actions]),
          tf.constant(atoms, tf.float32),
        )
      )
  else:
    means = batch['reward'] + discounts * next_q[rows, actions]
    below = scipy.stats.norm.cdf(
      np.arange(-2.5, 3.0), np.clip(means, -2, 2)[:, None], 0.75
    )
    target = np.diff(below) / (below[:, -1:] - below[:, :1])
  log_probabilities = scipy.special.log_softmax(
    batch['logits'][rows, batch['action']].astype(float), axis=1
  )
  np.testing.assert_allclose(
    agent.measure()['loss_bellman'],
    -np.mean(np.sum(target * log_probabilities, axis=1)),
    rtol=1e-5,
  )


def test_double_q_takes_the_online_networks_action(make_categorical):
  agents = [make_categorical(double_q=double_q) for double_q in (True, False)]
  for agent in agents:
    for _ in range(40):
      agent.make_train_step()()
  batch = read(agents[0])
  policies = [agent.run(agent.batch.next_policy) for agent in agents]
  np.testing.assert_array_equal(
    policies[0].argmax(axis=1), batch['online_next_q'].argmax(axis=1)
  )
  assert (policies[0] != policies[1]).any()


def test_penalties_and_metrics_see_the_means_of_the_atoms(make_categorical):
  agent = make_categorical(
    penalties=[
      penalties.ConservativePenalty(0.1),
      penalties.FeatureDotPenalty(0.03),
    ]
  )
  batch = read(agent)
  q_values = scipy.special.softmax(batch['logits'], axis=2) @ np.arange(-2, 3)
  logged = q_values[np.arange(32), batch['action']]
  conservative = np.mean(scipy.special.logsumexp(q_values, axis=1) - logged)
  measured = agent.measure()
  np.testing.assert_allclose(measured['mean_q'], logged.mean(), atol=1e-5)
  np.testing.assert_allclose(
    measured['loss_conservative'], conservative, rtol=1e-5
  )
  np.testing.assert_allclose(
    measured['loss_total'],
    measured['loss_bellman']
    + 0.1 * conservative
    + 0.03 * measured['feature_dot_product'],
    rtol=1e-5,
  )


@pytest.mark.parametrize('loss', ['c51', 'hl_gauss'])
def test_compiled_steps_equal_the_plain_graphs(make_categorical, weights, loss):
  plain, compiled = (
    make_categorical(
      loss=loss,
      double_q=True,
      optimizer=tf.compat.v1.train.AdamOptimizer(1e-3, epsilon=3.125e-4),
    )
    for _ in range(2)
  )
  train_step = plain.make_train_step()
  for _ in range(3):
    train_step()
  compiled.make_compiled_steps('cpu')(3)
  expected, found = weights(plain), weights(compiled)
  for name, value in expected.items():
    np.testing.assert_allclose(
      found[name], value, rtol=1e-5, atol=1e-5, err_msg=name
    )


def test_the_loss_comes_down(make_categorical):
  agent = make_categorical(target_update_period=10_000)
  before = agent.measure()['loss_bellman']
  step = agent.make_train_step()
  for _ in range(60):
    step()
  assert agent.measure()['loss_bellman'] < 0.9 * before


def test_settings_that_mean_nothing_are_refused(make_categorical):
  with pytest.raises(errors.ConfigError, match='hl_gauss'):
    make_categorical(loss='qr')
  with pytest.raises(errors.ConfigError, match='num_atoms'):
    make_categorical(num_atoms=1)
  gin.bind_parameter('categorical_support.v_min', 2.0)
  with pytest.raises(ValueError, match='below v_max'):
    make_categorical()
