import cv2
import gin
import numpy as np
import pytest

from batch_rl_dr3.agents import networks
from batch_rl_dr3.config import errors
from batch_rl_dr3.evaluation import evaluator as evaluator_lib
from batch_rl_dr3.evaluation import video
from batch_rl_dr3.games import minatar, play
from batch_rl_dr3.runs import atomic


@pytest.fixture
def evaluator():
  gin.clear_config()
  return evaluator_lib.GameEvaluator(
    minatar.create_minatar_lanes('breakout', num_lanes=2),
    networks.MinAtarNetwork,
    play.PlayRule(60, 0.1),
  )


@pytest.fixture
def prefix(session, tmp_path):
  """An untrained network's checkpoint."""
  import tensorflow as tf

  states = tf.compat.v1.placeholder(tf.uint8, (None, 10, 10, 4, 1))
  networks.MinAtarNetwork(6, num_atoms=3, seed=1, name='Online')(states)
  session.run(tf.compat.v1.global_variables_initializer())
  return tf.compat.v1.train.Saver().save(session, str(tmp_path / 'tf_ckpt-0'))


def pictures(path):
  capture = cv2.VideoCapture(str(path))
  while True:
    there, picture = capture.read()
    if not there:
      return
    yield picture


def test_a_video_shows_the_evaluations_first_episode(
  evaluator, prefix, tmp_path
):
  path = tmp_path / 'videos' / 'one.mp4'
  episode = evaluator.record_video(prefix, 5, path)
  assert episode == evaluator.evaluate(prefix, 5)[0]
  shown = list(pictures(path))
  assert len(shown) == episode.length
  assert shown[0].shape == (480, 854, 3)
  # The paddle is drawn in the lowest row of the screen, in channel 0's blue.
  lowest = shown[0][30 + 9 * 42 + 21, 30:450]
  assert (lowest.max(axis=1) > 120).mean() == pytest.approx(0.1, abs=0.03)
  assert [p.name for p in path.parent.iterdir()] == ['one.mp4']


def test_bars_show_the_order_of_the_q_values():
  picture = video.draw(
    np.zeros((84, 84), np.uint8),
    np.array([0.0, 2.0, 1.0], np.float32),
    action=2,
    dot_products=[1.0, 2.0],
    episode_return=3.0,
  )
  blue = (picture == video._BLUE).all(axis=2)
  orange = (picture == video._ORANGE).all(axis=2)
  # Bars of 0 %, 100 % and 50 % of 200 pixels, from column 510 on.
  row = 230 / 3
  assert blue[int(40 + 1.3 * row), 510:720].sum() == 203
  assert orange[int(40 + 2.3 * row), 510:720].sum() == 103
  assert blue[int(40 + 0.3 * row), 510:720].sum() == 3


def test_play_that_is_stopped_leaves_no_video(evaluator, prefix, tmp_path):
  path = tmp_path / 'one.mp4'
  with pytest.raises(errors.PreemptedError):
    evaluator.record_video(prefix, 5, path, should_stop=lambda: True)
  assert not path.exists()
  (tmp_path / 'file').write_text('')
  with pytest.raises(atomic.FileError, match='file'):
    evaluator.record_video(prefix, 5, tmp_path / 'file' / 'one.mp4')


class Body:
  """A simulated body that falls after three steps; every step earns 2."""

  def __init__(self, screen):
    self._screen = screen

  def reset(self, seed):
    return np.zeros(2), {'seed': seed}

  def step(self, action):
    return np.zeros(2), 2.0, True, False, {}

  def render(self):
    if self._screen is None:
      raise AttributeError('opengl_context')
    return self._screen


def test_a_video_of_a_body_shows_what_the_simulator_draws(tmp_path):
  screen = np.zeros((100, 200, 3), np.uint8)
  screen[..., 0] = 250  # Red.
  path = tmp_path / 'one.mp4'
  with video.writing(path) as write:
    filmed = video.FilmedEnvironment(Body(screen), write)
    assert filmed.reset(seed=3)[1] == {'seed': 3}
    for _ in range(3):
      assert filmed.step(np.zeros(1))[1] == 2.0
  shown = list(pictures(path))
  assert len(shown) == 3
  blue, green, red = shown[0][240, 427]
  assert red > 200
  assert max(blue, green) < 60


def test_a_simulator_that_cannot_draw_leaves_no_video(tmp_path):
  path = tmp_path / 'one.mp4'
  with (
    pytest.raises(errors.ConfigError, match='MUJOCO_GL'),
    video.writing(path) as write,
  ):
    video.FilmedEnvironment(Body(None), write).step(np.zeros(1))
  assert not list(tmp_path.iterdir())
