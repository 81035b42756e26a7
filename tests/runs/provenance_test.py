import json

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import provenance

CONFIG = """
# Parameters for Agent:
# =====
Agent.gamma = 0.99
Agent.penalties = \\
    [@FeatureDotPenalty()]
FixedReplayRunner.num_iterations = 4
"""
RECORD = {'seed': 0, 'data_hash': 'abc', 'command': ['train']}


def test_the_same_run_may_claim_its_directory_again(tmp_path):
  provenance.claim(tmp_path, CONFIG, RECORD)
  provenance.claim(tmp_path, CONFIG, {**RECORD, 'command': ['another']})
  record = json.loads((tmp_path / 'provenance.json').read_text())
  assert record['command'] == ['another']
  assert (tmp_path / 'config.gin').read_text() == CONFIG


def test_a_longer_run_is_the_same_run(tmp_path):
  provenance.claim(tmp_path, CONFIG, RECORD)
  provenance.claim(tmp_path, CONFIG.replace('= 4', '= 8'), RECORD)


@pytest.mark.parametrize(
  ('config', 'record', 'named'),
  [
    (
      CONFIG.replace('0.99', '0.9'),
      RECORD,
      'Agent.gamma is 0.99 there',
    ),
    (CONFIG.replace('@FeatureDotPenalty()', ''), RECORD, 'Agent.penalties'),
    (CONFIG + 'Agent.new = 1', RECORD, 'Agent.new is None there'),
    (CONFIG, {**RECORD, 'seed': 1}, 'seed is 0 there and 1'),
    (CONFIG, {**RECORD, 'data_hash': 'def'}, 'data_hash'),
  ],
)
def test_another_run_is_refused_and_the_difference_named(
  tmp_path, config, record, named
):
  provenance.claim(tmp_path, CONFIG, RECORD)
  with pytest.raises(errors.ConfigError, match=named):
    provenance.claim(tmp_path, config, record)
  assert (tmp_path / 'config.gin').read_text() == CONFIG


def test_a_run_of_other_numbers_is_another_run(tmp_path, monkeypatch):
  """A raised NUMBERS_VERSION refuses what was begun before, by its own name."""
  monkeypatch.setattr(provenance, 'NUMBERS_VERSION', 2)
  raised = {**RECORD, **provenance.of_process('cpu')}
  assert raised['numbers_version'] == 2
  # The first version is that of runs which do not say any.
  provenance.claim(tmp_path, CONFIG, RECORD)
  provenance.claim(tmp_path, CONFIG, {**RECORD, 'numbers_version': 1})
  before = (tmp_path / 'provenance.json').read_text()
  with pytest.raises(
    errors.ConfigError, match='numbers_version is 1 there and 2 here'
  ):
    provenance.claim(tmp_path, CONFIG, raised)
  assert (tmp_path / 'provenance.json').read_text() == before
  provenance.claim(tmp_path, CONFIG, raised, overwrite=True)
  provenance.claim(tmp_path, CONFIG, raised)


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
  provenance.claim(tmp_path, CONFIG, RECORD)
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'metrics.csv').write_text('x')
  (tmp_path / 'my_notes.txt').write_text('x')
  provenance.claim(tmp_path, 'Agent.gamma = 0.5', RECORD, overwrite=True)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'config.gin',
    'my_notes.txt',
    'provenance.json',
  ]


@pytest.mark.parametrize(
  ('path', 'expected'),
  [
    ('data/Pong/1', 1),
    ('data/Pong/5/replay_logs', 5),
    ('data/Pong/5/', 5),
    ('data/quickstart', None),
    ('gs://rl_unplugged/atari_episodes_ordered/Pong/run_3', 3),
    ('x/rlu_atari_checkpoints_ordered/Pong_run_2/1.1.0', 2),
  ],
)
def test_run_number(path, expected):
  assert provenance.run_number(path) == expected


def test_versions_name_the_stack():
  assert provenance.versions().keys() >= {'tensorflow', 'dopamine-rl', 'ale-py'}
