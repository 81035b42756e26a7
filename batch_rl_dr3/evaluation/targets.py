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

from batch_rl_dr3.config import cli, errors, frameworks, gin_files, own_code
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
    found = self.checkpoints
    if self.is_run:
      found = checkpoints.of_iterations(home.folder / run_directory.CHECKPOINTS)
    return dataclasses.replace(self, output_dir=home.folder, checkpoints=found)

  def video(self, iteration: int) -> pathlib.Path:
    """Returns where the video of an iteration's checkpoint is or will be."""
    return self.output_dir / VIDEOS / f'iteration_{iteration}.mp4'

  def num_agent_steps(self) -> int:
    """Returns how many an evaluation takes; 0 where episodes are counted."""
    if self.is_continuous:
      return 0
    if self.protocol is not None:
      return play.PlayRule.recorded(self.protocol).num_agent_steps
    bound = gin_files.read_bindings((), self.config.splitlines())
    steps = bound.get('FixedReplayRunner.num_evaluation_agent_steps')
    if isinstance(steps, int) and steps > 0:
      return steps
    return play.PUBLISHED.num_agent_steps


def find(
  patterns: Sequence[str],
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """Returns the run directories, and the folders of other programs' files.

  In a pattern, ** stands for any folders; DataError if it finds neither.
  """
  runs: set[pathlib.Path] = set()
  others: set[pathlib.Path] = set()
  for pattern in patterns:
    is_empty = True
    for path in map(pathlib.Path, glob.glob(pattern, recursive=True)):
      if _FOREIGN.fullmatch(path.name):
        path = path.parent
      is_run = [_is_run(folder) for folder in (path, path.parent)]
      if is_run[0]:
        runs.add(path)
      elif not any(path.glob('tf_ckpt-*.index')):
        continue
      elif is_run[1]:
        runs.add(path.parent)
      else:
        others.add(path)
      is_empty = False
    if is_empty:
      raise errors.DataError(
        f'nothing to evaluate in {pattern!r}: neither run directories (with '
        f'{run_directory.PROVENANCE}) nor files tf_ckpt-N.index.'
      )
  return sorted(runs), sorted(others)


def _is_run(folder: pathlib.Path) -> bool:
  return (folder / run_directory.PROVENANCE).is_file()


def of_run(
  folder: pathlib.Path,
  home: str | None = None,
  imports: Sequence[own_code.OwnCode] = (),
) -> Target:
  """Returns the target that a run directory is.

  `home` is where it is, if the folder mirrors it. With --trust_gin its
  configuration may execute what it likes.

  Raises:
    ConfigError: if its configuration would execute foreign code, or it was made
      with code that `imports` lacks.
    DataError: if its files cannot be read.
  """
  mend = 'Restore it from a backup, or leave the run out of --runs.'
  home = home or str(folder)
  provenance = records.read_provenance(
    folder, ('method', 'game', 'seed', 'protocol')
  )
  config = records.read_text(folder / run_directory.CONFIG, mend)
  if provenance is None or config is None:
    name = run_directory.CONFIG if provenance else run_directory.PROVENANCE
    raise errors.DataError(
      f'{folder} is no whole run directory: it has no {name}. {mend}'
    )
  own = own_code.matching(provenance.get('imports', {}), imports, home)
  if not cli.trusts_gin():
    origin = str(folder / run_directory.CONFIG)
    statements = gin_files.statements_of_text(config, origin)
    gin_files.check(statements, own_code.definitions(own))
  return Target(
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
  if _is_run(path):
    target = of_run(path, imports=imports)
    if not target.checkpoints:
      raise errors.DataError(f'{path} has no checkpoint.')
    newest = target.checkpoints[max(target.checkpoints)]
    return target, newest.prefix, newest.gradient_steps
  if not _is_run(path.parent.parent):
    return None
  target = of_run(path.parent.parent, imports=imports)
  steps = {c.prefix: c.gradient_steps for c in target.checkpoints.values()}
  return target, str(path), steps.get(str(path))


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

  Raises:
    ConfigError: if such checkpoints are said to be of continuous control.
  """
  provenance = {**identity, 'checkpoints': os.path.abspath(folder)}
  if atoms.support is not None:
    provenance['support'] = list(atoms.support)
  if pool.is_exported(str(folder)):
    prefixes = {0: str(folder)}
    provenance['policy_sha256'] = _sha256(folder)
  elif frameworks.is_continuous(config):
    raise errors.ConfigError(
      f'{folder} holds checkpoints of continuous control by another program, '
      "which cannot be read: only this package's runs can."
    )
  else:
    prefixes = {
      int(match[1]): str(path.with_suffix(''))
      for path in folder.glob('tf_ckpt-*.index')
      if (match := _FOREIGN.fullmatch(path.name))
    }
  return Target(
    output_dir=pathlib.Path(output_dir),
    home=home or str(output_dir),
    config=config,
    protocol=None,
    provenance=provenance,
    checkpoints={
      i: checkpoints.Checkpoint(
        str(i), (i + 1) * gradient_steps_per_iteration, prefix
      )
      for i, prefix in sorted(prefixes.items())
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

  DataError if the run directory speaks of another game.
  """
  identity = dataclasses.asdict(result.identity)
  protocol = identity.pop('protocol')
  there = records.read_provenance(target.output_dir, ('game', 'protocol'))
  if there is None:
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
  else:
    known = {**there, **there['protocol']}
    others = {} if target.is_run else target.provenance
    for name, value in {**others, **identity, **protocol}.items():
      # An amount is 0 where the run was never evaluated before.
      is_open = name in _AMOUNTS and known.get(name) == 0
      if known.get(name) != value and not is_open:
        raise errors.DataError(
          f'{target.output_dir} has {name} {known.get(name)!r} and here it is '
          f'{value!r}; such scores do not belong in one file. Evaluate it '
          'where it was trained, or with the versions that it names.'
        )
    provenance = {**there, 'protocol': {**there['protocol'], **protocol}}
  if provenance != there:
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
      video=str(target.video(self.iteration)) if self.with_video else None,
    )

  def record(self, result: pool.Result, home: run_directory.Home) -> str:
    """Writes the scores, as `write_provenance`; returns what to say of them."""
    target, episodes = self.target, result.episodes
    said = 'video written'
    if episodes:
      provenance = write_provenance(target, result, home.check)
      run_tables.ScoreLog(target.output_dir, home.check).append(
        provenance, self.iteration, self.checkpoint.gradient_steps, episodes
      )
      score = None
      if scale := result.identity.protocol.get('scale'):
        low, high = scale
        score = 100 * (scoring.mean_return(episodes) - low) / (high - low)
      said = scoring.describe(episodes, score)
    home.publish()
    return f'{target.home} iteration {self.iteration}: {said}'


def remaining_evaluations(
  target: Target, which: str, video: bool
) -> list[RemainingEvaluation]:
  """Returns what is left to do for 'all' checkpoints, or the 'last'.

  DataError if there is no checkpoint yet, or the protocol is not whole.
  """
  if not target.checkpoints:
    raise errors.DataError(
      f'{target.home} has no checkpoint of a finished iteration yet.'
    )
  done = run_tables.ScoreLog(target.output_dir).iterations()
  found = list(target.checkpoints.items())
  tasks = []
  for iteration, checkpoint in found if which == 'all' else found[-1:]:
    scores = iteration not in done
    film = video and not target.video(iteration).exists()
    if scores or film:
      steps = target.num_agent_steps() if scores else 0
      tasks.append(
        RemainingEvaluation(target, iteration, checkpoint, scores, film, steps)
      )
  return tasks
