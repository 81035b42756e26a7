import os
import time

from batch_rl_dr3.reporting import page, run_reader, words


def _load(tmp_path):
  return run_reader.load([str(tmp_path / 'runs' / '*')])


def _notes(tmp_path):
  return page.notes_of_runs(_load(tmp_path))


def test_one_game_one_seed(rem_pair):
  lines = page.notes_of_runs(run_reader.load([rem_pair]))
  assert '\n'.join(lines) == (
    'One game, one seed: this shows that the machinery works; it is not '
    'evidence about the methods.\n'
    'Not finished: rem_dr3. The report shows unfinished runs as far as they '
    'are.\n'
    'breakout, 10pct: the last returns are at different gradient steps (REM '
    'at 300, REM + DR3 at 200).\n'
    '1 of 10 evaluation episodes were cut short by a limit on steps; their '
    'returns count as they are.'
  )


def test_one_run_that_has_only_started(make_run, tmp_path):
  make_run('rem', finished=False)
  lines = _notes(tmp_path)
  assert 'One run: there is nothing to compare it with.' in lines
  assert 'rem has not been evaluated yet, so it has no return.' in lines
  assert 'rem has not logged any metrics yet.' in lines


def test_few_seeds(make_run, tmp_path):
  for seed in range(2):
    make_run('rem', name=f'rem{seed}', seed=seed, returns={1: [1]})
  (line,) = [x for x in _notes(tmp_path) if 'seeds' in x]
  assert line.startswith('As few as 2 seeds')
  make_run('cql', returns={1: [1]})
  (line,) = [x for x in _notes(tmp_path) if 'seed' in x]
  assert line.startswith('At least one method has one seed only')


def test_seeds_that_share_no_evaluation(make_run, tmp_path):
  make_run('rem', name='a', seed=0, returns={1: [1]})
  make_run('rem', name='b', seed=1, returns={2: [1]})
  assert (
    'breakout, 10pct: the seeds of REM were never evaluated at the same '
    'gradient step, so it has no score.'
  ) in _notes(tmp_path)


def test_what_is_not_finite_is_named(make_run, tmp_path):
  rows = [
    {'gradient_steps': 1000 * i, 'loss_bellman': value}
    for i, value in enumerate([1, 'nan', 'inf'], 1)
  ]
  make_run('rem', metrics=rows)
  assert (
    'rem: loss_bellman is not finite in 2 of 3 rows, first at gradient step '
    '2,000; the figures have a gap there, the tables a dash.'
  ) in _notes(tmp_path)


def test_assumed_gamma_and_unequal_versions(make_run, tmp_path):
  make_run('rem', protocol={})
  make_run('cql', versions={'tensorflow': '2.17'})
  lines = _notes(tmp_path)
  assert 'Gamma is not in the protocol of rem; 0.99 is assumed.' in lines
  assert any('different versions of software' in line for line in lines)


def test_files_from_the_future_are_named(make_run, tmp_path):
  folder = make_run('rem', returns={1: [1]})
  then = time.time() + 3600
  os.utime(folder / 'scores.csv', (then, then))
  (line,) = page.notes_of_files(_load(tmp_path))
  assert line.startswith('Files of rem are dated in the future')


def test_many_names_are_counted():
  names = [str(i) for i in range(14)]
  assert words.listed(names[:2]) == '0, 1'
  assert words.listed(names).endswith('11 and 2 more')


def test_a_score_that_wrapped_is_flagged(make_run):
  folder = make_run(
    'rem', returns={100: [21_000, 20_000], 200: [21_000, -983_500]}
  )
  (note,) = [n for n in _notes_of(folder) if 'wrapped' in n]
  assert 'returned -983,500 at gradient step 200' in note
  assert 'in 1 of 2 evaluations' in note
  other = make_run('cql', returns={100: [-20_000, -18_000]})  # Skiing's.
  assert not [n for n in _notes_of(other) if 'wrapped' in n]


def _notes_of(folder):
  return page.notes_of_runs(run_reader.load([str(folder)]))


def test_a_run_is_held_against_public_ones_of_its_settings(make_run, tmp_path):
  game = {'suite': 'atari', 'game': 'Breakout', 'dataset': '1pct'}
  make_run('cql', returns={6_500_000: [40.0, 38.0]}, **game)
  make_run('rem', returns={6_500_000: [2.0]}, **game)
  lines = [line for line in _notes(tmp_path) if 'public' in line]
  # QR-CQL's ten seeds: 37.5 to 41.7 on average, 21.9 to 51.7 there.
  assert [line.split(' at ')[0] for line in lines] == [
    'cql: its average',
    'cql: its score',
  ]
  assert all('within what one more of the ten public seeds' in x for x in lines)
  make_run('cql', returns={6_500_000: [2.0]}, name='qr_dqn', seed=1, **game)
  lines = [line for line in _notes(tmp_path) if 'public' in line]
  assert sum('points, outside what' in line for line in lines) == 1
