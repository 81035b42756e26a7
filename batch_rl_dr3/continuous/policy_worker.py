"""What makes a process ready to play checkpoints of continuous runs."""

from batch_rl_dr3 import tensorflow_start
from batch_rl_dr3.continuous import tf_agents_start
from batch_rl_dr3.training import evaluation_pool


def prepare() -> evaluation_pool.CreateEvaluator:
  """Imports TF-Agents quietly, and returns what makes evaluators."""
  tensorflow_start.import_tensorflow()
  tf_agents_start.import_tf_agents()
  from batch_rl_dr3.continuous import configured_evaluation

  return configured_evaluation.create_evaluator
