r"""Measures the features and Q-values of a checkpoint on logged transitions.

  python -m batch_rl_dr3.diagnose --checkpoint=RUNS/pong/rem/seed0 \
    --replay_dir=DATA/Pong/1 --output_dir=runs/diagnosis
  python -m batch_rl_dr3.diagnose --checkpoint=model.pt --num_actions=6 \
    --replay_dir=DATA/Pong/1 --output_dir=runs/diagnosis

The checkpoint is a run directory (its newest), a TensorFlow checkpoint of
Dopamine or batch_rl (the path without .index), a ckpt.N of Dopamine's JAX
agents, a d3rlpy model or a state dict of torch.save, or safetensors. Nothing of
a file is executed. Of one's own network, --network=FILE.py:FUNCTION names a
function of states, uint8 [n, height, width, stack], that returns Q-values
[n, A] and features [n, D]; that file is executed.

For a run the page has two columns: the transitions that it learnt from, and as
many that it never saw, with the returns that the log has from each on. In
--output_dir are index.html, measures.csv and, where the layers are known,
layers.csv: how much each layer's weights matter. With --compare each number
stands beside its percentile among the kept runs at the same gradient step.

Exit codes: 0 finished, 64 usage, 65 data, 73 cannot write, 75 stopped, 78
configuration.
"""

from collections.abc import Iterator
import functools
import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags

from batch_rl_dr3.config import cli, errors, flag_tables, frameworks, own_code

if TYPE_CHECKING:
  from batch_rl_dr3.training import policies

FLAGS = flags.FLAGS

_SEED = 0


def define_flags() -> None:
  """Defines the flags of the command."""
  cli.define_shared('code', 'cache')
  flag_tables.define('diagnose')


def _policy() -> 'policies.Policy':
  from batch_rl_dr3.training import policies

  if FLAGS.network is None:
    return policies.load_policy(
      FLAGS.checkpoint, FLAGS.num_actions, FLAGS.layers, cli.find_imports()
    )
  path, _, name = FLAGS.network.rpartition(':')
  if not path:
    raise errors.UsageError('--network is FILE.py:FUNCTION (see --help).')
  codes = own_code.find([path])
  own_code.load(codes)
  function = getattr(sys.modules[codes[0].module], name, None)
  if not callable(function):
    raise errors.ConfigError(f'{path} has no function {name}.')
  return policies.Policy(function)


def _samples(
  policy: 'policies.Policy',
) -> Iterator[tuple[str, 'policies.LoggedData']]:
  """Yields the data that are measured on, each with its name."""
  from batch_rl_dr3.replay.store.subset import Subset
  from batch_rl_dr3.training import policies

  stack_size = FLAGS.stack_size
  if policy.lanes is not None:
    stack_size = policy.lanes.game.stack_size
  open_part = functools.partial(
    policies.open_store,
    FLAGS.replay_dir,
    cache_dir=FLAGS.cache_dir,
    stack_size=stack_size,
  )
  if policy.run is None:
    yield 'logged', open_part(Subset())
    return
  subset, held_out = policies.subset_of_run(policy.run, FLAGS.num_transitions)
  yield 'learnt from', open_part(subset)
  if held_out is not None:
    yield 'held out', open_part(held_out)


def main() -> None:
  """Runs the command that the flags ask for."""
  cli.need('replay_dir', 'output_dir')
  if (FLAGS.checkpoint is None) == (FLAGS.network is None):
    raise errors.UsageError('give --checkpoint or --network (see --help).')
  frameworks.import_tensorflow(announce=True)
  from batch_rl_dr3.analysis import diagnosis
  from batch_rl_dr3.studies import diagnosis_page
  from batch_rl_dr3.training import policies

  policy = _policy()
  columns: dict[str, diagnosis.Diagnosis] = {}
  layers = None
  for name, data in _samples(policy):
    batch = data.sample(FLAGS.num_transitions, _SEED)
    columns[name] = diagnosis.diagnose(
      policies.transitions_of(policy, data, batch, FLAGS.gamma)
    )
    if layers is None and policy.network is not None:
      layers = policies.sensitivity(policy, batch.states, _SEED)
  diagnosis_page.write(
    pathlib.Path(FLAGS.output_dir),
    FLAGS.checkpoint or FLAGS.network,
    columns,
    layers,
    policy.gradient_steps,
    FLAGS.compare,
  )
  first = next(iter(columns.values())).measures
  for name in ('feature_dot_product', 'divergence_ratio', 'effective_rank'):
    print(f'{name} {first[name]:.6g}')
  print(f'{FLAGS.output_dir}/index.html')


if __name__ == '__main__':
  define_flags()
  cli.run(main, __doc__)
