"""The discrete agents: each says what its Bellman loss is.

FixedReplayDQNAgent has a `backup`: which policy the a' of the target
r + gamma Q'(s', a') comes from (Figure 1 of arXiv:2112.04716).

  q_learning   argmax_a Q'(s', a), DQN's own.
  sarsa        the next logged action, so that only seen pairs are backed up.
  td           a behaviour policy, a network of its own that clones the actions
               of `policy_rows`: the 'training' batches or 'held_out' ones. It
               backs up what is in distribution but may be unseen.
  uniform      all actions alike: out of distribution for most logs.
  monte_carlo  no backup: regression on the logged discounted return.

The target is the expectation over that policy, as in the paper's later
revision, or with `sample_next_action` the value of one a' drawn from it.

FixedReplayCategoricalAgent learns a distribution over K evenly spaced returns,
the atoms, whose mean is Q(s, a). Its target, by `loss`:

  c51       the distribution of r + gamma Z'(s', a'), projected onto the atoms
            (Bellemare et al. 2017, arXiv:1707.06887).
  hl_gauss  a Gaussian around r + gamma Q'(s', a'), cut into one bin per atom
            (Imani and White 2018; Farebrother et al. 2024, arXiv:2403.03950).
            Deviation: bins are centred on C51's atoms, so that both losses
            share one reading of the logits.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import gin
import tensorflow as tf

from batch_rl_dr3.agents import kernels, losses, networks, offline
from batch_rl_dr3.agents.accelerator import ONLINE
from batch_rl_dr3.agents.penalties import (
  ConservativePenalty,
  Penalty,
  UpdateBatch,
)
from batch_rl_dr3.config import ranges

Backup = Literal['q_learning', 'sarsa', 'td', 'uniform', 'monte_carlo']
_BEHAVIOUR = 'behaviour'  # The network of 'td'.
# Keep random streams of the same seed apart.
_ACTION_STREAM = 104_729
_MIXTURE_STREAM = 7_919


def stateless_fractions(seed: int, step: tf.Tensor, count: int) -> tf.Tensor:
  """Returns draws from [0, 1): float32 [count], a function of (seed, step)."""
  # A named algorithm gives the same bits on every device; the floats that
  # `stateless_uniform` makes of them differ. These are the CPU's: the low 23
  # bits as a fraction.
  bits = tf.random.stateless_uniform(
    [count],
    seed=tf.stack([tf.constant(seed, tf.int64), step]),
    minval=None,
    maxval=None,
    dtype=tf.uint32,
    alg='philox',
  )
  fractions = tf.bitwise.bitwise_and(bits, tf.constant(2**23 - 1, tf.uint32))
  return tf.cast(fractions, tf.float32) * 2.0**-23


def sample_actions(policy: tf.Tensor, fractions: tf.Tensor) -> tf.Tensor:
  """Returns the first a, int32 [B], at which the summed policy exceeds it."""
  # Without the last sum, which rounding may leave below the fraction.
  sums = tf.cumsum(policy, axis=1)[:, :-1]
  is_beyond = sums <= fractions[:, tf.newaxis]
  return tf.reduce_sum(tf.cast(is_beyond, tf.int32), axis=1)


@gin.configurable
@ranges.checked
class FixedReplayDQNAgent(offline.OfflineAgent):
  """DQN on logged data: the Huber loss of Mnih et al. 2015."""

  def __init__(
    self,
    *args: Any,
    backup: Backup = 'q_learning',
    sample_next_action: bool = False,
    policy_rows: Literal['training', 'held_out'] = 'training',
    **kwargs: Any,
  ):
    if sample_next_action and backup not in ('td', 'uniform'):
      raise ValueError(
        f'sample_next_action is for the backups td and uniform, not {backup}.'
      )
    if policy_rows == 'held_out' and backup != 'td':
      raise ValueError(
        f'policy_rows is for the backup td, not {backup}, which learns no '
        'policy.'
      )
    self._backup = backup
    self._sample_next_action = sample_next_action
    self.is_monte_carlo = backup == 'monte_carlo'
    self.learns_from_held_out = policy_rows == 'held_out'
    super().__init__(*args, **kwargs)

  def _build_networks(self) -> None:
    super()._build_networks()
    if self._backup == 'td':
      self._behaviour = self.network(
        self.num_actions,
        initialiser=networks.glorot_uniform,
        seed=self._seed + 1,
        name='Behaviour',
      )
      self._behaviour(self.state_ph)  # Creates its variables.

  def _networks(self) -> dict[str, tf.keras.Model]:
    more = {_BEHAVIOUR: self._behaviour} if self._backup == 'td' else {}
    return super()._networks() | more

  def _behaviour_logits(
    self, batch: UpdateBatch, states: tf.Tensor
  ) -> tf.Tensor:
    weights = batch.weights[_BEHAVIOUR]
    features = self._behaviour.features(weights, states)
    return self._behaviour.output(weights, features).q_values

  def _build_auxiliary_losses(self, batch: UpdateBatch) -> dict[str, tf.Tensor]:
    if self._backup != 'td':
      return {}
    rows = offline.HELD_OUT if self.learns_from_held_out else ''
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels=batch.transition[f'{rows}action'],
      logits=self._behaviour_logits(batch, batch.transition[f'{rows}state']),
    )
    return {'behaviour_cross_entropy': tf.reduce_mean(cross_entropy)}

  def _combine(self, batch: UpdateBatch, atoms: tf.Tensor) -> tf.Tensor:
    """Returns the Q-values that are regressed: [B, A] from [B, A, K]."""
    return tf.squeeze(atoms, axis=2)

  def _build_next_policy(self, batch: UpdateBatch) -> tf.Tensor:
    batch_size = batch.q_values.shape.as_list()[0]
    if self._backup == 'td':
      logits = self._behaviour_logits(batch, batch.transition['next_state'])
      policy = tf.nn.softmax(logits)
    elif self._backup == 'uniform':
      policy = tf.fill([batch_size, self.num_actions], 1 / self.num_actions)
    elif self._backup == 'q_learning':
      greedy = tf.argmax(self._combine(batch, batch.target_atoms), axis=1)
      return tf.one_hot(greedy, self.num_actions)
    else:  # Monte-Carlo backs nothing up: the logged a' stands in.
      return tf.one_hot(batch.transition['next_action'], self.num_actions)
    if not self._sample_next_action:
      return policy
    fractions = stateless_fractions(
      self._seed + _ACTION_STREAM, batch.step, batch_size
    )
    return tf.one_hot(sample_actions(policy, fractions), self.num_actions)

  def _build_bellman_loss(self, batch: UpdateBatch) -> tf.Tensor:
    chosen_q = losses.chosen_values(
      self._combine(batch, batch.atoms), batch.actions
    )
    if self._backup == 'monte_carlo':
      return losses.huber(batch.transition['return'], chosen_q)
    next_q = self._combine(batch, batch.target_atoms)
    return losses.huber(self._bellman_target(batch, next_q), chosen_q)


def mixture_weights(seed: int, step: tf.Tensor, num_heads: int) -> tf.Tensor:
  """Returns one random convex combination, float32 [K], of (seed, step).

  K uniform draws divided by their sum (arXiv:1907.04543, Section 3.3).
  """
  draws = stateless_fractions(seed + _MIXTURE_STREAM, step, num_heads)
  return draws / tf.reduce_sum(draws)


@gin.configurable
class FixedReplayREMAgent(FixedReplayDQNAgent):
  """REM (arXiv:1907.04543): DQN on a convex combination of K heads.

  It is drawn anew each step and used on both sides of the Bellman equation;
  acting uses the mean of the heads. With one head it is DQN.
  """

  initialiser = staticmethod(networks.scaled_uniform)

  def __init__(self, *args: Any, num_heads: int = 200, **kwargs: Any):
    self.num_atoms = num_heads
    super().__init__(*args, **kwargs)

  def _combine(self, batch: UpdateBatch, atoms: tf.Tensor) -> tf.Tensor:
    mixture = mixture_weights(self._seed, batch.step, self.num_atoms)
    return tf.tensordot(atoms, mixture, axes=1)


@gin.configurable
class FixedReplayQRCQLAgent(offline.OfflineAgent):
  """QR-DQN (arXiv:1710.10044), with CQL's penalty unless penalties are given.

  That is CQL as in its own Atari experiments; whether the DR3 paper ran it on
  QR-DQN or on DQN (FixedReplayDQNAgent with a ConservativePenalty) is unknown.
  """

  initialiser = staticmethod(networks.scaled_uniform)

  def __init__(
    self,
    *args: Any,
    num_quantiles: int = 200,
    kappa: float = 1.0,
    penalties: Sequence[Penalty] | None = None,
    **kwargs: Any,
  ):
    self.num_atoms = num_quantiles
    self._kappa = kappa
    kwargs['penalties'] = (
      [ConservativePenalty()] if penalties is None else penalties
    )
    super().__init__(*args, **kwargs)

  def _build_bellman_loss(self, batch: UpdateBatch) -> tf.Tensor:
    target = self._bellman_target(batch, batch.target_atoms)
    chosen = losses.chosen_values(batch.atoms, batch.actions)
    return kernels.quantile_huber(target, chosen, self._kappa)


def project(
  returns: tf.Tensor, probabilities: tf.Tensor, atoms: tf.Tensor
) -> tf.Tensor:
  """Returns a distribution over evenly spaced atoms [K]: float32 [B, K].

  Each return [B, N] is clipped to the atoms, and its probability shared out
  between its neighbours by distance. arXiv:1707.06887, Eq. 7.
  """
  clipped = tf.clip_by_value(returns, atoms[0], atoms[-1])
  distances = tf.abs(clipped[:, :, None] - atoms) / (atoms[1] - atoms[0])
  shares = tf.maximum(1.0 - distances, 0.0)  # [B, N, K]
  return tf.reduce_sum(shares * probabilities[:, :, None], axis=1)


def gaussian_bins(means: tf.Tensor, atoms: tf.Tensor, sigma: Any) -> tf.Tensor:
  """Returns a Gaussian's share of each bin around an atom: float32 [B, K].

  The means [B] are clipped to the atoms [K], sigma is in units of a bin, and
  what lies outside all bins is left out. arXiv:2403.03950, Section 3.1.
  """
  width = atoms[1] - atoms[0]
  edges = tf.concat([atoms - 0.5 * width, atoms[-1:] + 0.5 * width], axis=0)
  clipped = tf.clip_by_value(means, atoms[0], atoms[-1])
  deviations = (edges - clipped[:, None]) / (sigma * width)
  below = tf.math.erf(deviations / 2.0**0.5)
  return (below[:, 1:] - below[:, :-1]) / (below[:, -1:] - below[:, :1])


@gin.configurable
@ranges.checked
def categorical_support(
  v_min: float = -10.0, v_max: float = 10.0
) -> tuple[float, float]:
  """Returns the lowest and the highest atom; Rainbow's by default."""
  if v_min >= v_max:
    raise ValueError(f'v_min must be below v_max, got {v_min} and {v_max}.')
  return v_min, v_max


@gin.configurable
@ranges.checked
class FixedReplayCategoricalAgent(offline.OfflineAgent):
  """C51 or HL-Gauss on logged data; with CQL by a ConservativePenalty."""

  initialiser = staticmethod(networks.scaled_uniform)

  def __init__(
    self,
    *args: Any,
    loss: Literal['c51', 'hl_gauss'] = 'c51',
    num_atoms: Annotated[int, ranges.Range(2)] = 51,
    sigma: ranges.Positive = 0.75,
    double_q: bool = False,
    **kwargs: Any,
  ):
    """With `double_q` the online network chooses a'."""
    categorical_support()  # Refuses what is no support.
    self.num_atoms = num_atoms
    self._loss, self._sigma, self._double_q = loss, sigma, double_q
    super().__init__(*args, **kwargs)

  @staticmethod
  def q_values(atoms: tf.Tensor) -> tf.Tensor:
    """Returns the means of softmax(atoms) over the support."""
    return networks.categorical_q_values(categorical_support())(atoms)

  def _build_next_policy(self, batch: UpdateBatch) -> tf.Tensor:
    if not self._double_q:
      return super()._build_next_policy(batch)
    weights, features = batch.weights[ONLINE], batch.next_features
    online = self.online_convnet.output(weights, features)
    return tf.one_hot(tf.argmax(online.q_values, axis=1), self.num_actions)

  def _build_bellman_loss(self, batch: UpdateBatch) -> tf.Tensor:
    atoms = tf.linspace(*categorical_support(), self.num_atoms)
    if self._loss == 'c51':
      probabilities = tf.nn.softmax(batch.target_atoms, axis=2)
      returns = losses.bellman_target(
        batch.transition['reward'],
        batch.terminals,
        tf.tile(atoms[None], [tf.shape(batch.actions)[0], 1]),
        self.cumulative_gamma,
      )
      target = project(
        returns, losses.expected_values(probabilities, batch.next_policy), atoms
      )
    else:
      means = self._bellman_target(batch, batch.target_q_values)
      target = gaussian_bins(means, atoms, self._sigma)
    return tf.nn.softmax_cross_entropy_with_logits(
      labels=tf.stop_gradient(target),
      logits=losses.chosen_values(batch.atoms, batch.actions),
    )


@gin.configurable
class FixedReplayBCAgent(offline.OfflineAgent):
  """Behaviour cloning: minimises -log softmax(logits(s))_a of logged actions.

  Acting is greedy in the logits; `mean_q` is that of the logged action. Nothing
  is backed up: only penalties and metrics see a', the target network's greedy
  action.
  """

  def _build_bellman_loss(self, batch: UpdateBatch) -> tf.Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels=batch.actions, logits=batch.q_values
    )
