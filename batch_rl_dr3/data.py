"""Looks into logged replay, and writes it in other forms."""

from collections.abc import Iterator
import os
import pathlib
import typing

from absl import flags

from batch_rl_dr3 import cli, errors

if typing.TYPE_CHECKING:
  from batch_rl_dr3.replay import inspection
  from batch_rl_dr3.replay.source import Source

_USAGE = """\
Looks into logged replay in the DQN Replay format, or writes it anew.

  python -m batch_rl_dr3.data info --replay_dir=DATA/Pong/1
  python -m batch_rl_dr3.data doctor --replay_dir=DATA/Pong/1 --num_actions=6

  python -m batch_rl_dr3.data convert --replay_dir=DATA/Pong/1 \\
    --output_dir=NEW/Pong/1 --rows_per_file=100000
  python -m batch_rl_dr3.data convert --game=Pong --run=1 \\
    --output_dir=DATA/Pong/1
  python -m batch_rl_dr3.data convert --replay_dir=DATA/Pong/1 \\
    --minari_id=atari/pong/dqn-replay-v0 --num_actions=6

  info      rows, episodes, returns and sampleable share of every file
  doctor    the traps of the format, and damage that no checksum shows: rewards
            that are not clipped, actions outside the game's, frames that are
            constant or not in time order, files that repeat each other; and
            what a reader has to allow for: episodes across files, time limits
            logged as terminals, padding, a cursor in mid-file
  convert   writes the log anew: a local copy of one in the cloud, files of
            another length, or a Minari data set (frames without loss, not
            stacked) for other libraries
  verify    hashes every file of a local store (--store) again

Exit codes: 0 nothing wrong, 64 usage, 65 the log is missing, damaged, or has
faults.
"""

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_string(
    'replay_dir',
    None,
    'Logged data of one run of one game: the folder of the .gz files, the '
    'folder above its replay_logs, or a URL (gs://, https://, file://).',
  )
  flags.DEFINE_string(
    'game',
    None,
    'In place of --replay_dir: a game of the DQN Replay data set, such as '
    'Pong, looked for in its public bucket and then in RL Unplugged.',
  )
  flags.DEFINE_integer(
    'run', 1, 'With --game: the logged run.', lower_bound=1, upper_bound=5
  )
  flags.DEFINE_integer(
    'stack_size',
    4,
    'Frames in a state: 4 for Atari, 1 for MinAtar. It says how many rows of '
    'padding begin an episode.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'num_actions',
    None,
    'Actions of the game: doctor holds the log against them, and Minari wants '
    'to know.',
    lower_bound=1,
  )
  flags.DEFINE_string(
    'store', None, 'verify: the folder of a store, in the cache of train.'
  )
  flags.DEFINE_string(
    'output_dir', None, 'convert: where the new replay_logs go.'
  )
  flags.DEFINE_integer(
    'rows_per_file',
    1_000_000,
    'convert: rows of each new file.',
    lower_bound=10,
  )
  flags.DEFINE_string(
    'minari_id',
    None,
    'convert: the Minari data set to write, where MINARI_DATASETS_PATH says.',
  )
  flags.DEFINE_integer(
    'max_agent_steps_per_episode',
    27_000,
    'The time limit that the log was played under.',
    lower_bound=1,
  )


def _source() -> 'Source':
  if (FLAGS.replay_dir is None) == (FLAGS.game is None):
    raise errors.UsageError('give one of --replay_dir and --game (see --help).')
  # Imported here so that --help and usage errors are instant.
  from batch_rl_dr3.replay import source_chain

  if FLAGS.game is not None:
    return source_chain.open_run(FLAGS.game, FLAGS.run)
  return source_chain.make_source(FLAGS.replay_dir)


def _summaries() -> 'Iterator[inspection.FileSummary]':
  from batch_rl_dr3.replay import inspection

  return inspection.summarise(_source(), FLAGS.stack_size)


def info() -> None:
  """Prints a line a file."""
  from batch_rl_dr3.replay import inspection

  for line in inspection.table(_summaries()):
    print(line, flush=True)


def doctor() -> None:
  """Prints what is wrong with a log, and what to allow for.

  Raises:
    DataError: if anything is wrong.
  """
  from batch_rl_dr3.replay import diagnosis

  findings = diagnosis.diagnose(
    list(_summaries()), FLAGS.num_actions, FLAGS.max_agent_steps_per_episode
  )
  for finding in findings:
    print(f'{"FAULT" if finding.is_fault else "note "}  {finding.message}')
  num_faults = sum(finding.is_fault for finding in findings)
  if num_faults:
    raise errors.DataError(
      f'the log is not fit to train on: {num_faults} faults.'
    )
  print('No faults.')


def convert() -> None:
  """Writes the log anew."""
  if (FLAGS.output_dir is None) == (FLAGS.minari_id is None):
    raise errors.UsageError('give one of --output_dir and --minari_id.')
  if FLAGS.minari_id is not None and FLAGS.num_actions is None:
    raise errors.UsageError('--minari_id needs --num_actions.')
  from batch_rl_dr3.replay import conversion

  source = _source()
  if FLAGS.output_dir is not None:
    target = os.path.join(FLAGS.output_dir, 'replay_logs')
    num_episodes = conversion.to_log(
      source, target, FLAGS.stack_size, FLAGS.rows_per_file
    )
  else:
    target = FLAGS.minari_id
    num_episodes = conversion.to_minari(
      source,
      target,
      FLAGS.stack_size,
      FLAGS.num_actions,
      f'Logged replay in the DQN Replay format, from {source.name}.',
    )
  print(f'{target}: {num_episodes} episodes.')


def verify() -> None:
  """Hashes every file of a store again.

  Raises:
    DataError: if one is not what the manifest says.
  """
  if FLAGS.store is None:
    raise errors.UsageError('--store is needed (see --help).')
  from batch_rl_dr3.replay import store_files

  manifest = store_files.verify(pathlib.Path(FLAGS.store), full=True)
  print(f'{FLAGS.store} is whole: data hash {manifest["data_hash"]}.')


if __name__ == '__main__':
  define_flags()
  cli.run_subcommand(
    {'info': info, 'doctor': doctor, 'convert': convert, 'verify': verify},
    _USAGE,
  )
