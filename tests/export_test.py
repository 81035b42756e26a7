"""Policies written for other programs, read back, and anybody's played."""

import json
import pathlib
import sys

import gin
import numpy as np
import pytest

import batch_rl_dr3
from batch_rl_dr3 import export
from batch_rl_dr3.config import errors, gin_files
from batch_rl_dr3.evaluation import exported, pool, targets
from batch_rl_dr3.runs import run_directory, run_tables
from batch_rl_dr3.training import discrete

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('tf2onnx')

STATES = np.random.default_rng(0).integers(
  0, 2, (10_000, 10, 10, 4, 1), np.uint8
)
RESULTS = {'q_values': (6,), 'action': ()}


@pytest.fixture(scope='module')
def expected(run_dir):
  """Q-values, features and actions of the run's newest checkpoint."""
  policy = batch_rl_dr3.load_policy(run_dir)
  q_values, features = policy.outputs(STATES)
  return q_values, features, q_values.argmax(axis=1)


@pytest.mark.parametrize('file_format', ['savedmodel', 'onnx'])
def test_a_policy_acts_alike_after_it_is_written_and_read(
  file_format, run_dir, expected, tmp_path
):
  path = export.export(str(run_dir), file_format, str(tmp_path))
  model = exported.Model(str(path), (10, 10, 4, 1), RESULTS)
  found = model(STATES)
  q_values, features, actions = expected
  np.testing.assert_array_equal(found['action'], actions)
  np.testing.assert_allclose(found['q_values'], q_values, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(found['features'], features, rtol=1e-4, atol=1e-6)
  model.close()
  # Once more, in the place of the first.
  assert export.export(str(run_dir), file_format, str(tmp_path)) == path
  assert {p.name for p in tmp_path.iterdir()} == {path.name, 'README.md'}


def test_safetensors_are_read_by_diagnose_and_by_their_own_library(
  run_dir, expected, tmp_path
):
  path = export.export(str(run_dir), 'safetensors', str(tmp_path))
  policy = batch_rl_dr3.load_policy(path)
  q_values, features = policy.outputs(STATES)
  np.testing.assert_array_equal(q_values.argmax(axis=1), expected[2])
  np.testing.assert_allclose(features, expected[1], rtol=1e-4, atol=1e-6)
  assert policy.network.num_actions == 6
  safetensors = pytest.importorskip('safetensors.numpy')
  weights = safetensors.load_file(path)
  # Five heads of six actions.
  assert {name: array.shape for name, array in weights.items()} == {
    'Conv.weight': (16, 4, 3, 3),
    'Conv.bias': (16,),
    'fully_connected.weight': (128, 1600),
    'fully_connected.bias': (128,),
    'fully_connected_1.weight': (30, 128),
    'fully_connected_1.bias': (30,),
  }


def test_the_card_says_what_the_run_is(run_dir, tmp_path):
  export.export(str(run_dir), 'safetensors', str(tmp_path))
  card = (tmp_path / 'README.md').read_text()
  provenance = json.loads((run_dir / run_directory.PROVENANCE).read_text())
  rows = run_tables.read_rows(run_dir / run_directory.SCORES)
  last = [float(r['return']) for r in rows if r['iteration'] == '1']
  for text in (
    '# rem_dr3 on breakout',
    '| gradient steps | 60 of 60 |',
    f'| return | {np.mean(last):.4g} | ',
    f'| {len(last)} |',
    '| DQN-normalised |',
    f'| SHA-256 | {provenance["data_hash"]} |',
    '| epsilon_eval | 0.001 |',
    'FixedReplayREMAgent.num_heads = 5',
    provenance['versions']['tensorflow'],
  ):
    assert text in card, text
  assert card.startswith('---\nlibrary_name: batch_rl_dr3\n')
  # Of a checkpoint that nobody has scored.
  scores = run_dir / run_directory.SCORES
  content = scores.read_bytes()
  scores.unlink()
  export.export(str(run_dir), 'safetensors', str(tmp_path))
  scores.write_bytes(content)
  assert 'has not been scored' in (tmp_path / 'README.md').read_text()


def test_what_cannot_be_exported_is_named(run_dir, tmp_path, monkeypatch):
  with pytest.raises(errors.DataError, match='no run directory and no che'):
    export.export(str(tmp_path), 'onnx', str(tmp_path / 'out'))
  monkeypatch.setitem(sys.modules, 'tf2onnx', None)
  with pytest.raises(errors.ConfigError, match=r'batch-rl-dr3\[export\]'):
    export.export(str(run_dir), 'onnx', str(tmp_path))


def write_onnx(path, shape, outputs, dtype='FLOAT'):
  """Writes a network whose outputs are constants times the states' sum."""
  from onnx import TensorProto, helper

  axes = list(range(1, len(shape) + 1))
  nodes = [
    helper.make_node('Cast', ['x'], ['f'], to=TensorProto.FLOAT),
    helper.make_node('ReduceMax', ['f'], ['s'], axes=axes, keepdims=0),
    helper.make_node('Unsqueeze', ['s', 'one'], ['u']),
  ]
  constants = [helper.make_tensor('one', TensorProto.INT64, [1], [1])]
  infos = []
  for name, row in outputs.items():
    constants.append(
      helper.make_tensor(f'{name}_row', TensorProto.FLOAT, [1, len(row)], row)
    )
    nodes.append(helper.make_node('Mul', ['u', f'{name}_row'], [name]))
    infos.append(
      helper.make_tensor_value_info(name, TensorProto.FLOAT, ['n', len(row)])
    )
  states = helper.make_tensor_value_info(
    'x', getattr(TensorProto, dtype), ['n', *shape]
  )
  graph = helper.make_graph(nodes, 'g', [states], infos, constants)
  model = helper.make_model(
    graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9
  )
  onnx.save(model, str(path))
  return str(path)


@pytest.mark.parametrize(
  ('shape', 'dtype'),
  [
    ((10, 10, 4, 1), 'UINT8'),
    ((10, 10, 4), 'FLOAT'),
    ((4, 10, 10), 'DOUBLE'),
    (('a', 'b', 'c'), 'FLOAT'),
  ],
)
def test_states_are_given_as_a_file_takes_them(shape, dtype, tmp_path):
  row = [0.0, 1.0, 0.0, 0.0, 3.0, 0.0]
  path = write_onnx(tmp_path / 'm.onnx', shape, {'out': row}, dtype)
  states = np.zeros((3, 10, 10, 4, 1), np.uint8)
  states[1, 2, 3, 1] = 2
  found = exported.Model(path, (10, 10, 4, 1), RESULTS)(states)
  np.testing.assert_array_equal(
    found['q_values'], np.outer([0, 2, 0], row).astype(np.float32)
  )


@pytest.mark.parametrize(
  ('shape', 'outputs', 'named'),
  [
    ((84, 84, 4), {'q_values': [0.0] * 6}, r'takes states \[84, 84, 4\]'),
    ((10, 10, 4), {'q_values': [0.0] * 18}, r'q_values \[18\].*game has \[6\]'),
    ((10, 10, 4), {'mine': [0.0] * 7}, r'q_values \[7\].*game has \[6\]'),
    ((10, 10, 4), {'a': [0.0], 'b': [0.0]}, 'gives a, b, none of which'),
  ],
)
def test_a_policy_of_another_game_is_named(shape, outputs, named, tmp_path):
  path = write_onnx(tmp_path / 'm.onnx', shape, outputs)
  with pytest.raises(errors.DataError, match=named):
    exported.Model(path, (10, 10, 4, 1), RESULTS)


def test_a_file_that_is_damaged_is_named(tmp_path):
  (tmp_path / 'saved_model.pb').write_bytes(b'x')
  (tmp_path / 'm.onnx').write_bytes(b'x')
  for path in (tmp_path, tmp_path / 'm.onnx'):
    assert pool.is_exported(str(path))
    with pytest.raises(errors.DataError, match='cannot be read'):
      exported.Model(str(path), (10, 10, 4, 1), RESULTS)


@pytest.mark.parametrize('file_format', ['savedmodel', 'onnx'])
def test_an_exported_policy_scores_what_its_run_scored(
  file_format, run_dir, tmp_path
):
  path = export.export(str(run_dir), file_format, str(tmp_path / 'exported'))
  gin.add_config_file_search_path(str(gin_files.shipped_configs()))
  target = targets.of_run(run_dir)
  scores = run_tables.read_rows(run_dir / run_directory.SCORES)
  evaluator = discrete.create_evaluator(target.setup())
  from batch_rl_dr3.games import play

  seed = play.evaluation_seed(3, 1)
  played = evaluator.evaluate(str(path), seed)
  assert [(e.episode_return, e.length) for e in played] == [
    (float(row['return']), int(row['length']))
    for row in scores
    if row['iteration'] == '1'
  ]
  evaluator.record_video(str(path), seed, str(tmp_path / 'one.mp4'))
  assert (tmp_path / 'one.mp4').stat().st_size > 1000
  evaluator.close()


def test_a_policy_without_features_is_not_filmed(run_dir, tmp_path):
  path = write_onnx(tmp_path / 'm.onnx', (10, 10, 4), {'q': [1.0] * 6})
  evaluator = discrete.create_evaluator(targets.of_run(run_dir).setup())
  with pytest.raises(errors.ConfigError, match=r"m\.onnx.*'features'"):
    evaluator.record_video(path, 0, str(tmp_path / 'one.mp4'))
  evaluator.close()


def test_the_digest_of_a_policy_is_part_of_what_its_scores_are(tmp_path):
  path = pathlib.Path(
    write_onnx(tmp_path / 'm.onnx', (10, 10, 4), {'q': [1.0] * 6})
  )
  target = targets.of_folder(path, tmp_path / 'out', '', {'method': 'x'}, 500)
  assert target.checkpoints[0].gradient_steps == 500
  assert len(target.provenance['policy_sha256']) == 64


@pytest.mark.slow
def test_the_commands_export_and_play(run_command, run_dir, tmp_path):
  done = run_command(
    'export', f'--checkpoint={run_dir}', f'--output_dir={tmp_path}/out'
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'{tmp_path}/out/saved_model\n'
  play_it = [
    *('evaluate', '--game=breakout', '--num_workers=1'),
    *('--method=mine', '--dataset=all'),
    '--gin_bindings=FixedReplayRunner.num_evaluation_agent_steps=40',
  ]
  wrong = write_onnx(tmp_path / 'm.onnx', (84, 84, 4), {'q': [1.0] * 6})
  done = run_command(
    *play_it, f'--policy={wrong}', f'--output_dir={tmp_path}/w'
  )
  assert done.returncode == 65
  assert 'takes states [84, 84, 4]' in done.stderr.splitlines()[-1]
  flags = [
    f'--policy={tmp_path}/out/saved_model',
    f'--output_dir={tmp_path}/scores',
  ]
  done = run_command(*play_it, *flags)
  assert done.returncode == 0, done.stderr
  (row, *_) = run_tables.read_rows(tmp_path / 'scores' / run_directory.SCORES)
  assert (row['game'], row['method']) == ('breakout', 'mine')
  assert row['gradient_steps'] == '62500'
  done = run_command(*play_it, *flags)
  assert done.stdout == 'Everything is evaluated already.\n'


@pytest.mark.parametrize(
  ('flags', 'code', 'named'),
  [
    (['--policy=nowhere'], 65, 'nowhere is no policy'),
    (['--policy=m.onnx'], 64, '--game or --gin_files is needed'),
    (['--policy=m.onnx', '--game=pong'], 64, '--output_dir is needed'),
  ],
)
def test_errors_of_a_policy_are_one_line_and_a_code(
  run_command, flags, code, named
):
  failed = run_command('evaluate', *flags)
  assert failed.returncode == code
  assert named in failed.stderr
  assert failed.stderr.count('\n') == 1
