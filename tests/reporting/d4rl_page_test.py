"""The page of continuous control: numbers by hand beside the paper's."""

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import page, reference, run_reader, tables


@pytest.fixture
def collection(make_run, tmp_path):
  def run(method, game, dataset, end, scale, seed=0, **kwargs):
    return make_run(
      method,
      returns={10: [0.0], 20: [end - 1, end + 1]},
      name=f'{method}_{game}_{seed}',
      suite='d4rl',
      game=game,
      dataset=dataset,
      seed=seed,
      protocol={'scale': scale},
      **kwargs,
    )

  run('cql', 'antmaze-medium-play', 'minari', 0.5, [0.0, 1.0])
  run('cql_dr3', 'antmaze-medium-play', 'minari', 0.75, [0.0, 1.0])
  run('cql_dr3', 'kitchen-mixed', 'minari', 1.0, [0.0, 4.0])
  run('cql_dr3', 'kitchen-mixed', 'minari', 2.0, [0.0, 4.0], seed=1)
  run('brac', 'hopper', 'medium', 500.0, [0.0, 2000.0])
  run('brac_dr3', 'hopper', 'medium', 700.0, [0.0, 2000.0])
  run('brac', 'walker2d', 'medium', 9.0, [0.0, 10.0], finished=False)
  return run_reader.load([str(tmp_path / 'runs' / '*')])


def test_table_2(collection):
  frame = tables.table_2(collection.runs).frame.set_index('game')
  assert len(frame) == 7
  play = frame.loc['antmaze-medium-play']
  assert (play['cql_mean'], play['cql_dr3_mean']) == (0.5, 0.75)
  assert (play['paper_cql_mean'], play['paper_cql_dr3_mean']) == (0.5, 0.4)
  # 25 and 50 percent: 37.5 on average, 12.5 away from either.
  mixed = frame.loc['kitchen-mixed']
  assert (mixed['cql_dr3_mean'], mixed['cql_dr3_deviation']) == (37.5, 12.5)
  assert mixed['cql_dr3_runs'] == 2
  assert mixed['cql_runs'] == 0


def test_brac(collection):
  table = tables.brac_table(collection.runs)
  frame = table.frame.set_index('game')
  hopper = frame.loc['hopper']
  assert (hopper['base_mean'], hopper['dr3_mean']) == (25.0, 35.0)
  assert hopper['gain'] == 10.0
  assert frame.loc['walker2d', 'base_runs'] == 0  # Not finished.
  assert 'over 1: +10.00 (25.00 and 35.00)' in table.caption


def test_games_may_differ_in_their_scale(collection):
  assert reference.differences(collection.runs) == []


def test_the_page(collection):
  html, content = page.make(collection, page.Options(preset='dr3_d4rl'))
  assert '37.50 ± 12.50' in html
  assert [table.name for table in content.tables][:2] == ['table_2', 'brac']


def test_other_runs_are_refused(make_run, tmp_path):
  make_run('cql', returns={10: [1.0]})
  runs = run_reader.load([str(tmp_path / 'runs' / '*')])
  with pytest.raises(errors.DataError, match='continuous control'):
    page.control_content('dr3_d4rl', runs)
