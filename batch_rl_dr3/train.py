"""Trains an offline agent on logged replay and evaluates it in its game."""

from collections.abc import Sequence
import os
from typing import Any

from absl import flags

from batch_rl_dr3.config import cli, errors, flag_tables, frameworks, own_code

_USAGE = """\
Trains an offline agent on logged replay and evaluates it in its game.

  python -m batch_rl_dr3.train \\
    --gin_files=gin_configs/atari/rem_dr3_1pct.gin \\
    --gin_bindings="atari_lib.create_atari_environment.game_name='Pong'" \\
    --replay_dir=DATA/Pong/1 --base_dir=RUNS/Pong/rem_dr3/seed0

The gin file says what is trained (method, part of the data, protocol), the
flags where the data are and where the run goes. --base_dir then holds
checkpoints/, config.gin, provenance.json, metrics.csv (one row every log
period), scores.csv (one row per evaluation episode) and TensorBoard's events.

A run that was stopped goes on when the same command is given again, and one
that is finished says so. SIGTERM and Ctrl-C write a checkpoint first.

Exit codes: 0 finished, 64 usage, 65 data, 70 diverged, 73 cannot write,
75 stopped and can go on, or another worker is at work there, 78 configuration.
"""

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of the command."""
  cli.define_shared('gin', 'code', 'cache')
  flag_tables.define('train')


def train(
  base_dir: str,
  replay_dir: str | int,
  cache_dir: str,
  gin_files: Sequence[str],
  gin_bindings: Sequence[str] = (),
  seed: int = 0,
  overwrite: bool = False,
  imports: Sequence[own_code.OwnCode] = (),
) -> None:
  """Trains one run to its end, from wherever it was left; see the flags.

  Raises:
    BatchRLError: see the exit codes of the command.
  """
  # Imported here so that --help and usage errors need no TensorFlow; each
  # registers with gin what a file can name.
  runner: Any
  if frameworks.is_continuous(cli.gin_text(gin_files, gin_bindings, imports)):
    if isinstance(replay_dir, int):
      raise errors.UsageError('--run is for Atari; give --replay_dir.')
    frameworks.import_tf_agents()
    from batch_rl_dr3.training import control

    runner = control.ContinuousRunner
  else:
    from batch_rl_dr3.training import discrete

    runner = discrete.FixedReplayRunner
  cli.load_gin(gin_files, gin_bindings, imports)
  with cli.gin_errors():
    run = runner(base_dir, replay_dir, cache_dir, seed, overwrite)
  run.run()


def main() -> None:
  """Runs the command that the flags ask for."""
  cli.need('base_dir')
  if (not FLAGS.replay_dir) == (FLAGS.run is None):
    raise errors.UsageError('give one of --replay_dir and --run (see --help).')
  cli.need(
    'gin_files', why=': it says what to train, such as atari/rem_dr3_1pct.gin'
  )
  bindings = list(FLAGS.gin_bindings)
  if FLAGS.init_checkpoint:
    path = os.path.abspath(FLAGS.init_checkpoint)
    bindings.append(f'OfflineAgent.init_checkpoint={path!r}')
  imports = cli.find_imports()
  frameworks.import_tensorflow(announce=True)
  train(
    FLAGS.base_dir,
    FLAGS.replay_dir or FLAGS.run,
    FLAGS.cache_dir,
    FLAGS.gin_files,
    bindings,
    FLAGS.seed,
    FLAGS.overwrite,
    imports,
  )


if __name__ == '__main__':
  define_flags()
  cli.run(main, _USAGE)
