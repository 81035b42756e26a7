"""Tests for scores.csv and metrics.csv."""

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import run_tables

IDENTITY = {
  **{'suite': 'x', 'game': 'y', 'method': 'z', 'dataset': '1pct'},
  **{'run': '1', 'seed': '0'},
}


def test_csv_log_appends_and_goes_back(tmp_path):
  path = tmp_path / 'metrics.csv'
  log = run_tables.CsvLog(path, ('step', 'loss'))
  for step in range(4):
    log.append({'step': step, 'loss': step / 2})
  log.keep(lambda row: int(row['step']) < 2)
  log.append({'step': 9, 'loss': None})
  assert path.read_text().splitlines() == [
    'step,loss',
    '0,0.0',
    '1,0.5',
    '9,',
  ]


def test_a_torn_row_is_left_out(tmp_path):
  path = tmp_path / 'metrics.csv'
  path.write_text('step,loss\n0,0.5\n1,0.')
  assert run_tables.read_rows(path) == [{'step': '0', 'loss': '0.5'}]


def test_reading_a_file_that_is_not_there_gives_no_rows(tmp_path):
  assert run_tables.read_rows(tmp_path / 'none.csv') == []


def test_replacing_is_all_or_nothing(tmp_path):
  path = tmp_path / 'scores.csv'
  log = run_tables.CsvLog(path, ('a',))
  log.replace([{'a': 1}, {'a': 2}])

  def broken():
    yield {'a': 3}
    raise KeyError('a')

  with pytest.raises(KeyError):
    log.replace(broken())
  assert path.read_text().splitlines() == ['a', '1', '2']
  assert [p.name for p in tmp_path.iterdir()] == ['scores.csv']


def episodes(*returns):
  return [run_tables.Episode(0, value, 3, False) for value in returns]


@pytest.fixture
def scores(tmp_path):
  """Two iterations of two and three episodes, after 10 gradient steps each."""
  log = run_tables.ScoreLog(tmp_path)
  log.append(IDENTITY, 0, 10, episodes(1.0, 2.0))
  log.append(IDENTITY, 1, 20, episodes(3.0, 4.0, 8.0))
  return log


def cut(tmp_path, num_lines):
  path = tmp_path / 'scores.csv'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[:num_lines]))
  return path


def test_the_final_return_is_the_mean_of_the_last_iteration(scores, tmp_path):
  assert scores.final_return() == (5.0, 3)
  assert run_tables.ScoreLog(tmp_path / 'none').final_return() is None


@pytest.mark.parametrize('num_lines', [4, 5])
def test_an_iteration_that_is_cut_is_not_whole(scores, tmp_path, num_lines):
  path = cut(tmp_path, num_lines)
  assert scores.iterations() == {0}
  assert scores.partial() == {1}
  with pytest.raises(errors.DataError, match=rf'{num_lines - 3} of 3 episodes'):
    run_tables.read_evaluations(path, IDENTITY)
  scores.append(IDENTITY, 1, 20, episodes(3.0, 4.0, 8.0))
  assert scores.iterations() == {0, 1}
  assert scores.final_return() == (5.0, 3)


def test_going_back_drops_an_iteration_that_is_cut(scores, tmp_path):
  path = cut(tmp_path, 5)
  scores.keep(20)
  assert len(path.read_text().splitlines()) == 3


def test_rows_that_do_not_say_how_many_they_are_still_read(tmp_path):
  path = tmp_path / 'scores.csv'
  columns = run_tables.SCORE_COLUMNS
  start = ','.join(IDENTITY.values())
  path.write_text(
    f'{",".join(columns)}\n{start},0,10,0,1.0,3,0\n{start},0,10,1,3.0,3,0\n'
  )
  assert run_tables.ScoreLog(tmp_path).iterations() == {0}
  table = run_tables.read_evaluations(path, IDENTITY)
  assert table.to_dict('records') == [
    {
      **{'gradient_steps': 10, 'return': 2.0, 'episodes': 2, 'truncated': 0},
      'lowest': 1.0,
    }
  ]
  # And go on in the same file.
  run_tables.ScoreLog(tmp_path).append(IDENTITY, 1, 20, episodes(5.0))
  assert run_tables.ScoreLog(tmp_path).iterations() == {0, 1}
  table = run_tables.read_evaluations(path, IDENTITY)
  assert table['return'].to_list() == [2.0, 5.0]


@pytest.mark.parametrize(
  ('line', 'told'),
  [
    (b'\xff,20', 'line 3: byte 20 is not UTF-8'),
    (b'\0,20', 'line 3: iteration is'),
    (b'x,20', "line 3: iteration is 'x', not a whole number"),
    (b',20', "line 3: iteration is '', not a whole number"),
    (b'-1,20', "line 3: iteration is '-1', not a whole number"),
    (b'1', "line 3: steps is '', not a whole number"),
    (b'1,20,3', 'line 3: 3 cells under a header of 2'),
  ],
)
def test_damage_of_rows_names_the_line(tmp_path, line, told):
  path = tmp_path / 'metrics.csv'
  path.write_bytes(b'iteration,steps\n0,0\n' + line + b'\n')
  with pytest.raises(errors.DataError, match=told) as raised:
    run_tables.read_rows(path, ('iteration', 'steps'))
  assert raised.value.exit_code == 65
  assert str(path) in str(raised.value)


@pytest.mark.parametrize(
  ('cell', 'told'),
  [
    (b'\xff', 'line 3: byte 28 is not UTF-8'),
    (b'x', "line 3: loss is 'x', not a number"),
    (b'0.1\n1e300,0.1', 'line 4: no gradient_steps'),
    (b'0.1\n-1,0.1', 'line 4: no gradient_steps'),
    (b'0.1\n2.5,0.1', 'line 4: no gradient_steps'),
  ],
)
def test_damage_of_columns_names_the_line(tmp_path, cell, told):
  path = tmp_path / 'metrics.csv'
  path.write_bytes(b'gradient_steps,loss\n0,0.5\n1,' + cell + b'\n')
  with pytest.raises(errors.DataError, match=told):
    run_tables.read_metrics(path, ('loss',))


def test_a_column_that_nobody_writes_is_not_dropped_silently(tmp_path):
  path = tmp_path / 'metrics.csv'
  path.write_text('step,xoss\n1,0.5\n')
  log = run_tables.CsvLog(path, ('step', 'loss'))
  with pytest.raises(errors.DataError, match="no column 'xoss' is known"):
    log.keep(lambda row: True)
