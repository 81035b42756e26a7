"""Writes a checkpoint's policy in a format that other programs read."""

from collections.abc import Sequence
import math
import pathlib
from typing import Any

from absl import flags

from batch_rl_dr3.config import (
  cli,
  errors,
  flag_tables,
  frameworks,
  own_code,
  templates,
)
from batch_rl_dr3.evaluation import targets
from batch_rl_dr3.runs import atomic, run_directory, run_tables

_USAGE = """\
Writes the policy of a run for other programs, with a model card.

  python -m batch_rl_dr3.export --checkpoint=RUNS/pong/rem/seed0 \\
    --format=onnx --output_dir=exported/pong

The checkpoint is a run directory (its newest) or the path of a checkpoint in
one, without .index. In --output_dir are README.md, the card, and

  savedmodel   saved_model/, for TensorFlow
  onnx         model.onnx, for onnxruntime and others; it is written by tf2onnx:
               pip install "batch-rl-dr3[export]"
  safetensors  model.safetensors, the weights in torch's order of axes

The first two are functions of states, uint8 [n, *observation, stack], that give
q_values [n, A], features [n, D] and the greedy action [n]; of continuous
control they give the mean action [n, d]. `evaluate --policy` plays them, and
`diagnose --checkpoint` reads safetensors.

Exit codes: 0 finished, 64 usage, 65 data, 73 cannot write, 78 configuration.
"""

FLAGS = flags.FLAGS

CARD = 'README.md'
SAVED_MODEL, ONNX, SAFETENSORS = 'savedmodel', 'onnx', 'safetensors'
FILES = {
  SAVED_MODEL: 'saved_model',
  ONNX: 'model.onnx',
  SAFETENSORS: 'model.safetensors',
}


def define_flags() -> None:
  """Defines the flags of the command."""
  cli.define_shared('code')
  flag_tables.define('export', format={'enum_values': list(FILES)})


def export(
  checkpoint: str,
  file_format: str,
  output_dir: str,
  imports: Sequence[own_code.OwnCode] = (),
) -> pathlib.Path:
  """Writes a policy and its card; returns the path of the policy.

  Raises:
    ConfigError: if the format cannot hold such a network, or what writes it is
      not installed.
    DataError: if there is no such checkpoint of a run.
  """
  found = targets.of_checkpoint(pathlib.Path(checkpoint), imports)
  if found is None:
    raise errors.DataError(
      f'{checkpoint} is no run directory and no checkpoint of one.'
    )
  target, prefix, gradient_steps = found
  path = atomic.make_directory(output_dir) / FILES[file_format]
  if file_format == SAFETENSORS:
    shapes = _write_layers(target, checkpoint, path, imports)
  else:
    shapes = _write_graph(target, prefix, file_format, path)
  card = _card(
    **shapes,
    format=file_format,
    file=path.name,
    gradient_steps=gradient_steps,
    run=target.provenance,
    config=target.config.strip(),
    scores=_scores(target, gradient_steps),
  )
  atomic.write_text(path.with_name(CARD), card)
  return path


def _write_graph(
  target: targets.Target, prefix: str, file_format: str, path: pathlib.Path
) -> dict[str, Any]:
  """Writes a SavedModel or ONNX; returns what goes in and comes out."""
  own_code.load(target.imports)
  evaluator: Any
  if target.is_continuous:
    frameworks.import_tf_agents()
    from batch_rl_dr3.training import control

    evaluator = control.create_evaluator(target.setup())
  else:
    from batch_rl_dr3.training import discrete

    evaluator = discrete.create_evaluator(target.setup())
  from batch_rl_dr3.evaluation import exported

  graph = evaluator.freeze(prefix)
  evaluator.close()
  write = {SAVED_MODEL: exported.write_saved_model, ONNX: exported.write_onnx}
  write[file_format](graph, path)
  return {'state': graph.state, 'results': graph.results}


def _write_layers(
  target: targets.Target,
  checkpoint: str,
  path: pathlib.Path,
  imports: Sequence[own_code.OwnCode],
) -> dict[str, Any]:
  if target.is_continuous:
    raise errors.ConfigError(
      'safetensors are written of value networks alone: give --format=onnx or '
      'savedmodel.'
    )
  from batch_rl_dr3.evaluation import foreign_networks
  from batch_rl_dr3.training import policies

  policy = policies.load_policy(checkpoint, imports=imports)
  if policy.network is None or policy.lanes is None:
    raise errors.ConfigError(
      'the network is no chain of convolutions and dense layers whose outputs '
      'are averaged, which is what the weights alone can say: give '
      '--format=onnx or savedmodel.'
    )
  game = policy.lanes.game
  height, width, *channels = (*game.observation_shape, game.stack_size)
  shape = (height, width, math.prod(channels))
  foreign_networks.write(path, policy.network, shape)
  return {'state': shape, 'results': {}}


def _scores(
  target: targets.Target, gradient_steps: int | None
) -> list[dict[str, Any]]:
  """Returns mean and 95% interval over episodes, on each scale known."""
  import numpy as np

  from batch_rl_dr3.reporting import reference, statistics

  rows = run_tables.read_rows(target.output_dir / run_directory.SCORES)
  returns = np.array(
    [
      float(row[run_tables.RETURN])
      for row in rows
      if row[run_tables.STEPS] == str(gradient_steps)
    ]
  )
  if not len(returns):
    return []
  scales = {'return': returns}
  game = target.provenance['game']
  for name in ('dqn', 'human'):
    table = reference.Normalisation(name)
    try:
      scales[table.label] = table(returns[:, np.newaxis], (game,))[:, 0]
    except (KeyError, errors.UsageError):
      continue  # The game is not on this scale.
  if scale := target.provenance['protocol'].get('scale'):
    low, high = scale
    scales['D4RL-normalised'] = (returns - low) / (high - low)
  return [
    {
      'scale': name,
      'mean': float(values.mean()),
      'interval': statistics.mean_interval(values),
      'num_episodes': len(values),
    }
    for name, values in scales.items()
  ]


def _card(**facts: Any) -> str:
  texts = templates.environment(
    'batch_rl_dr3.reporting', keep_trailing_newline=True
  )
  return texts.get_template('model_card.md').render(facts)


def main() -> None:
  """Runs the command that the flags ask for."""
  cli.need('checkpoint', 'output_dir')
  imports = cli.find_imports()
  frameworks.import_tensorflow(announce=True)
  print(export(FLAGS.checkpoint, FLAGS.format, FLAGS.output_dir, imports))


if __name__ == '__main__':
  define_flags()
  cli.run(main, _USAGE)
