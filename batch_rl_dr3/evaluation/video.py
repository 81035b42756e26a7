"""A video of one evaluation episode, with what the network says of it.

Beside the newest observation stand the Q-value of every action and the feature
dot product phi(s_t)^T phi(s_t+1) of the states just passed.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.runs import atomic

_WIDTH, _HEIGHT = 854, 480
_SCREEN = 420  # Pixels of the side of the observation.
_MARGIN = 30
_PANEL = _SCREEN + 2 * _MARGIN  # Where the right half begins.
_PICTURES_PER_SECOND = 15  # Agent steps; Atari's real time at 4 frames each.
_HISTORY = 240  # Agent steps of the curve.
_WHITE, _GREY, _BLUE, _ORANGE = (
  (255, 255, 255),
  (150, 150, 150),
  (230, 150, 60),
  (40, 140, 255),
)
# One colour (blue, green, red) per channel of a MinAtar observation.
_PALETTE = np.array(
  [
    *((230, 150, 60), (40, 140, 255), (80, 200, 80), (80, 80, 240)),
    *((220, 120, 200), (120, 160, 190), (200, 120, 240), (160, 160, 160)),
    *((60, 220, 220), (230, 220, 90)),
  ],
  np.uint8,
)

Picture = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
# States -> Q-values [n, A] and features [n, D].
OutputsOf = Callable[[lanes_lib.FrameArray], tuple[_Floats, _Floats]]


@contextlib.contextmanager
def writing(
  path: str | os.PathLike[str], pictures_per_second: int = _PICTURES_PER_SECOND
) -> Iterator[Callable[[Picture], object]]:
  """Yields what adds a picture to an MP4, which appears at the end.

  WriteError if the file cannot be written.
  """
  atomic.make_directory(pathlib.Path(path).parent)
  with atomic.whole_path(path, ending='.mp4') as temporary:
    writer = cv2.VideoWriter(
      str(temporary),
      cv2.VideoWriter.fourcc(*'mp4v'),
      pictures_per_second,
      (_WIDTH, _HEIGHT),
    )
    if not writer.isOpened():
      raise OSError(0, 'OpenCV can open no video there')
    try:
      yield writer.write
    finally:
      writer.release()


@dataclasses.dataclass
class FilmedLane:
  """Lane 0 of some lanes, with a picture written of every step."""

  lanes: lanes_lib.Lanes
  outputs: OutputsOf
  write: Callable[[Picture], object]
  num_lanes = group_size = 1
  _features: _Floats | None = None
  _return: float = 0.0

  def __post_init__(self) -> None:
    lanes = self.lanes
    self.game, self.reset, self.close = lanes.game, lanes.reset, lanes.close
    self._dot_products: list[float] = []

  def act(self, states: lanes_lib.FrameArray) -> lanes_lib.IntArray:
    """Returns the greedy action and keeps what the network said."""
    before, self._state = self._features, states[0, ..., -1]
    q_values, self._features = self.outputs(states)
    self._q_values = q_values[0]
    if before is not None:
      self._dot_products.append(float(before[0] @ self._features[0]))
    return q_values.argmax(axis=1)

  def step(  # noqa: D102
    self, which: lanes_lib.IntArray, actions: lanes_lib.IntArray
  ) -> lanes_lib.Step:
    said = self._q_values, int(actions[0]), self._dot_products, self._return
    self.write(draw(self._state, *said))
    step = self.lanes.step(which, actions)
    self._return += float(step.rewards[0])
    return step


@dataclasses.dataclass
class FilmedEnvironment:
  """A simulated body's environment, with a picture written of every step."""

  environment: Any
  write: Callable[[Picture], object]
  _num_steps: int = 0
  _return: float = 0.0

  def reset(self, seed: int) -> tuple[Any, dict[str, Any]]:  # noqa: D102
    return self.environment.reset(seed=seed)

  def step(self, action: _Floats) -> tuple[Any, ...]:
    """Plays one step, after a picture; ConfigError if none can be drawn."""
    try:
      screen = self.environment.render()
    except Exception as error:  # Of any kind, where OpenGL is missing.
      raise errors.ConfigError(
        'the simulator cannot draw, perhaps for lack of an OpenGL driver: '
        'install libegl1 or libosmesa6 and set MUJOCO_GL to egl or osmesa; or '
        'evaluate without --video.'
      ) from error
    self.write(draw_body(screen, self._num_steps, self._return))
    result = self.environment.step(action)
    self._num_steps += 1
    self._return += float(result[1])
    return result


def draw_body(screen: Picture, step: int, episode_return: float) -> Picture:
  """Returns one picture, uint8 [480, 854, 3] in OpenCV's order of colours.

  The screen, uint8 [height, width, 3], is red first, as simulators draw it.
  """
  picture: Picture = np.full((_HEIGHT, _WIDTH, 3), 24, np.uint8)
  height, width = screen.shape[:2]
  scale = min(_SCREEN / height, (_WIDTH - 2 * _MARGIN) / width)
  width, height = int(width * scale), int(height * scale)
  left = (_WIDTH - width) // 2
  picture[_MARGIN : _MARGIN + height, left : left + width] = cv2.resize(
    screen[..., ::-1], (width, height), interpolation=cv2.INTER_AREA
  )
  text = f'step {step}   return {episode_return:.1f}'
  _write(picture, text, left, _HEIGHT - 10)
  return picture


def draw(
  observation: lanes_lib.FrameArray,
  q_values: _Floats,
  action: int,
  dot_products: list[float],
  episode_return: float,
) -> Picture:
  """Returns one picture, uint8 [480, 854, 3] in OpenCV's order of colours.

  The observation is uint8 [height, width] in 256 greys, or [height, width, C];
  of a vector every number is a bar, from its smallest in black.
  """
  picture: Picture = np.full((_HEIGHT, _WIDTH, 3), 24, np.uint8)
  side = slice(_MARGIN, _MARGIN + _SCREEN)
  picture[side, side] = cv2.resize(
    _colours(observation), (_SCREEN, _SCREEN), interpolation=cv2.INTER_NEAREST
  )
  step = f'step {len(dot_products)}   return {episode_return:g}'
  _write(picture, step, _MARGIN, _HEIGHT - 10)
  _draw_q_values(picture, q_values, action)
  _draw_dot_products(picture, dot_products[-_HISTORY:])
  return picture


def _colours(observation: lanes_lib.FrameArray) -> Picture:
  if observation.ndim == 1:
    reach = max(float(np.ptp(observation)), 1e-9)
    greys = (observation - observation.min()) / reach * 255.0
    observation = greys.astype(np.uint8)[:, None]
  if observation.ndim == 2:
    return np.repeat(observation[..., None], 3, axis=2)
  colours = _PALETTE[np.arange(observation.shape[2]) % len(_PALETTE)]
  # What lies in several channels has the colour of the last of them.
  return (observation[..., None] * colours).max(axis=2).astype(np.uint8)


def _draw_q_values(picture: Picture, q_values: _Floats, action: int) -> None:
  """Draws a bar per action, from the lowest Q-value to the highest."""
  _write(picture, 'Q by action (orange: done)', _PANEL, _MARGIN)
  top, height = _MARGIN + 10, 230
  row = height / len(q_values)
  low, high = float(q_values.min()), float(q_values.max())
  for i, value in enumerate(q_values):
    y = int(top + i * row)
    share = (float(value) - low) / max(high - low, 1e-9)
    cv2.rectangle(
      picture,
      (_PANEL + 30, y + 1),
      (_PANEL + 32 + int(200 * share), int(y + 0.8 * row)),
      _ORANGE if i == action else _BLUE,
      cv2.FILLED,
    )
    baseline = int(y + 0.5 * row + 4)
    _write(picture, str(i), _PANEL, baseline, 0.4)
    _write(picture, f'{value:.4g}', _PANEL + 245, baseline, 0.4)


def _draw_dot_products(picture: Picture, dot_products: list[float]) -> None:
  """Draws the curve of the feature dot product, from zero to its highest."""
  left, right, top, bottom = _PANEL, _WIDTH - _MARGIN, 330, 450
  now = f'{dot_products[-1]:.4g}' if dot_products else '-'
  _write(picture, f'feature dot product {now}', left, top - 20)
  cv2.rectangle(picture, (left, top), (right, bottom), _GREY, 1)
  if len(dot_products) < 2:
    return
  highest = max(*dot_products, 1e-9)
  _write(picture, f'{highest:.4g}', left + 4, top + 14, 0.4)
  x = np.linspace(left, right, len(dot_products))
  y = bottom - (bottom - top) * np.clip(dot_products, 0, None) / highest
  points = np.stack([x, y], axis=1).astype(np.int32)[None]
  cv2.polylines(picture, [points], False, _BLUE, 2, cv2.LINE_AA)


def _write(
  picture: Picture, text: str, x: int, y: int, scale: float = 0.55
) -> None:
  cv2.putText(
    picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, _WHITE, 1,
    cv2.LINE_AA,
  )  # fmt: skip
