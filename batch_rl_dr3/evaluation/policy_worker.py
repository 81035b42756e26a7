"""What makes a process ready to play checkpoints of continuous runs."""

from batch_rl_dr3.config import frameworks
from batch_rl_dr3.evaluation import evaluation_pool


def prepare() -> evaluation_pool.CreateEvaluator:
  """Imports TF-Agents quietly, and returns what makes evaluators."""
  frameworks.import_tensorflow()
  frameworks.import_tf_agents()
  from batch_rl_dr3.evaluation import (
    configured_control_evaluation as configured_evaluation,
  )

  return configured_evaluation.create_evaluator
