import dataclasses

import numpy as np
import pandas as pd
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import run_reader
from batch_rl_dr3.reporting import study as study_lib

# Two runs, four games, three steps: 0, 1, 2, ... 23.
_VALUES = np.arange(24.0).reshape(2, 4, 3)
_REM = ('5pct', 'rem')


def _without(collection, *names):
  return dataclasses.replace(
    collection, runs=tuple(r for r in collection.runs if r.name not in names)
  )


def _changed(collection, name, **changes):
  runs = tuple(
    dataclasses.replace(run, **changes) if run.name == name else run
    for run in collection.runs
  )
  return dataclasses.replace(collection, runs=runs)


def test_a_whole_cell_is_the_array(make_collection, small_study):
  made = study_lib.select_runs(small_study, make_collection({_REM: _VALUES}))
  cell = made.scores(*_REM)
  assert cell.games == small_study.games
  assert cell.lacks == ()
  np.testing.assert_array_equal(cell.steps, [100, 200, 300])
  np.testing.assert_array_equal(cell.values, _VALUES)
  np.testing.assert_array_equal(
    study_lib.measure(cell, 'average'), _VALUES.mean(axis=2)
  )
  np.testing.assert_array_equal(
    study_lib.measure(cell, 'final'), _VALUES[..., 2]
  )
  assert made.lines == [_REM]
  assert made.scores('5pct', 'rem_dr3') is None


def test_missing_runs_leave_the_largest_block(make_collection, small_study):
  whole = make_collection({_REM: _VALUES})
  # Pong has one run: 3 games x 2 runs are more than 4 games x 1.
  made = study_lib.select_runs(small_study, _without(whole, '5pct/rem/Pong/1'))
  cell = made.scores(*_REM)
  assert cell.games == ('Asterix', 'Breakout', 'Qbert')
  np.testing.assert_array_equal(cell.values, _VALUES[:, [0, 1, 3]])
  assert cell.lacks == (
    '3 of 4 games',
    '1 left out where games have more runs',
  )
  # Three games have one run: 4 games x 1 are more than 1 x 2.
  names = [f'5pct/rem/{game}/1' for game in small_study.games[1:]]
  cell = study_lib.select_runs(small_study, _without(whole, *names)).scores(
    *_REM
  )
  assert (cell.num_runs, len(cell.games)) == (1, 4)
  assert cell.lacks[0] == '1 of 2 runs of each'


def test_unfinished_runs_have_curves_and_no_scores(
  make_collection, small_study
):
  whole = make_collection({_REM: _VALUES}, finished=False)
  runs = tuple(
    dataclasses.replace(run, evaluations=run.evaluations.loc[:200])
    for run in whole.runs
  )
  made = study_lib.select_runs(
    small_study, dataclasses.replace(whole, runs=runs)
  )
  assert made.scores(*_REM) is None
  curve = made.curve('5pct', 'rem', run_reader.RETURN)
  np.testing.assert_array_equal(curve.values, _VALUES[..., :2])
  assert 'no run has finished' in curve.lacks
  assert 'up to 0.0002M of 0.0003M gradient steps' in curve.lacks
  assert made.count('5pct', 'rem', 'Pong') == (0, 2)


def test_a_run_that_reached_the_end_needs_no_word_that_it_finished(
  make_collection, small_study
):
  made = study_lib.select_runs(
    small_study, make_collection({_REM: _VALUES}, finished=False)
  )
  assert made.scores(*_REM).lacks == ()


def test_a_shorter_run_is_finished_at_its_own_end(make_collection, small_study):
  whole = make_collection({_REM: _VALUES})
  short = whole.runs[0].evaluations.loc[:200]
  made = study_lib.select_runs(
    small_study, _changed(whole, '5pct/rem/Asterix/0', evaluations=short)
  )
  cell = made.scores(*_REM)
  np.testing.assert_array_equal(cell.steps, [100, 200])
  assert cell.lacks == ('up to 0.0002M of 0.0003M gradient steps',)


def test_what_comes_after_the_studys_end_does_not_count(
  make_collection, small_study
):
  whole = make_collection({_REM: _VALUES})
  runs = []
  for run in whole.runs:
    later = pd.DataFrame(
      {'return': [999.0], 'episodes': 1, 'truncated': 0}, index=[400]
    )
    longer = pd.concat([run.evaluations, later])
    runs.append(dataclasses.replace(run, evaluations=longer))
  made = study_lib.select_runs(
    small_study, dataclasses.replace(whole, runs=tuple(runs))
  )
  np.testing.assert_array_equal(made.scores(*_REM).values, _VALUES)


def test_what_is_not_finite_is_left_out_and_named(make_collection, small_study):
  rank = _VALUES.copy()
  rank[0, 0, 1] = np.inf
  made = study_lib.select_runs(
    small_study,
    make_collection({_REM: _VALUES}, metrics={run_reader.EFFECTIVE_RANK: rank}),
  )
  curve = made.curve('5pct', 'rem', run_reader.EFFECTIVE_RANK)
  np.testing.assert_array_equal(curve.steps, [100, 300])
  assert curve.lacks == ('1 steps are not finite',)


def test_runs_that_share_no_step(make_collection, small_study):
  whole = make_collection({_REM: _VALUES})
  other = whole.runs[0].evaluations.set_axis([101, 201, 299])
  made = study_lib.select_runs(
    small_study, _changed(whole, '5pct/rem/Asterix/0', evaluations=other)
  )
  cell = made.scores(*_REM)
  assert cell.steps.size == 0
  assert 'no gradient step at which every run was measured' in cell.lacks


def test_long_curves_are_thinned_evenly(make_collection, small_study):
  values = np.tile(np.arange(300.0), (2, 4, 1))
  made = study_lib.select_runs(small_study, make_collection({_REM: values}))
  curve = made.curve('5pct', 'rem', run_reader.RETURN)
  assert len(curve.steps) == 50
  assert (curve.steps[0], curve.steps[-1]) == (1, 300)
  np.testing.assert_array_equal(curve.values[0, 0], curve.steps - 1)
  # Scores are not: an average is over every evaluation.
  assert len(made.scores(*_REM).steps) == 300


def test_runs_of_other_games_are_named_and_left_out(
  make_collection, small_study
):
  whole = make_collection({_REM: _VALUES, ('all', 'rem'): _VALUES[:1, :1]})
  name = '5pct/rem/Asterix/0'
  for setting, reason in (
    (run_reader.Setting('atari', 'Haunted', '5pct'), 'game Haunted'),
    (run_reader.Setting('minatar', 'Pong', '5pct'), 'suite minatar'),
    (run_reader.Setting('atari', 'Pong', ''), 'data set unknown'),
  ):
    made = study_lib.select_runs(
      small_study, _changed(whole, name, setting=setting)
    )
    assert made.strangers == (
      (name, reason),
      ('all/rem/Asterix/0', 'data set all'),
    )


def test_no_run_of_the_study(make_collection, small_study):
  collection = make_collection({('all', 'rem'): _VALUES})
  with pytest.raises(errors.DataError) as caught:
    study_lib.select_runs(small_study, collection)
  assert 'none of the 8 runs belongs to small' in str(caught.value)
  assert 'data set all' in str(caught.value)


def test_stability_by_hand():
  # Runs of one game: final 1 and 3, best 4 and 3, lost 1 and 0. Of two values
  # none is trimmed: 4 / 7, and a mean of 1 / 2.
  curves = np.array([[[2.0, 4.0, 3.0, 1.0]], [[0.0, 1.0, 2.0, 3.0]]])
  np.testing.assert_allclose(
    study_lib.stability_statistics(study_lib.stability(curves)), [4 / 7, 0.5]
  )
  worst = study_lib.stability_statistics(study_lib.stability(-1 - curves))
  assert np.isnan(worst[0])
