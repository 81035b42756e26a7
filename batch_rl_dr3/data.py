"""Fetches logged replay, looks into it, and writes it in other forms."""

from collections.abc import Callable
import functools
import os
import pathlib
import shutil

from absl import flags
import gin

from batch_rl_dr3.config import cli, errors, flag_tables, progress
from batch_rl_dr3.replay import conversion, inspection
from batch_rl_dr3.replay.log import checkpoint_format, rlu, source_chain
from batch_rl_dr3.replay.log.sources import Source
from batch_rl_dr3.replay.store import read, store
from batch_rl_dr3.replay.store.subset import RULES, Subset

_USAGE = """\
Fetches logged replay in the DQN Replay format, looks into it, writes it anew.

  python -m batch_rl_dr3.data plan --game=Pong --run=1 --rule=prefix \\
    --fraction=0.01
  python -m batch_rl_dr3.data fetch --game=Pong --run=1 --rule=prefix \\
    --fraction=0.01
  python -m batch_rl_dr3.data info --replay_dir=DATA/Pong/1
  python -m batch_rl_dr3.data doctor --replay_dir=DATA/Pong/1 --num_actions=6

  python -m batch_rl_dr3.data convert --replay_dir=DATA/Pong/1 \\
    --output_dir=NEW/Pong/1 --rows_per_file=100000
  python -m batch_rl_dr3.data convert --game=Pong --run=1 \\
    --output_dir=DATA/Pong/1
  python -m batch_rl_dr3.data convert --replay_dir=DATA/Pong/1 \\
    --minari_id=atari/pong/dqn-replay-v0 --num_actions=6
  python -m batch_rl_dr3.data convert --minari=atari/pong/expert-v0 \\
    --output_dir=DATA/Pong/1

  plan      what fetch would cost: download, disk, memory and time
  fetch     makes the local store of a part of a log, and says where it is;
            train --replay_dir=STORE then needs no network. A fetch that was
            stopped or killed goes on when it is given again
  info      rows, episodes, returns, sampleable share and size of every file,
            and which files are missing
  doctor    reads all of a log for the traps of the format, and damage that no
            checksum shows: rewards that are not clipped, actions outside the
            game's, frames that are constant or not in time order, episodes
            without their padding, files that repeat each other; and what a
            reader has to allow for: episodes across files, time limits logged
            as terminals, padding, a stale last row, a cursor in mid-file
  convert   writes the log anew: a local copy of one in the cloud, files of
            another length, or a Minari data set (frames without loss, not
            stacked) for other libraries; and a Minari data set of frames and
            discrete actions, by --minari, as a log; or COG's .npy files of
            trajectories, by --cog (the prior data first), as plain arrays:
            nothing of these pickles is executed
  verify    hashes every file of a local store (--store) again

info, doctor and convert read a store too, as --replay_dir=STORE. Where sources
are looked for, and how they are read, are gin bindings: default_locations,
FsspecSource, RluSource, Retry, open_store.codec, open_store.max_resident_bytes.

Exit codes: 0 nothing wrong, 64 usage, 65 the log is missing, damaged, or has
faults, 73 cannot write, 75 stopped and can go on, 78 configuration.
"""

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of the command."""
  cli.define_shared('gin', 'cache')
  flag_tables.define('data', rule={'enum_values': RULES})


def _source() -> Source:
  if (FLAGS.replay_dir is None) == (FLAGS.game is None):
    raise errors.UsageError('give one of --replay_dir and --game (see --help).')
  if FLAGS.game is not None:
    source_chain.rom_path(FLAGS.game)  # Refuses what is no game.
    source = source_chain.open_run(FLAGS.game, FLAGS.run)
  else:
    source = source_chain.make_source(FLAGS.replay_dir)
  if isinstance(source, rlu.RluSource):  # TFRecord is read by TensorFlow.
    from batch_rl_dr3.config import frameworks

    frameworks.import_tensorflow(announce=True)
  return source


def _collection_number(field: str) -> int | None:
  """Returns a number that collection.json says of the game, if there is one."""
  if FLAGS.replay_dir is None:
    return None
  collection = checkpoint_format.read_collection(FLAGS.replay_dir)
  if collection is None:
    return None
  game = collection['game']
  if isinstance(game, str) or field not in game:
    raise errors.DataError(
      f'{checkpoint_format.COLLECTION} of {FLAGS.replay_dir} does not state '
      f'game.{field}. Give --{field}, or collect the log again.'
    )
  return int(game[field])


def _stack_size() -> int:
  return FLAGS.stack_size or _collection_number('stack_size') or 4


def _num_actions() -> int | None:
  if FLAGS.num_actions is None and FLAGS.game is not None:
    return source_chain.num_actions(FLAGS.game)
  return FLAGS.num_actions or _collection_number('num_actions')


def _subset() -> Subset:
  """Returns the subset that the flags name, on top of what gin binds."""
  flag_names = {'rule': 'rule', 'fraction': 'fraction', 'seed': 'subset_seed'}
  given = {field: FLAGS[name].value for field, name in flag_names.items()}
  return Subset(**{k: value for k, value in given.items() if value is not None})


def plan() -> None:
  """Prints what fetch would cost."""
  try:
    max_resident_bytes = gin.query_parameter('open_store.max_resident_bytes')
  except ValueError:  # Not bound.
    max_resident_bytes = read.MAX_RESIDENT_BYTES
  source = _source()
  estimate = inspection.estimate(source, _subset(), _stack_size())
  folder = pathlib.Path(FLAGS.cache_dir)
  while not folder.exists():
    folder = folder.parent
  print(f'{"source":<10} {source.name}')
  for line in inspection.describe(
    estimate, max_resident_bytes, shutil.disk_usage(folder).free
  ):
    print(line)


def fetch() -> None:
  """Makes the store of a part of a log, or finds it made."""
  opened = store.open_store(
    _source(),
    FLAGS.cache_dir,
    _subset(),
    None,
    _num_actions(),
    _stack_size(),
    max_resident_bytes=0,
  )
  print(
    f'{opened.folder}: {opened.num_rows:,} rows, '
    f'{len(opened.valid_indices()):,} of which begin a transition; data hash '
    f'{opened.data_hash}.\n'
    f'Train on it with --replay_dir={opened.folder}'
  )


def info() -> None:
  """Prints a line a file, and what is missing."""
  source = _source()
  for line in inspection.table(inspection.summarise(source, _stack_size())):
    print(line, flush=True)
  missing = source.missing_suffixes()
  if FLAGS.game is not None and not isinstance(source, rlu.RluSource):
    for note in source_chain.missing_notes(
      FLAGS.game, FLAGS.run, source.suffixes()
    ):
      print(note)
  elif missing:
    print(f'missing: {checkpoint_format.format_suffixes(missing)}')


def doctor() -> None:
  """Prints what is wrong with a log, and what to allow for."""
  source = _source()
  num_rows = sum(source.segment(s).num_rows for s in source.suffixes())
  with progress.bar(num_rows, 'reading', 'row', delay=2) as bar:
    summaries = list(
      inspection.summarise(source, _stack_size(), True, bar.update)
    )
  faults = list(inspection.faults(summaries, _num_actions()))
  for fault in faults:
    print(f'FAULT  {fault}')
  limit = FLAGS.max_agent_steps_per_episode
  for trait in inspection.traits(summaries, limit):
    print(f'note   {trait}')
  if faults:
    raise errors.DataError(
      f'the log is not fit to train on: {len(faults)} faults.'
    )
  print('No faults.')


def convert() -> None:
  """Writes the log anew."""
  if (FLAGS.output_dir is None) == (FLAGS.minari_id is None):
    raise errors.UsageError('give one of --output_dir and --minari_id.')
  other = 'minari' if FLAGS.minari is not None else 'cog' if FLAGS.cog else ''
  if other and (FLAGS.output_dir is None or FLAGS.replay_dir or FLAGS.game):
    raise errors.UsageError(
      f'--{other} is read in place of --replay_dir and --game, and needs '
      '--output_dir.'
    )
  if other == 'cog':
    with gin.unlock_config():  # It registers more than is bound here.
      from batch_rl_dr3.control import cog

    manifest = cog.convert(FLAGS.cog, FLAGS.output_dir)
    print(
      f'{FLAGS.output_dir}: {manifest["num_trajectories"]} trajectories, '
      f'{manifest["num_prior_trajectories"]} of them prior data, '
      f'{manifest["num_transitions"]} transitions.'
    )
    return
  target = FLAGS.minari_id or os.path.join(FLAGS.output_dir, 'replay_logs')
  if other == 'minari':
    num_episodes = _convert_minari(target)
  else:
    source, stack_size = _source(), _stack_size()
    episodes = conversion.episodes(source, stack_size)
    if FLAGS.minari_id is None:
      num_episodes = conversion.write_log(
        episodes, target, stack_size, FLAGS.rows_per_file
      )
    elif (num_actions := _num_actions()) is None:
      raise errors.UsageError('--minari_id needs --num_actions.')
    else:
      num_episodes = conversion.write_minari(
        episodes, target, num_actions, source.name
      )
  print(f'{target}: {num_episodes} episodes.')


def _convert_minari(folder: str) -> int:
  with gin.unlock_config():  # It registers more than is bound here.
    from batch_rl_dr3.control import data as control_data

  dataset = control_data.locate_minari(FLAGS.minari) / 'data'
  with control_data.data_errors(FLAGS.minari):
    import minari

    stack_size = FLAGS.stack_size or 4
    episodes = conversion.minari_episodes(
      minari.MinariDataset(dataset), stack_size
    )
    return conversion.write_log(
      episodes, folder, stack_size, FLAGS.rows_per_file
    )


def verify() -> None:
  """Hashes every file of a store again."""
  cli.need('store')
  manifest = read.verify(pathlib.Path(FLAGS.store), full=True)
  print(f'{FLAGS.store} is whole: data hash {manifest["data_hash"]}.')


def _run(command: Callable[[], None]) -> None:
  cli.load_gin(FLAGS.gin_files, FLAGS.gin_bindings)
  with cli.gin_errors():
    command()


if __name__ == '__main__':
  define_flags()
  commands = (plan, fetch, info, doctor, convert, verify)
  cli.run_subcommand(
    {c.__name__: functools.partial(_run, c) for c in commands}, _USAGE
  )
