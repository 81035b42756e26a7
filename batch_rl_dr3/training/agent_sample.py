"""What a discrete agent is measured on, drawn once a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.agents import offline
from batch_rl_dr3.analysis import feature_measures

_HELD_OUT_RANK = f'{offline.HELD_OUT}effective_rank'
# Keeps the held-out sample's draw apart from that of the training rows.
_HELD_OUT_STREAM = 1

_Batch = Mapping[str, npt.NDArray[Any]]


class AgentSample:
  """An agent on samples of its store, see `metrics.Sample`.

  Of held-out transitions, where the agent has them, there is a second sample
  of the same size: columns that begin with `held_out_`.
  """

  def __init__(
    self,
    agent: offline.OfflineAgent,
    seed: int,
    num_batches: int,
    effective_rank_num_states: int,
  ):
    """Draws the batches that rows are measured on, and the states of ranks."""
    self._agent = agent
    replay = agent.replay
    rows = replay.draw(num_batches * replay.batch_size, seed)
    self._batches: list[_Batch] = [
      replay.batch_at(rows[i::num_batches]) for i in range(num_batches)
    ]
    self._states = replay.batch_at(
      replay.draw(min(effective_rank_num_states, replay.num_valid), seed)
    )['state']
    self._held_out: list[_Batch] = []
    if agent.held_out_store is not None:
      rng = np.random.default_rng([seed, _HELD_OUT_STREAM])
      self._held_out = [
        self._draw_held_out(replay.batch_size, rng) for _ in range(num_batches)
      ]
      self._held_out_states = self._draw_held_out(
        effective_rank_num_states, rng
      )['state']
      # An agent that learns from held-out rows is measured on these.
      self._batches = [
        {**batch, **{offline.HELD_OUT + n: a for n, a in held_out.items()}}
        for batch, held_out in zip(self._batches, self._held_out, strict=True)
      ]

  def _draw_held_out(self, count: int, rng: np.random.Generator) -> _Batch:
    store, agent = self._agent.held_out_store, self._agent
    assert store is not None
    valid = store.valid_indices(agent.update_horizon)
    rows = rng.choice(valid, count, replace=count > len(valid))
    batch = store.gather(np.sort(rows), agent.update_horizon, agent.gamma)
    return dict(zip(agent.replay.transition, batch, strict=False))

  @property
  def columns(self) -> Sequence[str]:  # noqa: D102
    held_out = self._held_out_metrics if self._held_out else ()
    return (
      *self._agent.metric_columns,
      *(offline.HELD_OUT + name for name in held_out),
    )

  @property
  def _held_out_metrics(self) -> Sequence[str]:
    # Single transitions have no return to regress on.
    names = ('feature_dot_product', 'mean_q')
    return names if self._agent.is_monte_carlo else ('loss_bellman', *names)

  def measure(self) -> dict[str, float]:  # noqa: D102
    measured = self._agent.measure(self._batches)
    if self._held_out:
      held_out = self._agent.measure(self._held_out, self._held_out_metrics)
      measured |= {offline.HELD_OUT + name: held_out[name] for name in held_out}
    return measured

  @property
  def feature_columns(self) -> Sequence[str]:  # noqa: D102
    names = ('effective_rank', 'dead_fraction', 'dormant_fraction')
    return (*names, *([_HELD_OUT_RANK] if self._held_out else ()))

  def measure_features(self) -> dict[str, float]:  # noqa: D102
    features = self._agent.features(self._states)
    measured: dict[str, float] = {
      'effective_rank': feature_measures.effective_rank(features),
      'dead_fraction': feature_measures.dormant_fraction(features, tau=0.0),
      'dormant_fraction': feature_measures.dormant_fraction(features),
    }
    if self._held_out:
      measured[_HELD_OUT_RANK] = feature_measures.effective_rank(
        self._agent.features(self._held_out_states)
      )
    return measured
