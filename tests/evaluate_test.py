"""Checkpoints that are played apart from training, and meanwhile."""

import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import gin
import numpy as np
import pytest

from batch_rl_dr3 import evaluate, train
from batch_rl_dr3.agents import checkpoint_weights
from batch_rl_dr3.config import errors, gin_files
from batch_rl_dr3.evaluation import pool, scoring, targets
from batch_rl_dr3.games import play
from batch_rl_dr3.runs import (
  atomic,
  checkpoints,
  lease,
  place,
  results,
  run_directory,
  run_tables,
)
from batch_rl_dr3.training import discrete


@pytest.fixture
def train_here(session, clear_gin, replay_dir, cache_dir, tiny_bindings):
  """Trains a tiny REM+DR3 run in this process."""

  def train_here(base_dir, *bindings):
    train.train(
      str(base_dir),
      str(replay_dir),
      str(cache_dir),
      ['minatar/rem_dr3.gin'],
      [*tiny_bindings, *bindings],
      seed=3,
    )
    return run_tables.read_rows(base_dir / run_directory.SCORES)

  return train_here


def command(*flags):
  return [sys.executable, '-um', 'batch_rl_dr3.evaluate', *flags]


def scores(folder):
  return run_tables.read_rows(folder / run_directory.SCORES)


def test_a_checkpoint_scores_what_its_run_scored(train_here, tmp_path):
  expected = train_here(tmp_path)
  target = targets.of_run(tmp_path)
  assert list(target.checkpoints) == [0, 1]
  evaluator = discrete.create_evaluator(
    pool.Setup(target.config, target.protocol)
  )
  for iteration, checkpoint in target.checkpoints.items():
    seed = play.evaluation_seed(3, iteration)
    episodes = evaluator.evaluate(checkpoint.prefix, seed)
    assert [(e.episode_return, e.length) for e in episodes] == [
      (float(row['return']), int(row['length']))
      for row in expected
      if row['iteration'] == str(iteration)
    ]
  assert evaluator.evaluate(checkpoint.prefix, seed + 1) != episodes


@pytest.mark.slow
def test_the_command_plays_what_has_no_scores_and_nothing_twice(
  train_here, run, tmp_path
):
  """Of two runs one lacks an iteration, the other was never evaluated."""
  one = tmp_path / 'runs' / 'one'
  expected = train_here(one)
  other = tmp_path / 'runs' / 'deep' / 'other'
  shutil.copytree(one, other)
  (other / run_directory.SCORES).unlink()
  provenance = json.loads((other / run_directory.PROVENANCE).read_text())
  provenance['protocol']['num_evaluation_agent_steps'] = 40
  atomic.write_json(other / run_directory.PROVENANCE, provenance)
  columns = (*run_tables.SCORE_COLUMNS, run_tables.NUM_EPISODES)
  log = run_tables.CsvLog(one / run_directory.SCORES, columns)
  log.keep(lambda row: row['iteration'] == '1')

  flag = f'--checkpoints={tmp_path}/runs/**'
  result = run(command(flag, '--num_workers=1', '--video'))
  assert result.returncode == 0, result.stderr
  assert 'Traceback' not in result.stderr
  assert scores(other) == expected
  assert sorted(map(str, scores(one))) == sorted(map(str, expected))
  assert (one / 'videos' / 'iteration_1.mp4').stat().st_size > 1000

  done = run(command(flag))
  assert done.returncode == 0
  assert done.stdout == 'Everything is evaluated already.\n'


@pytest.mark.slow
def test_another_programs_checkpoints_become_a_run(train_here, run, tmp_path):
  expected = train_here(tmp_path / 'run')
  foreign = tmp_path / 'foreign' / 'checkpoints'
  foreign.mkdir(parents=True)
  for path in (tmp_path / 'run' / 'checkpoints').glob('tf_ckpt-*'):
    shutil.copy(path, foreign)
  flags = [
    f'--checkpoints={tmp_path}/foreign/**',
    '--gin_files=minatar/protocol.gin',
    "--gin_bindings=create_minatar_lanes.game_name='breakout'",
    '--gin_bindings=create_minatar_lanes.num_lanes=2',
    '--gin_bindings=FixedReplayRunner.num_evaluation_agent_steps=40',
    '--method=rem',
    '--atoms=heads',
    '--dataset=all',
    '--seed=3',
    '--gradient_steps_per_iteration=30',
    f'--output_dir={tmp_path}/scores',
  ]
  result = run(command(*flags))
  assert result.returncode == 0, result.stderr
  rows = scores(tmp_path / 'scores')
  names = ('game', 'iteration', 'gradient_steps', 'return', 'length')
  assert sorted([row[name] for name in names] for row in rows) == sorted(
    [row[name] for name in names] for row in expected
  )
  provenance = json.loads(
    (tmp_path / 'scores' / run_directory.PROVENANCE).read_text()
  )
  assert provenance['method'] == 'rem'
  assert flags[-1] in provenance['command']
  assert provenance['protocol']['epsilon_eval'] == 0.001
  assert run(command(*flags)).returncode == 0


PROTOCOL = {
  'minatar_version': '1.0.15',
  'epsilon_eval': 0.001,
  'num_evaluation_agent_steps': 40,
  'max_agent_steps_per_episode': 27_000,
}


def result(protocol=PROTOCOL, game='breakout', rom_md5=None):
  return pool.Result(
    identity=play.GameIdentity('minatar', game, rom_md5, protocol),
    episodes=[run_tables.Episode(0, 1.0, 10, False)],
    process={'device': 'cpu'},
  )


@pytest.fixture
def target(tmp_path):
  return targets.of_folder(
    tmp_path / 'theirs',
    tmp_path,
    '# config\n',
    {'method': 'dqn', 'dataset': '1pct', 'run': None, 'seed': 0},
    100,
  )


def test_scores_of_two_protocols_do_not_meet_in_one_file(target):
  written = targets.write_provenance(target, result())
  assert written['protocol']['num_evaluation_agent_steps'] == 40
  assert targets.write_provenance(target, result()) == written
  for changed, named in (
    (result({**PROTOCOL, 'minatar_version': '2.0'}), 'minatar_version'),
    (result(rom_md5='abc'), 'rom_md5'),
    (result(game='asterix'), 'game'),
    (result({**PROTOCOL, 'epsilon_eval': 0.05}), 'epsilon_eval'),
  ):
    with pytest.raises(errors.DataError, match=named):
      targets.write_provenance(target, changed)
  other = dataclasses.replace(
    target, provenance={**target.provenance, 'method': 'rem'}
  )
  with pytest.raises(errors.DataError, match='method'):
    targets.write_provenance(other, result())


def test_a_run_without_evaluation_takes_the_published_protocol(
  target, tmp_path
):
  provenance = targets.write_provenance(target, result())
  provenance['protocol']['num_evaluation_agent_steps'] = 0
  atomic.write_json(tmp_path / run_directory.PROVENANCE, provenance)
  run_target = targets.of_run(tmp_path)
  rule = play.PlayRule.recorded(run_target.protocol)
  assert rule == play.PlayRule(125_000, 0.001, 27_000)
  played = {**PROTOCOL, 'num_evaluation_agent_steps': 125_000}
  targets.write_provenance(run_target, result(played))
  now = targets.of_run(tmp_path)
  assert now.provenance['protocol']['num_evaluation_agent_steps'] == 125_000


def test_what_is_found_is_a_run_or_a_folder_of_checkpoints(tmp_path):
  run_folder = tmp_path / 'a' / 'run'
  (run_folder / 'checkpoints').mkdir(parents=True)
  (run_folder / run_directory.PROVENANCE).write_text('{}')
  (run_folder / 'checkpoints' / 'tf_ckpt-0.index').touch()
  foreign = tmp_path / 'b' / 'checkpoints'
  foreign.mkdir(parents=True)
  (foreign / 'tf_ckpt-12.index').touch()
  (foreign / 'ckpt.12').touch()
  expected = ([run_folder], [foreign])
  assert targets.find([f'{tmp_path}/**']) == expected
  assert targets.find([str(run_folder)]) == (expected[0], [])
  with pytest.raises(errors.DataError, match='nothing to evaluate'):
    targets.find([f'{tmp_path}/none/*'])
  with pytest.raises(errors.DataError, match='game is missing'):
    targets.of_run(run_folder)
  found = targets.of_folder(foreign, tmp_path, '', {}, 100)
  assert found.checkpoints[12].gradient_steps == 1300


def test_only_what_is_left_is_played(tmp_path, target):
  folder = tmp_path / 'theirs'
  folder.mkdir()
  for iteration in (0, 1, 10):
    (folder / f'tf_ckpt-{iteration}.index').touch()
  found = targets.of_folder(folder, tmp_path, '', target.provenance, 100)

  def left(which, video=False):
    return [
      (task.iteration, task.with_scores, task.with_video)
      for task in targets.remaining_evaluations(found, which, video)
    ]

  assert left('last') == [(10, True, False)]
  written = targets.write_provenance(found, result())
  log = run_tables.ScoreLog(tmp_path)
  log.append(written, 10, 1100, result().episodes)
  assert left('last') == []
  assert left('all') == [(0, True, False), (1, True, False)]
  assert left('last', video=True) == [(10, False, True)]


def test_the_bar_knows_the_agent_steps_that_are_bound(tmp_path, target):
  folder = tmp_path / 'theirs'
  folder.mkdir()
  (folder / 'tf_ckpt-0.index').touch()

  def num_agent_steps(config):
    found = targets.of_folder(
      folder, tmp_path / 'scores', config, target.provenance, 100
    )
    (task,) = targets.remaining_evaluations(found, 'all', False)
    return task.num_agent_steps

  name = 'FixedReplayRunner.num_evaluation_agent_steps'
  assert num_agent_steps(f'{name} = 40\n') == 40
  assert num_agent_steps(f"include 'minatar/protocol.gin'\n{name} = 7") == 7
  assert num_agent_steps('') == play.PUBLISHED.num_agent_steps


def test_a_line_says_the_score_and_whether_a_counter_wrapped():
  def episodes(*returns):
    return [run_tables.Episode(0, value, 10, False) for value in returns]

  assert scoring.describe(episodes(1.0, 2.0), None) == (
    'mean return 1.50 over 2 episodes'
  )
  assert scoring.describe(episodes(1.0), 12.34) == (
    'mean return 1.00, normalised 12.3, over 1 episodes'
  )
  wrapped = scoring.describe(episodes(21_000.0, -983_500.0, 20_000.0), None)
  assert 'wrapped in 1 of them (return -983,500)' in wrapped


@pytest.fixture
def foreign_c51(tmp_path):
  """Makes evaluators of a C51 checkpoint of Breakout: 6 actions, 3 returns."""
  checkpoint_weights.write(
    str(tmp_path / 'tf_ckpt-0'),
    [
      *(np.zeros((3, 3, 4, 16), np.float32), np.zeros(16, np.float32)),
      *(np.zeros((1600, 128), np.float32), np.ones(128, np.float32)),
      *(np.zeros((128, 18), np.float32), np.zeros(18, np.float32)),
    ],
  )
  config = (
    "include 'minatar/protocol.gin'\n"
    "create_minatar_lanes.game_name='breakout'\n"
    'create_minatar_lanes.num_lanes=1\n'
    'FixedReplayRunner.num_evaluation_agent_steps=5\n'
  )

  def play_it(atoms):
    setup = pool.Setup(config, None, 1, atoms)
    return discrete.create_evaluator(setup).evaluate(
      str(tmp_path / 'tf_ckpt-0'), 0
    )

  return play_it


def test_several_outputs_of_another_program_have_to_be_named(
  foreign_c51, clear_gin
):
  gin.add_config_file_search_path(str(gin_files.shipped_configs()))
  with pytest.raises(errors.UsageError, match=r'3 outputs.*--atoms=heads'):
    foreign_c51(pool.UNSTATED)
  for atoms in (
    pool.Atoms('heads'),
    pool.Atoms('categorical', (-10.0, 10.0)),
    None,
  ):
    assert foreign_c51(atoms)


def test_the_support_is_part_of_what_a_foreign_run_is(tmp_path):
  found = targets.of_folder(
    tmp_path, tmp_path, '', {}, 100, atoms=pool.Atoms('categorical', (-1, 1))
  )
  assert found.provenance['support'] == [-1, 1]
  assert found.atoms.support == (-1, 1)


@pytest.mark.parametrize(
  ('kind', 'support', 'named'),
  [
    ('categorical', None, '--support=-10,10'),
    ('categorical', ['10', '-10'], '--support=-10,10'),
    ('categorical', ['a', 'b'], '--support=-10,10'),
    ('categorical', ['nan', '1'], '--support=-10,10'),
    ('categorical', ['1'], '--support=-10,10'),
    ('heads', ['-10', '10'], 'categorical alone'),
    (None, ['-10', '10'], 'categorical alone'),
  ],
)
def test_atoms_and_support_have_to_fit(kind, support, named):
  with pytest.raises(errors.UsageError, match=named):
    evaluate.parse_atoms(kind, support)


def test_atoms_are_as_the_flags_say():
  assert evaluate.parse_atoms(None, None) == pool.UNSTATED
  assert evaluate.parse_atoms('heads', None) == pool.Atoms('heads')
  assert evaluate.parse_atoms('categorical', ['-10', '10']) == pool.Atoms(
    'categorical', (-10.0, 10.0)
  )


@pytest.mark.parametrize(
  'config',
  [
    'import evilmod\n',
    'from __gin__ import dynamic_registration\n',
    "include 'evil.gin'\n",
    (
      'import dopamine.discrete_domains.gym_lib\n'
      "create_gym_environment.environment_name = 'evilmod:Foo'\n"
    ),
    "create_atari_environment.game_name = 'evilmod:Foo'\n",
    'FixedReplayRunner.create_lanes = @os.system\n',
  ],
)
def test_a_run_that_somebody_sent_executes_nothing(
  config, target, tmp_path, monkeypatch
):
  targets.write_provenance(target, result())
  witness = tmp_path / 'executed'
  (tmp_path / 'evilmod.py').write_text(f"open({str(witness)!r}, 'w')\n")
  (tmp_path / 'evil.gin').write_text('import evilmod\n')
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / run_directory.CONFIG).write_text(config)
  with pytest.raises(errors.ConfigError):
    targets.of_run(tmp_path)
  assert not witness.exists()


def test_a_protocol_that_is_not_whole_is_named(target, tmp_path):
  provenance = targets.write_provenance(target, result())
  del provenance['protocol']['epsilon_eval']
  atomic.write_json(tmp_path / run_directory.PROVENANCE, provenance)
  broken = dataclasses.replace(
    targets.of_run(tmp_path),
    checkpoints={0: checkpoints.Checkpoint('0', 30, 'x')},
  )
  with pytest.raises(errors.DataError, match="lacks 'epsilon_eval'"):
    targets.remaining_evaluations(broken, 'all', False)


def test_of_a_run_in_a_bucket_what_is_played_is_fetched(tmp_path, target):
  targets.write_provenance(target, result())
  remote = place.Place('memory://evaluate/seed0')
  for name in (run_directory.PROVENANCE, run_directory.CONFIG):
    remote.put(tmp_path / name, name)
  for name in '01':
    entry = {'bytes': 1, 'sha256': '0' * 64}
    manifest = {
      'name': name,
      'gradient_steps': 30,
      'files': {f'tf_ckpt-{name}.index': entry},
    }
    for path, content in (
      (f'tf_ckpt-{name}.index', 'weights'),
      (f'ckpt.{name}.json', json.dumps(manifest)),
    ):
      remote.write(f'checkpoints/{path}', content.encode())
  remote.write('events.out.tfevents', b'large')
  view = results.RunGlobs(
    ['memory://evaluate/**'], tmp_path / 'cache', targets.CONTENTS
  )
  view.refresh()
  ((folder,), _) = targets.find(view.patterns)
  found = targets.of_run(folder, home=view.name_of(str(folder)))
  assert found.home == remote.name
  assert list(found.checkpoints) == [0, 1]
  home = found.open_home(str(tmp_path / 'cache'), {'1'})
  with home.lock():
    here = found.within(home)
    assert list(here.checkpoints) == [1]
    index = pathlib.Path(f'{here.checkpoints[1].prefix}.index')
    assert index.read_text() == 'weights'
    assert not list(home.folder.glob('events.*'))
    written = targets.write_provenance(here, result(), home.check)
    log = run_tables.ScoreLog(here.output_dir, home.check)
    log.append(written, 1, 30, result().episodes)
    home.publish()
  view.refresh()
  assert run_tables.ScoreLog(folder).iterations() == {1}
  # What was not fetched is still there.
  assert remote.read('checkpoints/tf_ckpt-0.index') == b'weights'
  assert remote.read('events.out.tfevents') == b'large'


def test_a_run_in_use_and_a_damaged_checkpoint_are_named(
  tmp_path, target, monkeypatch
):
  provenance = targets.write_provenance(target, result())
  assert provenance['seed'] == 0
  run_target = targets.of_run(tmp_path)
  with pytest.raises(errors.DataError, match='no checkpoint'):
    evaluate.evaluate([lambda: run_target])
  folder = tmp_path / 'checkpoints'
  folder.mkdir()
  (folder / 'tf_ckpt-0.index').write_text('x')
  atomic.write_json(
    folder / 'ckpt.0.json',
    {
      'name': '0',
      'gradient_steps': 30,
      'files': {'tf_ckpt-0.index': {'bytes': 2, 'sha256': '0' * 64}},
    },
  )
  run_target = targets.of_run(tmp_path)
  monkeypatch.setattr(lease, 'HEARTBEAT_SECONDS', 0.05)
  with (
    run_directory.Home(str(tmp_path), '').lock(),
    pytest.raises(run_directory.BusyError, match='in use'),
  ):
    evaluate.evaluate([lambda: run_target])
  with pytest.raises(errors.DataError, match='1 bytes, not all'):
    evaluate.evaluate([lambda: targets.of_run(tmp_path)])


@pytest.mark.parametrize(
  ('flags', 'code', 'named'),
  [
    ([], 64, '--checkpoints is needed'),
    (['--checkpoints=/nowhere/**'], 65, 'nothing to evaluate'),
  ],
)
def test_errors_are_one_line_and_a_code(run, flags, code, named):
  failed = run(command(*flags))
  assert failed.returncode == code
  assert named in failed.stderr
  assert failed.stderr.count('\n') == 1


def stop_once(path, command, number):
  """Starts a command, sends it a signal once a file is there, and waits."""
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 300
  while not path.exists() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.005)
  process.send_signal(number)
  _, stderr = process.communicate(timeout=120)
  assert 'Traceback' not in stderr
  return process.returncode


@pytest.mark.slow
def test_an_async_run_that_is_stopped_plays_the_rest_later(
  train_command, run, tmp_path
):
  """SIGTERM, SIGKILL, then the end; only the last checkpoint is kept."""
  base_dir = tmp_path / 'run'
  bindings = (
    'FixedReplayRunner.async_evaluation=True',
    'FixedReplayRunner.num_iterations=3',
    'FixedReplayRunner.keep_last_checkpoints=1',
    'FixedReplayRunner.num_evaluation_agent_steps=3000',
  )
  command = train_command(base_dir, *bindings)
  folder = base_dir / 'checkpoints'
  for iteration, number in ((0, signal.SIGTERM), (1, signal.SIGKILL)):
    code = stop_once(folder / f'ckpt.{iteration}.json', command, number)
    assert code in (errors.PreemptedError.exit_code, -signal.SIGKILL)
    assert not (base_dir / run_directory.FINISHED).exists()
    there = {row['iteration'] for row in scores(base_dir)}
    for earlier in range(iteration + 1):
      kept = (folder / f'ckpt.{earlier}.json').exists()
      assert kept or str(earlier) in there

  again = run(command)
  assert again.returncode == 0, again.stderr
  assert (base_dir / run_directory.FINISHED).exists()
  sync = run(train_command(tmp_path / 'sync', *bindings[1:]))
  assert sync.returncode == 0, sync.stderr
  assert scores(base_dir) == scores(tmp_path / 'sync')
