import collections
import dataclasses
import itertools

import gin
import pytest

from batch_rl_dr3.config import cli, errors, gin_files, own_code
from batch_rl_dr3.reporting import run_reader
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.sweeping import grid


def test_the_paper_grid_is_the_study_that_the_report_expects(clear_gin):
  cli.load_gin(['sweeps/dr3_atari17.gin'], [])
  runs = grid.Sweep().runs()
  study = study_lib.PRESETS['dr3_atari17']
  assert len(runs) == 17 * 3 * 4 * 5
  assert {run.game for run in runs} == set(study.games)
  assert {run.method for run in runs} == set(study.methods)
  assert {(r.dataset, r.num_gradient_steps) for r in runs} == set(
    study.datasets.items()
  )
  # One seed for each of the logged runs.
  assert {(r.seed, r.logged_run) for r in runs} == {
    (k, k + 1) for k in range(study.num_runs)
  }
  assert len({run.folder for run in runs}) == len(runs)
  # The four methods learn from the same rows, and share a store.
  assert set(collections.Counter(r.store for r in runs).values()) == {4}


def test_the_minatar_grid_has_sixty_runs_of_one_thread(clear_gin):
  cli.load_gin(['sweeps/minatar.gin'], [])
  runs = grid.Sweep().runs()
  assert len(runs) == 5 * 4 * 3
  assert {r.bound['FixedReplayRunner.num_threads'] for r in runs} == {1}
  assert runs[0].num_gradient_steps == 100_000
  assert runs[0].num_evaluation_agent_steps == 200_000


@pytest.mark.parametrize(
  ('methods', 'name', 'values'),
  [
    (
      ['rem_dr3', 'cql_dr3'],
      'FeatureDotPenalty.coefficient',
      [0.0001, 0.001, 0.03, 0.3],
    ),
    (['cql'], 'ConservativePenalty.coefficient', [0.1, 1.0, 4.0]),
  ],
)
def test_tuning_varies_one_coefficient_on_a_seed_of_its_own(
  clear_gin, methods, name, values
):
  cli.load_gin(['sweeps/minatar.gin'], [])
  study = grid.Sweep()
  gin.clear_config()
  cli.load_gin(['sweeps/minatar_tuning.gin'], [])
  prefix = 'c0' if 'rem_dr3' in methods else 'alpha'
  runs = [r for r in grid.Sweep().runs() if f'_{prefix}_' in r.method]
  assert not {r.seed for r in runs} & set(study.seeds)
  assert {r.game for r in runs} < set(study.games)
  # Each method with each value, under a name that says it, on each game.
  found = collections.Counter((r.method, r.bound[name]) for r in runs)
  assert found == {
    (f'{method}_{prefix}_{value:.4g}', value): 2
    for method in methods
    for value in values
  }
  assert all(
    r.bound['FixedReplayRunner.method'] == r.method
    and r.gin_files[0] == f'minatar/{r.method.partition(f"_{prefix}")[0]}.gin'
    for r in runs
  )


def test_a_run_is_a_command_and_a_folder(make_sweep):
  run = make_sweep(seeds=[7], logged_runs=[3]).runs()[0]
  assert run.folder == f'minatar/breakout/all/dqn/seed7-{run.identity}'
  assert run.arguments('RUNS/', 'CACHE') == [
    '--gin_files=minatar/dqn.gin',
    "--gin_bindings=create_minatar_lanes.game_name='breakout'",
    '--replay_dir=data/breakout/3',
    '--seed=7',
    f'--base_dir=RUNS/{run.folder}',
    '--cache_dir=CACHE',
  ]
  public = make_sweep(logged_runs=[3], replay_dir=None).runs()[0]
  assert '--run=3' in public.arguments('RUNS', 'CACHE')


def test_identity_is_of_what_is_trained_and_not_of_where_it_is(make_sweep):
  def identity(**bound):
    return make_sweep(**bound).runs()[0].identity

  usual = identity()
  assert len(usual) == 8
  assert int(usual, 16) >= 0
  assert identity(replay_dir='/elsewhere/{game}/{run}') == usual
  assert identity(num_gpus=1.0, run_gigabytes=9.0) == usual
  assert identity(seeds=[1]) != usual
  assert identity(logged_runs=[2]) != usual
  game = "create_minatar_lanes.game_name='{game}'"
  assert identity(gin_bindings=[game, 'OfflineAgent.gamma=0.9']) != usual
  # Written otherwise, it is the same.
  assert identity(gin_bindings=[game, 'OfflineAgent.gamma = 0.990']) == usual


def test_a_method_may_be_made_of_another(make_sweep):
  (run,) = make_sweep(
    games=['breakout'],
    methods=['sarsa'],
    derived={
      'sarsa': ['dqn', "FixedReplayDQNAgent.backup = 'sarsa'", 'A.y = 2']
    },
    gin_bindings=[
      "create_minatar_lanes.game_name='{game}'",
      'A.x = 1',
      'A.y = 1',
    ],
  ).runs()
  assert (run.method, run.gin_files) == ('sarsa', ('minatar/dqn.gin',))
  assert run.bound['FixedReplayDQNAgent.backup'] == 'sarsa'
  assert run.bound['FixedReplayRunner.method'] == 'sarsa'
  assert run.bound['A.x'] == 1
  assert run.bound['A.y'] == 2  # Its own bindings override the grid's.


def test_the_drift_grid_changes_one_thing_at_a_time(clear_gin):
  cli.load_gin(['sweeps/minatar_pilot.gin'], [])
  pilot = {
    r.method: r.bound
    for r in grid.Sweep().runs()
    if (r.game, r.dataset) == ('breakout', '10pct')
  }
  gin.clear_config()
  cli.load_gin(['sweeps/minatar_drift.gin'], [])
  runs = grid.Sweep().runs()
  assert len(runs) == 11
  for run in runs:
    is_dqn = run.method.startswith('dqn')
    base = 'dqn_gamma0.95' if is_dqn else 'cql_gamma0.99'
    changed = {
      name
      for name in run.bound | pilot[base]
      if run.bound.get(name) != pilot[base].get(name)
    } - {'FixedReplayRunner.method'}
    expected = 3 if run.method == 'dqn_quantiles' else 1
    assert len(changed) == expected, (run.method, changed)


def test_what_starts_from_a_run_names_its_last_checkpoint(make_sweep):
  def make(**bound):
    return make_sweep(
      games=['breakout'],
      methods=['rem', 'later'],
      derived={'later': ['dqn']},
      starts_from={'later': 'rem'},
      **bound,
    ).runs()

  rem, later = make()
  assert later.start == dataclasses.replace(rem, index=-1)
  assert (
    f'--init_checkpoint=RUNS/{rem.folder}/checkpoints/tf_ckpt-19'
    in later.arguments('RUNS/', 'CACHE')
  )
  # Of another start, it is another run.
  game = "create_minatar_lanes.game_name='{game}'"
  other = make(gin_bindings=[game, 'FixedReplayREMAgent.num_heads=7'])[1]
  assert other.identity != later.identity
  alone = make_sweep(methods=['later'], derived={'later': ['dqn']}).runs()[0]
  assert alone.identity != later.identity


def test_code_that_is_imported_is_handed_on_and_part_of_what_a_run_is(
  make_sweep, tmp_path
):
  def make():
    return make_sweep().runs(own_code.find([str(tmp_path / 'mine.py')]))[0]

  (tmp_path / 'mine.py').write_text('x = 1')
  run = make()
  assert run.arguments('RUNS', 'CACHE')[0] == f'--import={tmp_path}/mine.py'
  # What is kept names no folder of this machine.
  assert run.arguments('R', 'C', local=False)[0] == '--import=mine.py'
  assert make().identity == run.identity
  (tmp_path / 'mine.py').write_text('x = 2')
  identities = {run.identity, make().identity, make_sweep().runs()[0].identity}
  assert len(identities) == 3


@pytest.mark.parametrize(
  ('bound', 'expected'),
  [
    ({'seeds': [0, 0]}, 'are the same'),
    ({'gin_files': ['minatar/{what}.gin']}, "cannot fill 'minatar/{what}.gin'"),
    ({'gin_files': ['minatar/dqn.gin']}, "method 'rem'"),
    ({'datasets': ['1pct']}, "dataset '1pct'"),
    ({'methods': ['sac']}, "no gin file 'minatar/sac.gin'"),
    ({'gin_bindings': ['nonsense']}, 'no gin'),
    ({'logged_runs': []}, 'logged_runs is empty'),
  ],
)
def test_a_grid_that_fits_not_together_is_refused(make_sweep, bound, expected):
  with pytest.raises(errors.ConfigError, match=expected):
    make_sweep(**bound).runs()


def test_later_files_and_bindings_win_and_references_stay(tmp_path):
  (tmp_path / 'base.gin').write_text('A.x = 1\nscope/A.x = [@B(), %M]\nM = 2\n')
  (tmp_path / 'top.gin').write_text(
    f"include '{tmp_path}/base.gin'\nA.x = 3\nA:\n  y = 'text'\n"
  )
  bound = gin_files.read_bindings([str(tmp_path / 'top.gin')], ['A.y = None'])
  assert repr(sorted(bound.items())) == (
    "[('A.x', 3), ('A.y', None), ('M', 2), ('scope/A.x', [@B(), %M])]"
  )


def test_continuous_grids_are_the_tables_that_the_report_expects(clear_gin):
  """And train takes what they say: no log number, and data by their names."""
  cli.load_gin(['sweeps/d4rl_table2.gin'], [])
  runs = grid.Sweep().runs()
  assert len({r.game for r in runs}) == 7
  assert len(runs) == 7 * 2 * 3
  assert {r.runner for r in runs} == {'ContinuousRunner'}
  assert {r.num_gradient_steps for r in runs} == {2_000_000}
  where = {r.game: r.arguments('RUNS', 'CACHE')[2] for r in runs}
  assert where['antmaze-large-play'] == (
    '--replay_dir=minari:D4RL/antmaze/large-play-v1'
  )
  assert where['kitchen-mixed'] == '--replay_dir=minari:D4RL/kitchen/mixed-v2'
  gin.clear_config()
  cli.load_gin(['sweeps/brac_mujoco.gin'], [])
  runs = grid.Sweep().runs()
  assert len({(r.game, r.dataset) for r in runs}) == 15
  assert {(r.method, r.seed) for r in runs} == set(
    itertools.product(('brac', 'brac_dr3'), range(3))
  )
  # 10 episodes of at most 1,000 steps, 25 times.
  assert {r.num_evaluation_agent_steps for r in runs} == {250_000}
  names = {r.replay_dir.rpartition('/')[2] for r in runs if r.game == 'hopper'}
  assert names == {
    f'hopper_{name}.hdf5'
    for name in ('random', 'medium', 'mixed', 'medium_expert', 'expert')
  }
  assert grid.Sweep().store_bytes(runs[0]) == 0


def test_a_variant_is_named_on_whichever_runner_there_is(clear_gin):
  cli.load_gin(
    ['sweeps/brac_mujoco.gin'],
    [
      "Sweep.methods = ['brac_dr3']",
      "Sweep.variants = {'c0_1': ['FeatureDotPenalty.coefficient = 1.0']}",
    ],
  )
  run = grid.Sweep().runs()[0]
  assert run.method == 'brac_dr3_c0_1'
  assert "ContinuousRunner.method = 'brac_dr3_c0_1'" in run.gin_bindings


def test_what_binds_no_runner_is_no_run(make_sweep):
  with pytest.raises(errors.ConfigError, match='no method of a runner'):
    make_sweep(gin_files=['atari/protocol.gin'], gin_bindings=[]).runs()


def test_a_missing_include_names_who_includes_it(tmp_path):
  (tmp_path / 'top.gin').write_text("include 'gone.gin'\n")
  with pytest.raises(errors.ConfigError, match=r"top.gin:1: .*'gone.gin'"):
    gin_files.read_bindings([str(tmp_path / 'top.gin')])


def test_the_report_reads_the_tree_of_a_sweep(make_sweep, write_run, tmp_path):
  runs = make_sweep().runs()
  for run in runs:
    write_run(run, steps=(0, 100), finished=True)
  found = run_reader.load([f'{tmp_path}/**'])
  assert {(r.setting.game, r.method) for r in found.runs} == {
    (run.game, run.method) for run in runs
  }
  assert not found.skipped


def test_the_size_of_a_log_is_derived_from_data_that_can_be_seen(
  make_sweep, tmp_path
):
  sizes = {'row_bytes': None, 'log_rows': None}
  run = make_sweep(**sizes, replay_dir=None).runs()[0]
  # 84 x 84 bytes, an action and a reward of 4 each, a terminal of 1.
  assert make_sweep(**sizes).store_bytes(run) == 50_000_000 * 7065
  sweep = make_sweep(**sizes, replay_dir=str(tmp_path))
  run = sweep.runs()[0]
  with pytest.raises(errors.ConfigError, match=r'bind Sweep\.row_bytes'):
    sweep.store_bytes(run)
  path = tmp_path / 'collection.json'
  path.write_text(
    '{"num_rows": 300, "game": {"observation_shape": [10, 10, 4]}}'
  )
  assert sweep.store_bytes(run) == 300 * 409
  path.write_text('{"num_rows": 300, "game": "hopper"}')
  assert sweep.store_bytes(run) == 0
  with pytest.raises(
    errors.ConfigError, match=r'Sweep\.log_rows is 0; it must'
  ):
    make_sweep(log_rows=0)
