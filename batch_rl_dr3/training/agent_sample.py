"""What a discrete agent is measured on, drawn once a run."""

from collections.abc import Sequence

from batch_rl_dr3.agents import offline
from batch_rl_dr3.analysis import effective_rank


class AgentSample:
  """An agent on samples of its store, see `metrics.Sample`."""

  def __init__(
    self,
    agent: offline.OfflineAgent,
    seed: int,
    num_batches: int,
    effective_rank_num_states: int,
  ):
    """Draws the samples.

    Args:
      agent: what is measured.
      seed: names the samples.
      num_batches: batches that a row of metrics is measured on.
      effective_rank_num_states: states that an effective rank is of.
    """
    self._agent = agent
    replay = agent.replay
    rows = replay.draw(num_batches * replay.batch_size, seed)
    self._batches = [
      replay.batch_at(rows[i::num_batches]) for i in range(num_batches)
    ]
    self._states = replay.batch_at(
      replay.draw(min(effective_rank_num_states, replay.num_valid), seed)
    )['state']

  @property
  def columns(self) -> Sequence[str]:
    """See `metrics.Sample`."""
    return tuple(self._agent.metrics)

  def measure(self) -> dict[str, float]:
    """See `metrics.Sample`."""
    return self._agent.measure(self._batches)

  def effective_rank(self) -> int:
    """See `metrics.Sample`."""
    return effective_rank.effective_rank(self._agent.features(self._states))
