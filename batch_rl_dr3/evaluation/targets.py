"""What there is to play: the checkpoints of run directories, and others'.

A checkpoint of another program (Dopamine, batch_rl) says only its iteration,
and the file of an exported policy not even that: the game comes from gin and
the rest from the caller.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import functools
import glob
import hashlib
import os
import pathlib
import re
import sys
from typing import Any

from batch_rl_dr3.config import errors, frameworks, gin_files, own_code
from batch_rl_dr3.evaluation import pool, scoring
from batch_rl_dr3.games import gymnasium_lanes, minatar, play
from batch_rl_dr3.runs import (
  atomic,
  checkpoints,
  mirror,
  records,
  run_directory,
  run_tables,
)

VIDEOS = 'videos'
# What is read of runs to know what there is to play, and of other programs'
# folders to play it.
CONTENTS = mirror.Contents(
  'evaluation',
  whole=(
    run_directory.PROVENANCE,
    run_directory.CONFIG,
    run_directory.SCORES,
    f'{run_directory.CHECKPOINTS}/ckpt.*.json',
  ),
  sizes=('tf_ckpt-*', f'{VIDEOS}/*'),
)
FOREIGN_CONTENTS = mirror.Contents('checkpoints', whole=('tf_ckpt-*',))

_FOREIGN = re.compile(r'tf_ckpt-(\d+)\.index')
# How much an evaluation plays, in the protocol of a run.
_AMOUNTS = ('num_evaluation_agent_steps', 'num_evaluation_episodes')


@dataclasses.dataclass(frozen=True)
class Target:
  """The checkpoints of one run; see `pool.Setup` for what is not said here."""

  source: pathlib.Path  # The folder they were found by.
  output_dir: pathlib.Path  # The run directory that the scores go to.
  home: str  # Where that is: itself, or its URL.
  config: str
  protocol: Mapping[str, Any] | None
  # Of another program's run, what the caller says; the game's entries are added
  # once it has been played.
  provenance: Mapping[str, Any]
  checkpoints: Mapping[int, checkpoints.Checkpoint]  # By iteration.
  is_run: bool  # Of this package.
  atoms: pool.Atoms | None = None
  imports: tuple[own_code.OwnCode, ...] = ()

  @functools.cached_property
  def is_continuous(self) -> bool:
    """Whether it is continuous control."""
    return frameworks.is_continuous(self.config)

  def setup(self, num_threads: int = 0) -> pool.Setup:
    """Returns what an evaluator of it is made from."""
    return pool.Setup(
      self.config, self.protocol, num_threads, self.atoms, self.imports
    )

  def open_home(
    self, cache_dir: str, names: Collection[str]
  ) -> run_directory.Home:
    """Returns the home of the scores, with what it takes to add to them.

    Of its checkpoints, only those of these names are fetched.
    """
    needed = (f'{stem}{n}.*' for n in names for stem in ('tf_ckpt-', 'ckpt.'))
    whole = (*run_directory.RUN_FILES, f'{VIDEOS}/*', *needed)
    return run_directory.Home(self.home, cache_dir, whole)

  def within(self, home: run_directory.Home) -> 'Target':
    """Returns this target as it is in its home, once that is locked."""
    here = dataclasses.replace(self, output_dir=home.folder)
    if not self.is_run:
      return here
    found = checkpoints.of_iterations(home.folder / run_directory.CHECKPOINTS)
    return dataclasses.replace(here, source=home.folder, checkpoints=found)


def find(
  patterns: Sequence[str],
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """Returns the run directories, and the folders of other programs' files.

  In a pattern, ** stands for any folders.

  Raises:
    DataError: if a pattern finds neither.
  """
  found: set[tuple[bool, pathlib.Path]] = set()
  for pattern in patterns:
    paths = map(pathlib.Path, glob.glob(pattern, recursive=True))
    here = {folder for path in paths if (folder := _folder(path))}
    if not here:
      raise errors.DataError(
        f'nothing to evaluate in {pattern!r}: neither run directories (with '
        f'{run_directory.PROVENANCE}) nor files tf_ckpt-N.index.'
      )
    found |= here
  return (
    sorted(path for is_run, path in found if is_run),
    sorted(path for is_run, path in found if not is_run),
  )


def _folder(path: pathlib.Path) -> tuple[bool, pathlib.Path] | None:
  """Returns whether a path belongs to a run, and the folder to evaluate."""
  if (path / run_directory.PROVENANCE).is_file():
    return True, path
  if _FOREIGN.fullmatch(path.name):
    path = path.parent
  elif not path.is_dir() or not any(path.glob('tf_ckpt-*.index')):
    return None
  is_run = (path.parent / run_directory.PROVENANCE).is_file()
  return is_run, path.parent if is_run else path


def of_run(
  folder: pathlib.Path,
  trust_gin: bool = False,
  home: str | None = None,
  imports: Sequence[own_code.OwnCode] = (),
) -> Target:
  """Returns the target that a run directory is.

  `home` is where it is, if the folder mirrors it; with `trust_gin` its
  configuration may execute what it likes.

  Raises:
    ConfigError: if its configuration would execute foreign code, or it was made
      with code that `imports` lacks.
    DataError: if its files cannot be read.
  """
  mend = 'Restore it from a backup, or leave the run out of --runs.'
  home = home or str(folder)
  config_path = folder / run_directory.CONFIG
  provenance = records.read_provenance(
    folder, ('method', 'game', 'seed', 'protocol')
  )
  config = records.read_text(config_path, mend)
  if provenance is None or config is None:
    name = run_directory.CONFIG if provenance else run_directory.PROVENANCE
    raise errors.DataError(
      f'{folder} is no whole run directory: it has no {name}. {mend}'
    )
  own = own_code.matching(provenance.get('imports', {}), imports, home)
  if not trust_gin:
    names = own_code.definitions(own)
    gin_files.check_text(config, str(config_path), names)
  return Target(
    source=folder,
    output_dir=folder,
    home=home,
    config=config,
    protocol=provenance['protocol'],
    provenance=provenance,
    checkpoints=checkpoints.of_iterations(folder / run_directory.CHECKPOINTS),
    is_run=True,
    imports=own,
  )


def of_checkpoint(
  path: pathlib.Path, imports: Sequence[own_code.OwnCode] = ()
) -> tuple[Target, str, int | None] | None:
  """Returns the run of a checkpoint, its prefix and its gradient steps.

  The path is that of a run, whose newest one is meant, or of a checkpoint
  without `.index`; None if it is of no run. The steps of one within an
  iteration are not known. Errors are those of `of_run`.
  """
  for folder in (path, path.parent.parent):
    if (folder / run_directory.PROVENANCE).exists():
      break
  else:
    return None
  target = of_run(folder, imports=imports)
  found = list(target.checkpoints.values())
  if folder != path:
    steps = {c.prefix: c.gradient_steps for c in found}
    return target, str(path), steps.get(str(path))
  if not found:
    raise errors.DataError(f'{folder} has no checkpoint.')
  return target, found[-1].prefix, found[-1].gradient_steps


def of_folder(
  folder: pathlib.Path,
  output_dir: str | os.PathLike[str],
  config: str,
  identity: Mapping[str, Any],
  gradient_steps_per_iteration: int,
  home: str | None = None,
  atoms: pool.Atoms = pool.UNSTATED,
  imports: Sequence[own_code.OwnCode] = (),
) -> Target:
  """Returns the target of another program's checkpoints, tf_ckpt-N.index.

  `config` is gin text that names the game and the network; `identity` is
  method, dataset, run and seed; `home` is where `output_dir` is, if that
  mirrors it. `folder` may also be an exported policy, which is iteration 0.
  """
  provenance = {**identity, 'checkpoints': os.path.abspath(folder)}
  if atoms.support is not None:
    provenance['support'] = list(atoms.support)
  if pool.is_exported(str(folder)):
    prefixes = {0: str(folder)}
    provenance['policy_sha256'] = _sha256(folder)
  else:
    prefixes = {
      int(match[1]): str(path.with_suffix(''))
      for path in folder.glob('tf_ckpt-*.index')
      if (match := _FOREIGN.fullmatch(path.name))
    }
  return Target(
    source=folder,
    output_dir=pathlib.Path(output_dir),
    home=home or str(output_dir),
    config=config,
    protocol=None,
    provenance=provenance,
    checkpoints={
      i: checkpoints.Checkpoint(
        str(i), (i + 1) * gradient_steps_per_iteration, prefixes[i]
      )
      for i in sorted(prefixes)
    },
    is_run=False,
    atoms=atoms,
    imports=tuple(imports),
  )


def _sha256(path: pathlib.Path) -> str:
  """Returns the digest of a file, or of a folder's files in order."""
  digest = hashlib.sha256()
  for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
    if file.is_file():
      digest.update(file.read_bytes())
  return digest.hexdigest()


def protocol_of(game: str) -> tuple[list[str], list[str]]:
  """Returns the gin files and bindings of a game, played as published.

  The game is one of MinAtar, gymnasium's id, or, in camel case, one of ALE.
  """
  if gymnasium_lanes.is_id(game):
    return ['minatar/protocol.gin', 'own/discrete.gin'], [
      f'create_gymnasium_lanes.environment = {game!r}'
    ]
  if game in minatar.GAMES:
    return ['minatar/protocol.gin'], [
      f'create_minatar_lanes.game_name = {game!r}'
    ]
  return ['atari/protocol.gin'], [
    f'atari_lib.create_atari_environment.game_name = {game!r}'
  ]


def write_provenance(
  target: Target, result: pool.Result, check: atomic.Check = atomic.unchecked
) -> dict[str, Any]:
  """Returns what a run is, and writes it down where it was not known yet.

  Raises:
    DataError: if the run directory speaks of another game.
    WriteError: if the disk refuses.
  """
  identity = dataclasses.asdict(result.identity)
  protocol = identity.pop('protocol')
  there = records.read_provenance(target.output_dir, ('game', 'protocol'))
  if there is not None:
    known = {**there, **there['protocol']}
    played = {**({} if target.is_run else target.provenance), **identity}
    for name, value in {**played, **protocol}.items():
      if name in _AMOUNTS and known.get(name) == 0:
        continue  # Never evaluated before.
      if known.get(name) != value:
        raise errors.DataError(
          f'{target.output_dir} has {name} {known.get(name)!r} and here it is '
          f'{value!r}; such scores do not belong in one file. Evaluate it '
          'where it was trained, or with the versions that it names.'
        )
    provenance = {**there, 'protocol': {**there['protocol'], **protocol}}
    if provenance == there:
      return provenance
  else:
    provenance = {
      **target.provenance,
      **identity,
      'data_hash': None,
      'data': None,
      'protocol': {'gamma': None, **protocol},
      **result.process,
      'command': [os.path.basename(sys.executable), *sys.orig_argv[1:]],
    }
    atomic.write_text(
      target.output_dir / run_directory.CONFIG, target.config, check
    )
  path = target.output_dir / run_directory.PROVENANCE
  atomic.write_json(path, provenance, check)
  return provenance


@dataclasses.dataclass(frozen=True)
class RemainingEvaluation:
  """One checkpoint to play, and whose it is."""

  target: Target
  iteration: int
  checkpoint: checkpoints.Checkpoint
  with_scores: bool
  with_video: bool
  num_agent_steps: int  # 0 where episodes are counted, or for a video alone.
  home: run_directory.Home | None = None  # Of its scores, once locked.

  def job(self, num_threads: int) -> pool.CheckpointJob:
    """Returns what a worker is to do; a damaged checkpoint is a DataError."""
    target = self.target
    if target.is_run:
      checkpoints.check_whole(self.checkpoint)
    return pool.CheckpointJob(
      target.setup(num_threads),
      prefix=self.checkpoint.prefix,
      seed=play.evaluation_seed(target.provenance['seed'], self.iteration),
      with_scores=self.with_scores,
      video=str(_video(target, self.iteration)) if self.with_video else None,
    )

  def record(self, result: pool.Result) -> str:
    """Writes the scores, as `write_provenance`; returns what to say of them."""
    assert self.home is not None
    target, episodes = self.target, result.episodes
    name = f'{target.home} iteration {self.iteration}'
    if episodes:
      check = self.home.check
      provenance = write_provenance(target, result, check)
      run_tables.ScoreLog(target.output_dir, check).append(
        provenance, self.iteration, self.checkpoint.gradient_steps, episodes
      )
    self.home.publish()
    if not episodes:
      return f'{name}: video written'
    score = None
    scale = result.identity.protocol.get('scale')
    if scale is not None:
      low, high = scale
      score = 100 * (scoring.mean_return(episodes) - low) / (high - low)
    return f'{name}: {scoring.describe(episodes, score)}'


def remaining_evaluations(
  target: Target,
  which: str,
  video: bool,
  home: run_directory.Home | None = None,
) -> list[RemainingEvaluation]:
  """Returns what is left to do for 'all' checkpoints, or the 'last'.

  Raises:
    DataError: if there is no checkpoint yet, or the protocol is not whole.
  """
  if not target.checkpoints:
    raise errors.DataError(
      f'{target.home} has no checkpoint of a finished iteration yet.'
    )
  found = list(target.checkpoints.items())
  done = run_tables.ScoreLog(target.output_dir).iterations()
  tasks = [
    RemainingEvaluation(
      target,
      iteration,
      checkpoint,
      with_scores=iteration not in done,
      with_video=video and not _video(target, iteration).exists(),
      num_agent_steps=0 if iteration in done else _num_agent_steps(target),
      home=home,
    )
    for iteration, checkpoint in (found if which == 'all' else found[-1:])
  ]
  return [task for task in tasks if task.with_scores or task.with_video]


def _num_agent_steps(target: Target) -> int:
  if target.is_continuous:
    return 0
  if target.protocol is None:
    bound = gin_files.read_bindings((), target.config.splitlines())
    steps = bound.get('FixedReplayRunner.num_evaluation_agent_steps', 0)
    if isinstance(steps, int) and steps > 0:
      return steps
    return play.PUBLISHED.num_agent_steps
  return play.PlayRule.recorded(target.protocol).num_agent_steps


def _video(target: Target, iteration: int) -> pathlib.Path:
  return target.output_dir / VIDEOS / f'iteration_{iteration}.mp4'
