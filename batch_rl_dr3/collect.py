"""Plays a game and logs the play, as data to train on."""

from collections.abc import Callable, Sequence
import contextlib
import json
import os
import pathlib
import time
from typing import Any

from absl import flags
import gin

from batch_rl_dr3.config import (
  cli,
  errors,
  flag_tables,
  frameworks,
  own_code,
  progress,
  signals,
)
from batch_rl_dr3.runs import atomic

_USAGE = """\
Plays a game and logs the play, as data to train on.

  python -m batch_rl_dr3.collect --gin_files=collect/freeway_scripted.gin \\
    --output_dir=DATA/Freeway/1

The gin file says which game, who plays, and how many rows. --output_dir then
holds replay_logs/*.gz, which train takes as --replay_dir, and collection.json:
the game, the returns of every file, versions and configuration. For continuous
control (d4rl/collect_hopper.gin) it holds data.hdf5 in D4RL's layout, or is a
Minari data set itself if collect_control.layout = 'minari'. It appears when it
is whole; a command that is stopped leaves nothing behind. Given again once all
is there, the same command says so and does nothing.

Exit codes: 0 finished, 64 usage, 73 cannot write, 75 stopped (start again),
78 configuration.
"""

FLAGS = flags.FLAGS

LOGS = 'replay_logs'
SUMMARY = 'collection.json'


def _is_done(
  output_dir: pathlib.Path, made_from: dict[str, Any], overwrite: bool
) -> bool:
  """Returns whether this collection is there; another is a ConfigError."""
  if not output_dir.exists() or not any(output_dir.iterdir()):
    return False
  summary_path = output_dir / SUMMARY
  if not summary_path.exists():
    raise errors.ConfigError(
      f'{output_dir} holds files that are no collection. Choose another '
      '--output_dir.'
    )
  if overwrite:
    return False
  written = {'imports': {}, **json.loads(summary_path.read_text())}
  here, there = (
    {
      f'seed = {made["seed"]}',
      *made['gin_config'].splitlines(),
      *(f'--import={n}: {digest}' for n, digest in made['imports'].items()),
    }
    for made in (made_from, written)
  )
  if there != here:
    difference = sorted((here - there) or (there - here))[0]
    raise errors.ConfigError(
      f'{output_dir} holds a collection that was made otherwise; it differs '
      f'in {difference!r}. Choose another --output_dir, or collect anew with '
      '--overwrite.'
    )
  return True


def collect_into(
  output_dir: str | os.PathLike[str],
  gin_files: Sequence[str],
  gin_bindings: Sequence[str],
  seed: int,
  overwrite: bool = False,
  imports: Sequence[own_code.OwnCode] = (),
) -> None:
  """Makes a collection, whole or not at all; one that is there is kept.

  `imports` is what --import names.

  Raises:
    ConfigError: if the configuration cannot be used, or `output_dir` holds
      anything but this collection.
    PreemptedError: if SIGTERM or SIGINT came; nothing is left behind.
    WriteError: if `output_dir` cannot be written.
  """
  from batch_rl_dr3.runs import provenance

  gin_text = cli.gin_text(gin_files, gin_bindings, imports)
  collect, name = _collector(frameworks.is_continuous(gin_text))
  cli.load_gin(gin_files, gin_bindings, imports)
  made_from = {
    'seed': seed,
    'imports': own_code.record(imports),
    'gin_config': gin.config_str(),
  }
  output_dir = pathlib.Path(os.path.abspath(output_dir))
  if _is_done(output_dir, made_from, overwrite):
    print(f'{output_dir} is collected already, by the same configuration.')
    return
  total = None  # collect itself says if it is missing.
  with contextlib.suppress(ValueError, TypeError):
    total = int(gin.query_parameter(f'{collect.__name__}.num_rows'))
  num_shown = 0
  stop_request = signals.StopRequest()
  start = time.monotonic()
  with (
    stop_request.listening(),
    atomic.whole_folder(output_dir) as staging,
    progress.bar(total, 'collecting', 'row') as bar,
    cli.gin_errors(),
  ):

    def show(num_rows: int, returns: list[float]) -> None:
      nonlocal num_shown
      if stop_request:
        raise errors.PreemptedError(
          f'stopped after {num_rows} of {total} rows; nothing is kept. Run the '
          'same command again to collect all of them.'
        )
      if len(returns) > num_shown:
        num_shown = len(returns)
        mean = sum(returns) / len(returns)
        bar.set_postfix_str(f'mean return {mean:.2f}', refresh=False)
      bar.update(num_rows - bar.n)

    summary = collect(staging / name, seed, on_progress=show)
    seconds = time.monotonic() - start
    atomic.write_json(
      staging / SUMMARY,
      {
        **summary,
        **made_from,
        'seconds': round(seconds, 1),
        'versions': provenance.versions(),
        'git_revision': provenance.git_revision(),
        'gin_operative_config': gin.operative_config_str(),
      },
    )
  mean = summary['return_mean']
  print(
    f'{output_dir}: {summary["num_rows"]} rows, {summary["num_episodes"]} '
    f'episodes, mean return {"-" if mean is None else format(mean, ".2f")}, '
    f'{seconds:.0f} s.'
  )


def _collector(is_continuous: bool) -> tuple[Callable[..., Any], str]:
  """Returns what collects, and what the folder of its logs is called.

  Imported here so that --help and usage errors need no TensorFlow; each
  registers with gin what a file can name. A process does one or the other:
  Dopamine switches off what TF-Agents needs.
  """
  if is_continuous:
    frameworks.import_tf_agents()
    from batch_rl_dr3.control import collection as continuous

    return continuous.collect_control, ''  # It names its files itself.
  from batch_rl_dr3.agents import networks  # noqa: F401
  from batch_rl_dr3.games import (
    atari,  # noqa: F401
    collection,
    gymnasium_lanes,  # noqa: F401
    minatar,  # noqa: F401
  )

  return collection.collect, LOGS


def main() -> None:
  """Runs the command."""
  cli.need('output_dir')
  example = 'collect/freeway_scripted.gin'
  cli.need('gin_files', why=f': it says what to collect, such as {example}')
  imports = cli.find_imports()
  frameworks.import_tensorflow(announce=True)
  collect_into(
    FLAGS.output_dir,
    FLAGS.gin_files,
    FLAGS.gin_bindings,
    FLAGS.seed,
    FLAGS.overwrite,
    imports,
  )


def define_flags() -> None:
  """Defines the flags of the command."""
  cli.define_shared('gin', 'code')
  flag_tables.define('collect')


if __name__ == '__main__':
  define_flags()
  cli.run(main, _USAGE)
