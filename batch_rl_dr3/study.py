r"""Runs one of the paper's studies and draws its figure.

  python -m batch_rl_dr3.study figure1 \
    --game=breakout --replay_dir=runs/minatar/data/1 --output_dir=runs/figure1

Studies that train, on logged data of one or more games:

  figure1    the four backups: regression, SARSA, TD-learning, Q-learning
  figure2    DQN and CQL from a checkpoint of DR3 (trained first)
  figure5    effective rank: DQN, REM, CQL, each without and with DR3 and with
             the penalty on the rank
  figure6    Sigma of label noise against Sigma = I
  table_a1   DR3 with the gradient stopped, and where a = a' alone
  adaptive   a coefficient set by dual ascent against fixed ones

Each trains its methods one after the other, --num_seeds of each, in OUTPUT_DIR/
GAME/METHOD/seedN, which are run directories like any other. It then writes
STUDY.png, STUDY.pdf and STUDY.csv (what each quantity began and ended with).
What is finished is not trained again: the same command goes on after it was
stopped, studies with one OUTPUT_DIR share the methods they have in common, and
--draw_only draws what there is. Games are MinAtar's unless --suite=atari; an
Atari game takes the paper's time.

Studies of what is trained, or of nothing:

  figure_a2     each layer of the runs --runs reset to its initial value and to
                a fresh draw: change of predictions and of return
  proposition32 linear TD on features on both sides of the condition
  theorem31     noisy TD around fixed points against the implicit regulariser

Exit codes: 0 done, 64 usage, 65 data, 70 diverged, 73 cannot write, 75 stopped
and can go on, 78 configuration.
"""

from collections.abc import Callable, Sequence
import functools
import gc
import pathlib
from typing import TYPE_CHECKING

from absl import flags

from batch_rl_dr3 import train
from batch_rl_dr3.config import cli, errors, frameworks
from batch_rl_dr3.runs import atomic, run_directory

if TYPE_CHECKING:
  import pandas as pd

  from batch_rl_dr3.reporting import figures
  from batch_rl_dr3.studies import trained


FLAGS = flags.FLAGS

# Those of studies/trained.py, which takes seconds to import.
TRAINED = ('figure1', 'figure2', 'figure5', 'figure6', 'table_a1', 'adaptive')
_GAME_BINDINGS = {
  'minatar': 'create_minatar_lanes.game_name',
  'atari': 'atari_lib.create_atari_environment.game_name',
}


def define_flags() -> None:
  """Defines what is studied, on which data, and where it goes."""
  flags.DEFINE_string('output_dir', None, 'Where runs and figures go.')
  flags.DEFINE_multi_string(
    'game', [], 'The game, such as breakout. Repeat the flag for several.'
  )
  flags.DEFINE_multi_string(
    'replay_dir',
    [],
    'Logged data of the game, as for `train`; one for each --game, in order.',
  )
  flags.DEFINE_enum(
    'suite', 'minatar', list(_GAME_BINDINGS), 'Suite of the games.'
  )
  flags.DEFINE_string(
    'dataset',
    None,
    'Part of the data: with --suite=atari 1pct (the default), 5pct or '
    'first10pct; MinAtar is trained on all there is.',
  )
  flags.DEFINE_integer(
    'num_seeds', 1, 'Seeds of each method, from 0 on.', lower_bound=1
  )
  flags.DEFINE_multi_string(
    'gin_bindings', [], 'Gin bindings for every run; repeat for several.'
  )
  flags.DEFINE_multi_string(
    'runs',
    [],
    'figure_a2: glob of run directories whose last checkpoint is studied.',
  )
  flags.DEFINE_boolean('draw_only', False, 'Train nothing; draw what is there.')
  cli.define_cache_dir()


def train_runs(
  study: 'trained.TrainedStudy',
  output_dir: pathlib.Path,
  games: Sequence[tuple[str, str]],
  suite: str,
  dataset: str | None,
  num_seeds: int,
  bindings: Sequence[str],
  cache_dir: str,
) -> None:
  """Trains what is not finished yet, each run as `train` does.

  Args:
    study: what is trained.
    output_dir: where.
    games: each with the folder of its data.
    suite: the games'.
    dataset: see `Variant.gin_files`.
    num_seeds: seeds of each method.
    bindings: for every run.
    cache_dir: see `train`.

  Raises:
    BatchRLError: see the exit codes of the command.
  """
  runs = [
    (variant, game, replay_dir, seed)
    for seed in range(num_seeds)
    for game, replay_dir in games
    for variant in study.variants
  ]
  for number, (variant, game, replay_dir, seed) in enumerate(runs, 1):
    base_dir = _base_dir(output_dir, game, variant.method, seed)
    print(f'{number} of {len(runs)}: {base_dir}')
    given = [f'{_GAME_BINDINGS[suite]}={game!r}', *variant.bindings, *bindings]
    if variant.starts_from is not None:
      start = _base_dir(output_dir, game, variant.starts_from, seed)
      given.append(f'OfflineAgent.init_checkpoint={_last(start)!r}')
    _train(
      base_dir,
      replay_dir,
      cache_dir,
      variant.gin_files(suite, dataset),
      given,
      seed,
    )


def _train(
  base_dir: pathlib.Path,
  replay_dir: str,
  cache_dir: str,
  gin_files: Sequence[str],
  bindings: Sequence[str],
  seed: int,
) -> None:
  """Trains one run in a graph and a configuration of its own."""
  import gin
  import tensorflow as tf

  gin.clear_config()
  with tf.Graph().as_default():
    train.train(str(base_dir), replay_dir, cache_dir, gin_files, bindings, seed)
  gc.collect()  # Frees the session, and with it the data in its variables.


def _base_dir(
  output_dir: pathlib.Path, game: str, method: str, seed: int
) -> pathlib.Path:
  return output_dir / game / method / f'seed{seed}'


def _last(run: pathlib.Path) -> str:
  """Returns the path of a run's last checkpoint, without `.index`."""
  from batch_rl_dr3.runs import checkpoints

  found = checkpoints.of_iterations(run / run_directory.CHECKPOINTS)
  if not found:
    raise errors.DataError(f'{run} has no checkpoint to start from.')
  return str(pathlib.Path(found[max(found)].prefix).resolve())


def write(
  output_dir: pathlib.Path, drawn: 'figures.Figure', table: 'pd.DataFrame'
) -> None:
  """Writes a study's figure and table, and says where.

  Raises:
    WriteError: if the file system refuses.
  """
  path = atomic.make_directory(output_dir) / drawn.name
  try:
    path.with_suffix('.png').write_bytes(drawn.wide)
    path.with_suffix('.pdf').write_bytes(drawn.pdf)
  except OSError as error:
    raise atomic.FileError(path, error) from error
  atomic.write_text(path.with_suffix('.csv'), table.to_csv(index=False))
  print(f'study: {path.with_suffix(".png")}')


def _output_dir() -> pathlib.Path:
  if not FLAGS.output_dir:
    raise errors.UsageError('--output_dir is needed (see --help).')
  return pathlib.Path(FLAGS.output_dir)


def _run_training_study(name: str) -> None:
  output_dir = _output_dir()
  from batch_rl_dr3.reporting import run_reader
  from batch_rl_dr3.studies import trained

  study = trained.STUDIES[name]
  if not FLAGS.draw_only:
    if not FLAGS.game or len(FLAGS.game) != len(FLAGS.replay_dir):
      raise errors.UsageError(
        'give --game and its --replay_dir, as often as there are games.'
      )
    frameworks.import_tensorflow(announce=True)
    train_runs(
      study,
      output_dir,
      list(zip(FLAGS.game, FLAGS.replay_dir, strict=True)),
      FLAGS.suite,
      FLAGS.dataset or ('1pct' if FLAGS.suite == 'atari' else None),
      FLAGS.num_seeds,
      FLAGS.gin_bindings,
      FLAGS.cache_dir,
    )
  collection = run_reader.load(
    [f'{output_dir}/*/*/seed*'], quantities=study.quantities
  )
  write(
    output_dir,
    trained.make(study, collection),
    trained.table(study, collection),
  )


def _run_theory(name: str) -> None:
  output_dir = _output_dir()
  from batch_rl_dr3.studies import theory

  drawn, table = getattr(theory, name)()
  write(output_dir, drawn, table)


def _run_figure_a2() -> None:
  output_dir = _output_dir()
  if not FLAGS.runs:
    raise errors.UsageError(
      "name trained runs, such as --runs='runs/figure1/breakout/*/seed0'."
    )
  frameworks.import_tensorflow(announce=True)
  from batch_rl_dr3.evaluation import targets
  from batch_rl_dr3.reporting import figures
  from batch_rl_dr3.studies import reinitialisation

  folders, _ = targets.find(FLAGS.runs)
  measured = reinitialisation.measure(folders)
  drawn = figures.make(
    'figure_a2',
    'Layers set back',
    'Dotted: the return of the unchanged checkpoint.',
    functools.partial(reinitialisation.draw, measured),
  )
  write(output_dir, drawn, measured)


COMMANDS: dict[str, Callable[[], None]] = {
  **{name: functools.partial(_run_training_study, name) for name in TRAINED},
  'figure_a2': _run_figure_a2,
  **{
    name: functools.partial(_run_theory, name)
    for name in ('proposition32', 'theorem31')
  },
}

if __name__ == '__main__':
  define_flags()
  cli.run_subcommand(COMMANDS, __doc__)
