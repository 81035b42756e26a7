"""Offline agents that learn by classification: C51, HL-Gauss and cloning.

FixedReplayCategoricalAgent learns a distribution over returns. Q(s, a) is the
mean of softmax(logits) over K evenly spaced returns, the atoms. `loss` says
what the target distribution is:

  c51       the distribution of r + gamma Z'(s', a'), projected onto the atoms
            (Bellemare et al. 2017, arXiv:1707.06887).
  hl_gauss  a Gaussian around r + gamma Q'(s', a'), cut into one bin per atom
            (Imani and White 2018; Farebrother et al. 2024, arXiv:2403.03950).

Deviation: HL-Gauss's bins are centred on C51's atoms, and so reach half a bin
beyond them, for both losses to share one reading of the logits.
"""

from typing import Annotated, Any, Literal

import gin
import tensorflow as tf

from batch_rl_dr3.agents import losses, networks, offline
from batch_rl_dr3.agents.accelerator import ONLINE
from batch_rl_dr3.agents.penalties import UpdateBatch
from batch_rl_dr3.config import ranges


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
    """Creates the agent; by `double_q` the online network chooses a'."""
    if loss not in ('c51', 'hl_gauss'):
      raise ValueError(f"loss must be 'c51' or 'hl_gauss', got {loss!r}.")
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
    sides = batch.transition['reward'], batch.terminals
    if self._loss == 'c51':
      probabilities = tf.nn.softmax(batch.target_atoms, axis=2)
      returns = tf.tile(atoms[None], [tf.shape(batch.actions)[0], 1])
      target = project(
        losses.bellman_target(*sides, returns, self.cumulative_gamma),
        losses.expected_values(probabilities, batch.next_policy),
        atoms,
      )
    else:
      next_q = losses.expected_values(batch.target_q_values, batch.next_policy)
      means = losses.bellman_target(*sides, next_q, self.cumulative_gamma)
      target = gaussian_bins(means, atoms, self._sigma)
    return tf.nn.softmax_cross_entropy_with_logits(
      labels=tf.stop_gradient(target),
      logits=losses.chosen_values(batch.atoms, batch.actions),
    )


@gin.configurable
class FixedReplayBCAgent(offline.OfflineAgent):
  """Behaviour cloning: minimises -log softmax(logits(s))_a of logged actions.

  The baseline of a table: what is learnt without rewards. The network's outputs
  are logits, and acting is greedy in them; `mean_q` is the mean logit of the
  logged action. Nothing is backed up: a' is the target network's greedy action,
  which only penalties and metrics see.
  """

  def _build_bellman_loss(self, batch: UpdateBatch) -> tf.Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels=batch.actions, logits=batch.q_values
    )
