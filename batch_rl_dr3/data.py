"""Looks into logged replay: what it holds, and what is wrong with it."""

from collections.abc import Iterator
import typing

from absl import flags

from batch_rl_dr3 import cli, errors

if typing.TYPE_CHECKING:
  from batch_rl_dr3.replay import inspection

_USAGE = """\
Looks into logged replay in the DQN Replay format.

  python -m batch_rl_dr3.data info --replay_dir=DATA/Pong/1
  python -m batch_rl_dr3.data doctor --replay_dir=DATA/Pong/1 --num_actions=6

  info      rows, episodes, returns and sampleable share of every file
  doctor    the traps of the format, and damage that no checksum shows: rewards
            that are not clipped, actions outside the game's, frames that are
            constant or not in time order, files that repeat each other; and
            what a reader has to allow for: episodes across files, time limits
            logged as terminals, padding, a cursor in mid-file

Exit codes: 0 nothing wrong, 64 usage, 65 the log is missing, damaged, or has
faults.
"""

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_string(
    'replay_dir',
    None,
    'Logged data of one run of one game: the folder of the .gz files, or the '
    'folder above its replay_logs.',
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
    'Actions of the game, which doctor holds the log against.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'max_agent_steps_per_episode',
    27_000,
    'The time limit that the log was played under.',
    lower_bound=1,
  )


def _summaries() -> 'Iterator[inspection.FileSummary]':
  # Imported here so that --help and usage errors are instant.
  from batch_rl_dr3.replay import checkpoint_format, inspection, sources

  if not FLAGS.replay_dir:
    raise errors.UsageError('--replay_dir is needed (see --help).')
  folder = checkpoint_format.find_replay_logs(FLAGS.replay_dir)
  return inspection.summarise(sources.FolderSource(folder), FLAGS.stack_size)


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
      f'{FLAGS.replay_dir} is not fit to train on: {num_faults} faults.'
    )
  print('No faults.')


if __name__ == '__main__':
  define_flags()
  cli.run_subcommand({'info': info, 'doctor': doctor}, _USAGE)
