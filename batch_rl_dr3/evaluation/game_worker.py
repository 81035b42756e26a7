"""What makes a process ready to play checkpoints of discrete games."""

from batch_rl_dr3.config import frameworks
from batch_rl_dr3.evaluation import evaluation_pool


def prepare() -> evaluation_pool.CreateEvaluator:
  """Imports TensorFlow quietly, and returns what makes evaluators."""
  frameworks.import_tensorflow()
  from batch_rl_dr3.evaluation import configured_evaluation

  return configured_evaluation.create_evaluator
