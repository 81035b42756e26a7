import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import reference, words
from batch_rl_dr3.reporting import study as study_lib


def test_random_play_is_0_and_the_reference_1():
  games = ('Pong', 'Breakout')
  points = np.array([[[-20.7, 15.9], [1.7, 93.9]]])
  np.testing.assert_allclose(
    reference.Normalisation('dqn')(points, games), [[[0, 1], [0, 1]]]
  )
  points = np.array([[14.6, 30.5]])
  np.testing.assert_allclose(
    reference.Normalisation('human')(points, games), [[1, 1]]
  )


def test_normalisation_by_hand():
  # Asterix: (1473.35 - 210) / (2736.7 - 210) = 1263.35 / 2526.7.
  scores = reference.Normalisation()(np.array([[1473.35]]), ('Asterix',))
  np.testing.assert_allclose(scores, 0.5)


def test_every_game_of_the_study_has_scores_and_a_rom():
  games = {game for study in study_lib.PRESETS.values() for game in study.games}
  assert games == set(reference.scores().index)
  assert all(map(reference.legacy_rom, study_lib.PRESETS['dr3_atari17'].games))


def test_minatar_by_hand():
  # Breakout of MinAtar: (3.573445 - 0.499556) / (6.647335 - 0.499556) = 1 / 2.
  scores = reference.Normalisation()(np.array([[3.573445]]), ('breakout',))
  np.testing.assert_allclose(scores, 0.5, rtol=1e-6)
  with pytest.raises(errors.UsageError, match='no human score of breakout'):
    reference.Normalisation('human')(np.ones((1, 1)), ('breakout',))


def test_the_papers_table():
  published = reference.published()
  assert len(published) == 12
  assert published['5pct', 'cql_dr3', 'average'] == reference.Published(
    105.7, 101.9, 110.9
  )
  assert published['first10pct', 'rem_dr3', 'average'].high == 78.0
  assert ('5pct', 'cql_dr3', 'final') not in published
  for number in published.values():
    assert number.low <= number.iqm <= number.high


def test_roms_are_found_under_both_spellings():
  # md5 of space_invaders.bin in atari-py 0.2.5; ale-py ships another.
  expected = '61dbe94f110f30ca4ec524ae5ce2d026'
  assert reference.legacy_rom('SpaceInvaders') == expected
  assert reference.legacy_rom('space_invaders') == expected
  assert reference.legacy_rom('Haunted') is None


def test_presets_have_names():
  assert study_lib.PRESETS['dr3_atari17'].num_runs == 5
  assert words.dataset_name('first10pct') == 'first 10%'
  assert words.dataset_name('other') == 'other'
