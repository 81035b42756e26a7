"""Penalties: what an agent's gin list adds to its Bellman loss.

  FixedReplayREMAgent.penalties = [@FeatureDotPenalty()]
  FeatureDotPenalty.coefficient = 0.03

The agent minimises mean(Bellman loss) + sum of coefficient * penalty(batch).
A penalty whose coefficient is 0 is measured but is no part of the training
graph, so that it cannot change training by a single bit.
"""

from batch_rl_dr3.agents.adaptive import AdaptiveFeatureDotPenalty
from batch_rl_dr3.agents.compared import (
  ConservativePenalty,
  EffectiveRankPenalty,
  FeatureNormPenalty,
)
from batch_rl_dr3.agents.feature_dot import FeatureDotPenalty
from batch_rl_dr3.agents.label_noise import LabelNoiseFeatureDotPenalty
from batch_rl_dr3.agents.penalty import Penalty, State, UpdateBatch

__all__ = [
  'AdaptiveFeatureDotPenalty',
  'ConservativePenalty',
  'EffectiveRankPenalty',
  'FeatureDotPenalty',
  'FeatureNormPenalty',
  'LabelNoiseFeatureDotPenalty',
  'Penalty',
  'State',
  'UpdateBatch',
]
