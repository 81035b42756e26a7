r"""Runs one of the paper's studies and draws its figure.

  python -m batch_rl_dr3.study figure1 --output_dir=runs/figure1
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

Each is a grid of `sweep`, studies/STUDY.gin: `sweep run` executes it on a
cluster, and this command what is left of it here, one run after the other, in
OUTPUT_DIR/SUITE/GAME/DATASET/METHOD/seedN-IDENTITY. It then writes STUDY.png,
STUDY.pdf and STUDY.csv (what each quantity began and ended with), and a report,
report/index.html. Rerun it to go on after it was stopped; studies with one
OUTPUT_DIR share the runs they have in common. Without --replay_dir the data are
those of the grid: a game of MinAtar is played and logged first if they are not
there. With --suite=atari a game is trained for the paper's time, on --run=1 of
the public data.

Studies of what is trained, or of nothing:

  figure_a2     each layer of the runs --runs reset to its initial value and to
                a fresh draw: change of predictions and of return
  proposition32 linear TD on features on both sides of the condition
  theorem31     noisy TD around fixed points against the implicit regulariser

Exit codes: 0 done, 64 usage, 65 data, 70 diverged, 73 cannot write, 75 stopped
and can go on, 78 configuration.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import gc
import glob
import os
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags
import gin

from batch_rl_dr3 import collect, train
from batch_rl_dr3.config import cli, errors, flag_tables, frameworks
from batch_rl_dr3.runs import atomic

if TYPE_CHECKING:
  import pandas as pd

  from batch_rl_dr3.reporting import figures
  from batch_rl_dr3.sweeping import grid

FLAGS = flags.FLAGS

TRAINED = ('figure1', 'figure2', 'figure5', 'figure6', 'table_a1', 'adaptive')
# What a study's grid says otherwise on Atari.
_ATARI = {
  'suite': 'atari',
  'datasets': ('1pct',),
  'gin_files': ('atari/{method}_1pct.gin', 'atari/datasets/{dataset}.gin'),
  'gin_bindings': ("atari_lib.create_atari_environment.game_name='{game}'",),
  'replay_dir': None,
  'results_dir': None,
}


def define_flags() -> None:
  """Defines the flags of the command."""
  cli.define_shared('code', 'cache')
  flag_tables.define('study')


def load_sweep(name: str) -> 'grid.Sweep':
  """Returns the grid of a study, as the flags have it.

  Raises:
    UsageError: if games and their data do not come in pairs.
  """
  from batch_rl_dr3.sweeping import grid

  gin.clear_config()
  cli.load_gin([f'studies/{name}.gin'], [])
  sweep = grid.Sweep()
  changes: dict[str, Any] = dict(_ATARI) if FLAGS.suite == 'atari' else {}
  if changes and not FLAGS.game:
    raise errors.UsageError('--suite=atari needs --game (see --help).')
  if FLAGS.game:
    changes['games'] = FLAGS.game
  if FLAGS.replay_dir:
    if len(FLAGS.game) != len(FLAGS.replay_dir):
      raise errors.UsageError(
        'give --game and its --replay_dir, as often as there are games.'
      )
    data_names = dict(zip(FLAGS.game, FLAGS.replay_dir, strict=True))
    changes |= {'replay_dir': '{data}', 'data_names': data_names}
    changes['results_dir'] = None
  if FLAGS.dataset:
    changes['datasets'] = (FLAGS.dataset,)
  if FLAGS.num_seeds is not None:
    changes['seeds'] = range(FLAGS.num_seeds)
  given = [b.replace('{', '{{').replace('}', '}}') for b in FLAGS.gin_bindings]
  templates = changes.get('gin_bindings', sweep.gin_bindings)
  changes['gin_bindings'] = (*templates, *given)
  return dataclasses.replace(sweep, **changes)


def _train(runs: 'Sequence[grid.SweepRun]', output_dir: str) -> None:
  """Trains runs one after the other, each as `train` does."""
  for number, run in enumerate(runs, 1):
    base_dir = f'{output_dir}/{run.folder}'
    print(f'{number} of {len(runs)}: {base_dir}')
    bindings = list(run.gin_bindings)
    start = run.start_checkpoint(os.path.abspath(output_dir))
    if start is not None:
      bindings.append(f'OfflineAgent.init_checkpoint={start!r}')
    with _own_graph():
      train.train(
        base_dir,
        run.logged_run if run.replay_dir is None else run.replay_dir,
        FLAGS.cache_dir,
        run.gin_files,
        bindings,
        run.seed,
        imports=run.imports,
      )


@contextlib.contextmanager
def _own_graph() -> Iterator[None]:
  """Gives the block a graph and a gin configuration of its own."""
  import tensorflow as tf

  gin.clear_config()
  with tf.Graph().as_default():
    yield
  gc.collect()  # Frees the session, and with it the data in its variables.


def _collect(runs: 'Sequence[grid.SweepRun]') -> None:
  """Logs the play of the games of runs, where it is not there yet."""
  for game, folder in sorted({(r.game, r.replay_dir or '') for r in runs}):
    binding = f'create_minatar_lanes.game_name={game!r}'
    with _own_graph():
      collect.collect_into(
        folder, ['collect/minatar_study.gin'], [binding], seed=0
      )


def _write(drawn: 'figures.Figure', table: 'pd.DataFrame') -> None:
  """Writes a study's figure and table, and says where."""
  path = atomic.make_directory(FLAGS.output_dir) / drawn.name
  for suffix, data in (
    ('.png', drawn.wide),
    ('.pdf', drawn.pdf),
    ('.csv', table.to_csv(index=False).encode()),
  ):
    with atomic.whole_file(path.with_suffix(suffix)) as file:
      file.write(data)
  print(f'study: {path.with_suffix(".png")}')


def _run_training_study(name: str) -> None:
  sweep = load_sweep(name)
  runs = sweep.runs(cli.find_imports())
  if not FLAGS.draw_only:
    from batch_rl_dr3.sweeping import standing

    where = (pathlib.Path(FLAGS.output_dir), sweep.results_dir)
    left = [run for run in runs if not standing.is_done(run, *where)]
    frameworks.import_tensorflow(announce=True)
    if FLAGS.suite == 'minatar' and not FLAGS.replay_dir:
      _collect(left)
    _train(left, FLAGS.output_dir)
  _report(name, sweep, runs)


def _report(
  name: str, sweep: 'grid.Sweep', runs: 'Sequence[grid.SweepRun]'
) -> None:
  """Draws the runs of a study, and reports on them."""
  from batch_rl_dr3.reporting import (
    figures,
    page,
    run_reader,
    study,
    tables,
    words,
  )
  from batch_rl_dr3.runs import results

  quantities = words.entries(name, 'quantities')
  patterns = []
  for run in runs:
    folder = f'{FLAGS.output_dir}/{run.folder}'
    if sweep.results_dir is not None and not os.path.isdir(folder):
      folder = f'{sweep.results_dir}/{run.kept_folder}'
    patterns.append(folder)
  view = results.RunGlobs(
    map(glob.escape, patterns), FLAGS.cache_dir, run_reader.CONTENTS
  )
  found = [pattern for pattern in view.patterns if glob.glob(pattern)]
  collection = run_reader.load(found or view.patterns, quantities=quantities)
  # What others start from is no part of the figure.
  sources = set((sweep.starts_from or {}).values())
  names = [method for method in sweep.methods if method not in sources]
  panels = [figures.panel(quantity) for quantity in quantities]
  _write(
    figures.of_methods(name, collection, names, panels),
    tables.first_and_last(collection, names, quantities),
  )
  preset = f'dr3_{sweep.suite}_{name}'
  is_whole = preset in study.PRESETS and len(found) == len(runs)
  options = page.Options(
    preset=preset if is_whole and not FLAGS.game else None, allow_mixed=True
  )
  index = page.write_report(found, f'{FLAGS.output_dir}/report', options)
  print(f'report: {index}')


def _run_figure_a2() -> None:
  if not FLAGS.runs:
    raise errors.UsageError(
      "name trained runs, such as --runs='runs/figure1/**/seed0-*'."
    )
  frameworks.import_tensorflow(announce=True)
  from batch_rl_dr3.evaluation import targets
  from batch_rl_dr3.reporting import figures
  from batch_rl_dr3.studies import reinitialisation

  folders, _ = targets.find(FLAGS.runs)
  measured = reinitialisation.measure(folders)
  draw = functools.partial(reinitialisation.draw, measured)
  _write(figures.make_named('figure_a2', draw), measured)


def _run(name: str) -> None:
  cli.need('output_dir')
  if name in TRAINED:
    _run_training_study(name)
  elif name == 'figure_a2':
    _run_figure_a2()
  else:
    from batch_rl_dr3.studies import theory

    _write(*theory.make(name))


COMMANDS: dict[str, Callable[[], None]] = {
  name: functools.partial(_run, name)
  for name in (*TRAINED, 'figure_a2', 'proposition32', 'theorem31')
}

if __name__ == '__main__':
  define_flags()
  cli.run_subcommand(COMMANDS, __doc__)
