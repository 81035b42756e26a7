"""A run that is killed at any moment, or whose disk fails, ends the same.

The loop, its checkpoints, its files and its lease are the real ones; the agent
is a few numbers, so that a life takes milliseconds. Every write, fsync, rename
and removal is a moment. At the chosen one the disk dies: the call, and all
later ones, raise and do nothing, as after SIGKILL no call is made; what was
being written is written half.
"""

import builtins
import contextlib
import errno
import io
import itertools
import json
import os
import pathlib
import random
import shutil
import types

import numpy as np
import pytest

from batch_rl_dr3.config import errors, signals
from batch_rl_dr3.evaluation import scoring, targets
from batch_rl_dr3.reporting import run_reader, selection
from batch_rl_dr3.runs import (
  checkpoints,
  lease,
  place,
  provenance,
  run_directory,
  run_tables,
)

NUM_ITERATIONS = 3
NUM_GRADIENT_STEPS = 5
PROVENANCE = {
  **{'suite': 'x', 'game': 'y', 'method': 'z', 'dataset': '1pct', 'run': 1},
  'seed': 0,
  'data_hash': 'abc',
  'protocol': {},
}


class Killed(BaseException):
  pass


class Disk:
  """Counts the changes of files, and fails at the chosen one."""

  def __init__(self, monkeypatch):
    self.moment = None
    self.fault = None
    self.count = 0
    for name in ('replace', 'rename', 'unlink', 'mkdir', 'rmdir'):
      self._patch(monkeypatch, os, name)
    monkeypatch.setattr(os, 'fsync', lambda _: self.reach_on_disk())
    opened = io.open

    def open_counted(file, mode='r', *args, **kwargs):
      if not set(mode) & set('wxa'):
        return opened(file, mode, *args, **kwargs)
      self.reach_on_disk()
      return _File(opened(file, mode, *args, **kwargs), self)

    monkeypatch.setattr(io, 'open', open_counted)
    monkeypatch.setattr(builtins, 'open', open_counted)

  def _patch(self, monkeypatch, module, name):
    original = getattr(module, name)

    def counted(*args, **kwargs):
      self.reach_on_disk()
      return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)

  def arm(self, moment, fault):
    self.count, self.moment, self.fault = 0, moment, fault

  def disarm(self):
    self.moment = None

  def reach_on_disk(self):
    self.reach()

  def reach(self):
    self.count += 1
    if self.moment is not None and self.count >= self.moment:
      raise self.fault()


class _File:
  """A file whose writes are moments; a failing one writes half."""

  def __init__(self, file, disk):
    self._file = file
    self._disk = disk

  def write(self, data):
    try:
      self._disk.reach_on_disk()
    except BaseException:
      if self._disk.count == self._disk.moment:
        self._file.write(data[: len(data) // 2])
      raise
    return self._file.write(data)

  def __getattr__(self, name):
    return getattr(self._file, name)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._file.close()


class Agent:
  """Weights that depend on every step before."""

  steps_per_call = 2

  def __init__(self, on_step=lambda steps: None):
    self._weights = np.zeros(3)
    self._steps = 0
    self._on_step = on_step

  def num_gradient_steps(self):
    return self._steps

  def make_train_steps(self):
    def train(num_steps):
      for _ in range(num_steps):
        draw = np.random.default_rng((0, self._steps)).normal(size=3)
        self._weights = 0.9 * self._weights + draw
        self._steps += 1
        self._on_step(self._steps)
      return {'loss_total': float(self._weights.sum())}

    return train

  def save(self, prefix):
    text = f'{self._steps} {self._weights.tolist()}'
    pathlib.Path(f'{prefix}.index').write_text(str(self._steps))
    pathlib.Path(f'{prefix}.data-00000-of-00001').write_text(text)

  def restore(self, prefix):
    text = pathlib.Path(f'{prefix}.data-00000-of-00001').read_text()
    steps, _, weights = text.partition(' ')
    self._steps = int(steps)
    self._weights = np.array([float(x) for x in weights[1:-1].split(',')])


class Metrics:
  """A row every other step."""

  def __init__(self, home, agent):
    self._agent = agent
    self._csv = run_tables.CsvLog(
      home.folder / run_directory.METRICS,
      ('iteration', 'gradient_steps', 'mean_q'),
      home.check,
      ('iteration', 'gradient_steps'),
    )

  def start(self, steps):
    self._csv.keep(lambda row: int(row['gradient_steps']) < steps)

  def start_clock(self, steps):
    pass

  def is_due(self, steps):
    return steps % 2 == 0

  def steps_until_due(self, steps):
    return 2 - steps % 2

  def log(self, iteration, steps):
    weight = float(self._agent._weights[0])
    self._csv.append(
      {'iteration': iteration, 'gradient_steps': steps, 'mean_q': weight}
    )
    return {'loss_total': weight, 'feature_dot_product': weight}

  def scalars(self, values, steps):
    pass


class Evaluator:
  """Episodes that are a function of the checkpoint and the seed."""

  num_agent_steps = 10

  def evaluate(self, prefix, seed, on_progress, should_stop):
    text = pathlib.Path(f'{prefix}.data-00000-of-00001').read_text()
    value = float(len(text) + seed % 100)
    return [
      run_tables.Episode(0, value, 3, False),
      run_tables.Episode(0, -value, 4, False),
    ]


@pytest.fixture
def disk(monkeypatch):
  monkeypatch.setattr(lease, 'EXPIRY_SECONDS', 0.0)
  monkeypatch.setattr(lease, '_POLL_SECONDS', 0.0)
  monkeypatch.setattr(lease, 'HEARTBEAT_SECONDS', 1000.0)
  return Disk(monkeypatch)


def live(base_dir, cache_dir='', stop_at=None):
  """Trains to the end from wherever the run was left.

  Args:
    base_dir: the run directory.
    cache_dir: where a run of a bucket is worked on.
    stop_at: the gradient step in which SIGTERM comes.
  """
  from batch_rl_dr3.training import loop

  def stop(steps):
    if steps == stop_at:
      stop_request.signal_name = 'SIGTERM'

  agent = Agent(stop)
  stop_request = signals.StopRequest()
  place = run_directory.Home(str(base_dir), str(cache_dir))
  run = types.SimpleNamespace(
    learner=agent,
    provenance=PROVENANCE,
    home=place,
    stop_request=stop_request,
    num_iterations=NUM_ITERATIONS,
    num_gradient_steps=NUM_GRADIENT_STEPS,
    total_gradient_steps=NUM_ITERATIONS * NUM_GRADIENT_STEPS,
    checkpoint_every_minutes=0.0,
    prepare=lambda: False,
  )
  with place.lock():
    provenance.claim(place.folder, 'A.b = 1\n', PROVENANCE, False, place.check)
    with loop.recorded_failure(place, agent.num_gradient_steps):
      kept = checkpoints.Checkpoints(
        place.folder / 'checkpoints', keep_last=2, check=place.check
      )
      log = Metrics(place, agent)
      played = scoring.SyncEvaluations(Evaluator(), stop_request)
      scores = scoring.Scoring(place, PROVENANCE, kept, played, log.scalars)
      if not loop.is_done(place.folder, NUM_ITERATIONS):
        loop.Loop(run, kept, log, scores).run()


def failure_of(folder):
  try:
    live(folder)
  except errors.WriteError as error:
    return error
  return None


def left_by(folder):
  """What a run ends with: its tables and its last checkpoint.

  A kill may leave older checkpoints that would not have been kept.
  """
  names = (run_directory.SCORES, run_directory.METRICS, run_directory.FINISHED)
  files = [folder / name for name in names]
  files += sorted(
    (folder / 'checkpoints').glob(f'*ckpt[.-]{NUM_ITERATIONS - 1}.*')
  )
  return {f.relative_to(folder): f.read_bytes() for f in files}


@pytest.fixture
def straight(disk, tmp_path):
  """What an undisturbed run ends with, and how many moments it has."""
  live(tmp_path / 'straight')
  return types.SimpleNamespace(
    left=left_by(tmp_path / 'straight'), num_moments=disk.count
  )


def test_killed_at_a_hundred_moments_it_ends_the_same(disk, straight, tmp_path):
  assert straight.num_moments > 150
  rng = random.Random(1)
  num_kills = 0
  while num_kills < 100:
    folder = tmp_path / f'run{num_kills}'
    for _ in range(rng.randint(1, 3)):  # Also while it mends a kill.
      disk.arm(rng.randint(1, straight.num_moments), Killed)
      try:
        live(folder)
      except Killed:
        num_kills += 1
    disk.disarm()
    live(folder)
    assert left_by(folder) == straight.left
    hidden = [p for p in folder.rglob('.*.tmp') if p.parent.name != 'lease']
    assert hidden == []


@pytest.mark.parametrize(
  'num_runs', [5, pytest.param(60, marks=pytest.mark.slow)]
)
def test_killed_while_it_uploads_it_ends_the_same_elsewhere(
  disk, straight, tmp_path, monkeypatch, num_runs
):
  """Every request to the bucket is a moment; each life has another machine."""
  from fsspec.implementations import memory

  for name in ('put_file', 'pipe_file', 'rm_file', 'cat_file'):
    original = getattr(memory.MemoryFileSystem, name)

    def counted(*args, original=original, **kwargs):
      disk.reach()
      return original(*args, **kwargs)

    monkeypatch.setattr(memory.MemoryFileSystem, name, counted)
  monkeypatch.setattr(disk, 'reach_on_disk', lambda: None)
  machines = (tmp_path / f'machine{i}' for i in itertools.count())
  disk.arm(10**9, Killed)
  live(f'memory://{num_runs}/straight', next(machines))
  num_moments = disk.count
  assert num_moments > 150
  rng = random.Random(num_runs)
  for number in range(num_runs):
    url = f'memory://{num_runs}/run{number}'
    disk.arm(rng.randint(1, num_moments), Killed)
    with contextlib.suppress(Killed):
      live(url, next(machines))
    disk.disarm()
    live(url, next(machines))
    place = run_directory.Home(url, str(next(machines)))
    with place.lock():
      assert left_by(place.folder) == straight.left


@pytest.mark.parametrize(
  ('number', 'every'),
  [
    (errno.ENOSPC, 12),
    pytest.param(errno.ENOSPC, 1, marks=pytest.mark.slow),
    pytest.param(errno.EIO, 1, marks=pytest.mark.slow),
  ],
)
def test_a_disk_that_fails_is_named_and_nothing_earlier_is_lost(
  disk, straight, tmp_path, monkeypatch, number, every
):
  def fault():
    return OSError(number, os.strerror(number))

  saved = []
  save = checkpoints.Checkpoints.save

  def save_and_note(self, write, name, gradient_steps):
    save(self, write, name, gradient_steps)
    saved.append(gradient_steps)

  monkeypatch.setattr(checkpoints.Checkpoints, 'save', save_and_note)
  for moment in range(1, straight.num_moments + 1, every):
    folder = tmp_path / f'run{moment}'
    saved.clear()
    disk.arm(moment, fault)
    error = failure_of(folder)
    if error is None:  # Only what comes after the end is of no weight.
      assert left_by(folder) == straight.left
    else:
      assert error.exit_code == 73
      assert str(folder) in str(error)
      assert os.strerror(number) in str(error)
    disk.disarm()
    if saved:
      kept = checkpoints.Checkpoints(folder / 'checkpoints').latest()
      assert kept.gradient_steps >= max(saved)
    live(folder)
    assert left_by(folder) == straight.left


@pytest.mark.parametrize('stop_at', range(1, 2 * NUM_GRADIENT_STEPS))
def test_a_run_that_is_stopped_ends_the_same(disk, straight, tmp_path, stop_at):
  """Also in the last step of an iteration, whose checkpoint is then its end."""
  with pytest.raises(errors.PreemptedError, match='everything is saved'):
    live(tmp_path, stop_at=stop_at)
  live(tmp_path)
  assert left_by(tmp_path) == straight.left


def test_a_run_whose_checkpoints_are_gone_is_not_started_over(disk, tmp_path):
  disk.arm(10**9, Killed)
  live(tmp_path)
  for path in (tmp_path / 'checkpoints').iterdir():
    path.unlink()
  (tmp_path / run_directory.FINISHED).unlink()
  with pytest.raises(errors.DataError, match='not started over by itself'):
    live(tmp_path)
  assert (tmp_path / run_directory.SCORES).exists()
  assert (tmp_path / run_directory.FAILED).exists()


def test_a_damaged_newest_checkpoint_costs_only_its_steps(
  disk, straight, tmp_path
):
  disk.arm(straight.num_moments - 15, Killed)
  with pytest.raises(Killed):
    live(tmp_path)
  disk.disarm()
  newest = max(
    (tmp_path / 'checkpoints').glob('*.index'),
    key=lambda path: int(path.read_text()),
  )
  newest.write_text('')
  live(tmp_path)
  left = left_by(tmp_path)
  for name in (run_directory.SCORES, run_directory.METRICS):
    assert left[pathlib.Path(name)] == straight.left[pathlib.Path(name)]


OTHER_VALUES = (None, True, -1, 2.5, 'x', '', [], [1], {}, {'x': None})


def damaged(path, rng):
  """Returns a file's content with one damage of many, and its kind."""
  content = path.read_bytes()
  place = rng.randrange(len(content) + 1)
  kind = rng.choice(('empty', 'cut', 'byte', 'nul', 'flip', 'value'))
  if kind == 'value' and path.suffix == '.json':
    record = json.loads(content)
    name = rng.choice(sorted(record))
    record[name] = rng.choice(OTHER_VALUES)
    if rng.random() < 0.2:
      record[f'{name}x'] = record.pop(name)
    return json.dumps(record).encode(), kind
  if kind == 'flip' and content:
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(flipped), kind
  inserted = {'byte': b'\xff', 'nul': b'\0'}.get(kind)
  if inserted is None:
    return content[: 0 if kind == 'empty' else place], kind
  return content[:place] + inserted + content[place:], kind


def use(folder):
  """Does with a run what each command does, training last.

  Returns what each raised, as a command would end with it.
  """

  def select():
    selection.ranking(run_reader.load([str(folder)]), selection.RULES)

  raised = []
  for command in (
    lambda: run_reader.load([str(folder)]),
    select,
    lambda: targets.of_run(folder),
    lambda: live(folder),
  ):
    try:
      command()
    except errors.BatchRLError as error:
      raised.append(error)
  return raised


@pytest.mark.parametrize(
  'num_damages', [30, pytest.param(300, marks=pytest.mark.slow)]
)
def test_no_damage_to_the_files_of_a_run_is_a_traceback(
  disk, straight, tmp_path, num_damages
):
  """Each is mended, or named with 65: by file, whoever reads it."""
  with pytest.raises(errors.PreemptedError):
    live(tmp_path / 'stopped', stop_at=NUM_GRADIENT_STEPS * 2 + 3)
  live(tmp_path / 'whole')
  rng = random.Random(num_damages)
  for number in range(num_damages):
    folder = tmp_path / f'run{number}'
    shutil.copytree(tmp_path / ('stopped', 'whole')[number % 2], folder)
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    path = rng.choice(files)
    content, kind = damaged(path, rng)
    is_changed = content != path.read_bytes()
    path.write_bytes(content)
    raised = use(folder)
    case = (number, path.relative_to(folder), kind, content, raised)
    for error in raised:
      assert '\n' not in errors.one_line(error), case
    told = [e for e in raised if path.name in str(e)]
    if kind == 'byte' and path.parent == folder and path.suffix != '.gin':
      assert [e.exit_code for e in told].count(65) >= 1, case
    if path.parent != folder and kind != 'flip' and number % 2 == 0:
      # Checkpoints and terms: what was whole before is used.
      assert left_by(folder) == straight.left, case
    if not is_changed:
      assert left_by(folder) == straight.left, case


def test_a_worker_that_is_taken_over_writes_nothing_more(disk, tmp_path):
  """Another worker takes over in the middle, and finishes the run."""
  first = []
  reach = disk.reach

  def reach_and_be_taken_over():
    reach()
    if disk.count == 120 and not first:
      first.append(True)
      live(tmp_path)
      first.append(left_by(tmp_path))

  disk.reach = reach_and_be_taken_over
  with pytest.raises(lease.FencedError):
    live(tmp_path)
  assert left_by(tmp_path) == first[1]
  tokens = [
    term.token for term in lease.history(place.Place(tmp_path / lease.FOLDER))
  ]
  assert tokens == [1, 2]
