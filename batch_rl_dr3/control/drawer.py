"""A drawer and an object to grasp, seen by a camera: COG's task, built in.

A gripper hangs above a table with a cabinet whose drawer holds a cube. The
drawer is closed when an episode begins, in the second task with a block before
it that keeps it shut; the reward is 1 at each step at which the cube is held
above the table, and 0 otherwise. The scripted policies below make the two
parts of the data of Singh et al. 2020 (COG, arXiv:2010.14500): prior data, in
which drawers are opened and closed and blocks moved but nothing is ever
rewarded, and task data, in which the cube is grasped from an open drawer. No
single trajectory opens and grasps, so a policy that does has put two parts
together.

  gymnasium.make('batch_rl_dr3/DrawerOpenGrasp-v0')      50 steps
  gymnasium.make('batch_rl_dr3/DrawerBlockedGrasp-v0')   80 steps

are known once this module is imported. It needs PyBullet, the extra `cog`, and
neither a robot's model nor a window: all shapes are boxes, and images come from
PyBullet's software renderer.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import math
import os
import tempfile
from typing import Any
import weakref

import gymnasium
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors

FloatArray = npt.NDArray[np.float32]

IMAGE_SIZE = 48
# Metres that an action of 1 moves the gripper, and steps of 1/240 s that it
# takes.
_STRIDE = 0.04
_SUBSTEPS = 24
# Where the fingers' tips may go, and how far above them the palm is.
_LOW = np.array([-0.2, -0.3, 0.02])
_HIGH = np.array([0.2, 0.14, 0.26])
_PALM = np.array([0.0, 0.0, 0.09])
_TRAVEL = 0.16  # Metres from closed to open.
_HANDLE = np.array([0.0, -0.045, 0.045])  # Of the closed drawer.
_DRAWER = np.array([0.0, 0.1, 0.04])  # The closed drawer's centre.
_BLOCK = np.array([0.0, -0.13, 0.045])  # Where a block keeps it shut.
_ASIDE = 0.14  # Metres from the middle at which a block is out of the way.
_HELD = 0.13  # The height of a cube that counts as grasped, in metres.

# Each box: position, size, colour. Sizes are full lengths in metres.
_Box = tuple[tuple[float, float, float], tuple[float, float, float], str]
_COLOURS = {
  'wood': '0.55 0.36 0.2 1',
  'pine': '0.9 0.75 0.5 1',
  'red': '0.85 0.1 0.1 1',
  'green': '0.1 0.7 0.2 1',
  'blue': '0.15 0.3 0.85 1',
  'dark': '0.15 0.15 0.18 1',
  'grey': '0.4 0.4 0.45 1',
  'table': '0.75 0.75 0.72 1',
}
_CABINET: Sequence[_Box] = (
  ((-0.115, 0.1, 0.05), (0.01, 0.2, 0.1), 'wood'),
  ((0.115, 0.1, 0.05), (0.01, 0.2, 0.1), 'wood'),
  ((0.0, 0.205, 0.05), (0.24, 0.01, 0.1), 'wood'),
  ((0.0, 0.1, 0.105), (0.24, 0.2, 0.01), 'wood'),
)
_DRAWER_BOXES: Sequence[_Box] = (
  ((0.0, 0.0, -0.03), (0.2, 0.19, 0.01), 'pine'),
  ((-0.1, 0.0, 0.0), (0.01, 0.19, 0.05), 'pine'),
  ((0.1, 0.0, 0.0), (0.01, 0.19, 0.05), 'pine'),
  ((0.0, 0.09, 0.0), (0.2, 0.01, 0.05), 'pine'),
  ((0.0, -0.09, 0.005), (0.2, 0.01, 0.06), 'pine'),
  ((0.0, -0.115, 0.0), (0.02, 0.05, 0.02), 'red'),
  ((0.0, -0.145, 0.01), (0.024, 0.024, 0.05), 'red'),
)


def _link(name: str, mass: float, boxes: Sequence[_Box]) -> str:
  shapes = ''.join(
    f'<{kind}><origin xyz="{x} {y} {z}"/><geometry>'
    f'<box size="{a} {b} {c}"/></geometry>'
    + (
      f'<material name="{colour}"><color rgba="{_COLOURS[colour]}"/></material>'
      if kind == 'visual'
      else ''
    )
    + f'</{kind}>'
    for (x, y, z), (a, b, c), colour in boxes
    for kind in ('visual', 'collision')
  )
  inertia = max(mass, 0.01) * 1e-3
  return (
    f'<link name="{name}"><inertial><mass value="{mass}"/><inertia '
    f'ixx="{inertia}" iyy="{inertia}" izz="{inertia}" ixy="0" ixz="0" '
    f'iyz="0"/></inertial>{shapes}</link>'
  )


def _joint(
  child: str, origin: str, axis: str, lower: float, upper: float
) -> str:
  return (
    f'<joint name="{child}_slide" type="prismatic"><parent link="base"/>'
    f'<child link="{child}"/><origin xyz="{origin}"/><axis xyz="{axis}"/>'
    f'<limit lower="{lower}" upper="{upper}" effort="100" velocity="2"/>'
    '</joint>'
  )


def _models() -> dict[str, str]:
  finger: Sequence[_Box] = (((0.0, 0.0, -0.035), (0.012, 0.024, 0.07), 'dark'),)
  half = {
    'cabinet': _link('base', 0.0, _CABINET)
    + _link('drawer', 0.3, _DRAWER_BOXES)
    + _joint('drawer', ' '.join(map(str, _DRAWER)), '0 -1 0', 0.0, _TRAVEL),
    'gripper': _link('base', 1.0, [((0, 0, 0), (0.13, 0.03, 0.03), 'grey')])
    + _link('left', 0.1, finger)
    + _link('right', 0.1, finger)
    + _joint('left', '0 0 -0.02', '-1 0 0', 0.006, 0.05)
    + _joint('right', '0 0 -0.02', '1 0 0', 0.006, 0.05),
    'cube': _link('base', 0.05, [((0, 0, 0), (0.036, 0.036, 0.036), 'green')]),
    'block': _link('base', 0.15, [((0, 0, 0), (0.05, 0.05, 0.09), 'blue')]),
    'table': _link('base', 0.0, [((0, 0, -0.05), (1.2, 1.2, 0.1), 'table')]),
  }
  return {
    name: f'<?xml version="1.0"?><robot name="{name}">{text}</robot>'
    for name, text in half.items()
  }


class DrawerEnv(gymnasium.Env[npt.NDArray[np.uint8], FloatArray]):
  """The task as a gymnasium environment.

  Observations are images, uint8 [48, 48, 3]. Actions are float32 [4] in
  [-1, 1]: the gripper's movement along x, y and z, and whether its fingers
  are closed (above 0) or open. An episode ends by its time limit alone, as in
  COG.
  """

  metadata = {'render_modes': ['rgb_array'], 'render_fps': 10}
  observation_space = gymnasium.spaces.Box(
    0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8
  )
  action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

  def __init__(self, start: str = 'closed', render_mode: str | None = None):
    """Creates the scene.

    Args:
      start: of an episode: 'closed', 'blocked' (closed, and a block before the
        drawer), 'open', or 'aside' (closed, the block out of the way).
      render_mode: None or 'rgb_array'.

    Raises:
      ConfigError: if PyBullet is not installed, or there is no such start.
    """
    if start not in ('closed', 'blocked', 'open', 'aside'):
      raise errors.ConfigError(
        f'the drawer starts closed, blocked, open or aside, not {start!r}.'
      )
    try:
      import pybullet
      from pybullet_utils import bullet_client
    except ImportError as error:
      raise errors.ConfigError(
        f'the drawer needs PyBullet: pip install "batch-rl-dr3[cog]" ({error}).'
      ) from error
    self._start = start
    self.render_mode = render_mode
    self._client = bullet_client.BulletClient(pybullet.DIRECT)
    # At the process' end, too, before PyBullet itself is taken down.
    self._disconnect = weakref.finalize(
      self, lambda client: client.disconnect(), self._client
    )
    self._view = self._client.computeViewMatrix(
      (0.0, -0.5, 0.5), (0.0, -0.04, 0.06), (0.0, 0.0, 1.0)
    )
    self._projection = self._client.computeProjectionMatrixFOV(
      48.0, 1.0, 0.05, 2.0
    )
    self._load()

  def _load(self) -> None:
    client = self._client
    client.setGravity(0, 0, -9.81)
    ids = {}
    with tempfile.TemporaryDirectory() as folder:
      for name, text in _models().items():
        path = os.path.join(folder, f'{name}.urdf')
        with open(path, 'w') as file:
          file.write(text)
        ids[name] = client.loadURDF(
          path, useFixedBase=name in ('cabinet', 'table')
        )
    self._ids = ids
    for name, friction in (('cube', 1.5), ('block', 1.2)):
      client.changeDynamics(ids[name], -1, lateralFriction=friction)
    client.changeDynamics(ids['cabinet'], 0, lateralFriction=0.8)
    for finger in (0, 1):
      client.changeDynamics(ids['gripper'], finger, lateralFriction=2.0)
    self._hand = client.createConstraint(
      *(ids['gripper'], -1, -1, -1, client.JOINT_FIXED),
      *((0, 0, 0), (0, 0, 0), (0, 0, 0.3)),
    )

  # What the scripted policies see.

  @property
  def tip(self) -> npt.NDArray[np.float64]:
    """Where the fingers' tips are, float64 [3], in metres."""
    position, _ = self._client.getBasePositionAndOrientation(
      self._ids['gripper']
    )
    return np.array(position) - _PALM

  @property
  def opening(self) -> float:
    """How far the drawer is open, in metres."""
    return float(self._client.getJointState(self._ids['cabinet'], 0)[0])

  @property
  def handle(self) -> npt.NDArray[np.float64]:
    """Where the drawer's handle is, float64 [3], in metres."""
    return _HANDLE - np.array([0.0, self.opening, 0.0])

  def position(self, name: str) -> npt.NDArray[np.float64]:
    """Returns where the 'cube' or the 'block' is, float64 [3], in metres."""
    position, _ = self._client.getBasePositionAndOrientation(self._ids[name])
    return np.array(position)

  @property
  def is_blocked(self) -> bool:
    """Whether the block keeps the drawer shut."""
    x, y, _ = self.position('block')
    return bool(abs(x) < _ASIDE and -0.3 < y < 0.0)

  @property
  def is_grasped(self) -> bool:
    """Whether the cube is held above the table."""
    cube = self.position('cube')
    return bool(cube[2] > _HELD and np.linalg.norm(cube - self.tip) < 0.06)

  # gymnasium's methods.

  def reset(
    self, *, seed: int | None = None, options: dict[str, Any] | None = None
  ) -> tuple[Any, dict[str, Any]]:
    """See gymnasium."""
    super().reset(seed=seed)
    client, ids, random = self._client, self._ids, self.np_random
    opening = _TRAVEL if self._start == 'open' else 0.0
    client.resetJointState(ids['cabinet'], 0, opening)
    inside = random.uniform((-0.045, -0.035, 0.0), (0.045, 0.035, 0.0))
    self._place('cube', _DRAWER + inside - np.array([0, opening, 0.012]))
    side = random.choice((-1.0, 1.0))
    block = {
      'blocked': _BLOCK + random.uniform((-0.03, 0, 0), (0.03, 0, 0)),
      'aside': _BLOCK + side * random.uniform((0.16, 0, 0), (0.18, 0, 0)),
    }.get(self._start, np.array([0.0, 3.0, 0.045]))
    self._place('block', block)
    self._target = random.uniform((-0.1, -0.25, 0.18), (0.1, -0.1, 0.24))
    self._place('gripper', self._target + _PALM)
    for finger in (0, 1):
      client.resetJointState(ids['gripper'], finger, 0.05)
    self._move(is_closed=False)
    return self._observe(), self._info()

  def step(
    self, action: FloatArray
  ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    """See gymnasium."""
    movement = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
    # From where the gripper is: pushing against a wall winds nothing up.
    self._target = np.clip(self.tip + _STRIDE * movement[:3], _LOW, _HIGH)
    self._move(is_closed=bool(movement[3] > 0))
    info = self._info()
    return self._observe(), float(info['success']), False, False, info

  def render(self) -> npt.NDArray[np.uint8]:
    """Returns what the camera sees, uint8 [240, 240, 3]."""
    return self._image(240)

  def close(self) -> None:
    """Ends the simulation."""
    self._disconnect()

  def _place(self, name: str, position: Sequence[float]) -> None:
    self._client.resetBasePositionAndOrientation(
      self._ids[name], position, (0, 0, 0, 1)
    )
    self._client.resetBaseVelocity(self._ids[name], (0, 0, 0), (0, 0, 0))

  def _move(self, is_closed: bool) -> None:
    client, ids = self._client, self._ids
    # A block that is in the way holds the drawer; else it slides with friction.
    client.setJointMotorControl2(
      *(ids['cabinet'], 0, client.VELOCITY_CONTROL),
      targetVelocity=0.0,
      force=1000.0 if self.is_blocked else 1.0,
    )
    client.setJointMotorControlArray(
      *(ids['gripper'], (0, 1), client.POSITION_CONTROL),
      targetPositions=[0.006 if is_closed else 0.05] * 2,
      forces=[25.0, 25.0],
    )
    start = self.tip
    for i in range(_SUBSTEPS):
      # Two thirds of the time to get there, the rest to come to rest.
      share = min(1.0, 1.5 * (i + 1) / _SUBSTEPS)
      client.changeConstraint(
        self._hand,
        start + share * (self._target - start) + _PALM,
        (0, 0, 0, 1),
        maxForce=80.0,
      )
      client.stepSimulation()

  def _info(self) -> dict[str, Any]:
    return {'success': self.is_grasped, 'opening': self.opening}

  def _observe(self) -> npt.NDArray[np.uint8]:
    return self._image(IMAGE_SIZE)

  def _image(self, size: int) -> npt.NDArray[np.uint8]:
    *_, pixels, _, _ = self._client.getCameraImage(
      *(size, size, self._view, self._projection),
      shadow=0,
      renderer=self._client.ER_TINY_RENDERER,
      flags=self._client.ER_NO_SEGMENTATION_MASK,
    )
    return np.reshape(np.asarray(pixels, np.uint8), (size, size, 4))[..., :3]


# Scripted policies: a list of stages, each a place to go to, whether the
# fingers are closed there, and the number of steps to stay.
_Stage = tuple[Callable[[DrawerEnv], npt.NDArray[np.float64]], bool, int]


def _grasp(
  where: Callable[[DrawerEnv], npt.NDArray[np.float64]], depth: float
) -> list[_Stage]:
  """Returns the stages that take hold of a thing from above."""

  def above(env: DrawerEnv) -> npt.NDArray[np.float64]:
    x, y, _ = where(env)
    return np.array([x, y, 0.19])

  def at(env: DrawerEnv) -> npt.NDArray[np.float64]:
    return where(env) + np.array([0.0, 0.0, depth])

  return [(above, False, 0), (at, False, 0), (at, True, 2)]


def _stay(env: DrawerEnv) -> npt.NDArray[np.float64]:
  return env.tip


def _up(env: DrawerEnv) -> npt.NDArray[np.float64]:
  return np.array([*env.tip[:2], 0.22])


def _slide(opening: float) -> list[_Stage]:
  def to(env: DrawerEnv) -> npt.NDArray[np.float64]:
    return _HANDLE - np.array([0.0, opening, 0.01])

  return [
    *_grasp(lambda env: env.handle, -0.01),
    (to, True, 0),
    (_stay, False, 2),
    (_up, False, 0),
  ]


def _clear() -> list[_Stage]:
  def lifted(env: DrawerEnv) -> npt.NDArray[np.float64]:
    return np.array([*env.tip[:2], 0.12])

  def aside(height: float, env: DrawerEnv) -> npt.NDArray[np.float64]:
    side = math.copysign(0.18, env.tip[0])
    return np.array([side, _BLOCK[1], height])

  return [
    *_grasp(lambda env: env.position('block'), 0.0),
    (lifted, True, 0),
    (functools.partial(aside, 0.12), True, 0),
    (functools.partial(aside, 0.05), True, 0),
    (_stay, False, 2),
    (_up, False, 0),
  ]


SCRIPTS: dict[str, Callable[[], list[_Stage]]] = {
  'open': lambda: _slide(_TRAVEL),
  'close': lambda: _slide(0.0),
  'clear': _clear,
  'grasp': lambda: [
    *_grasp(lambda env: env.position('cube'), 0.0),
    (_up, True, 100),
  ],
}


def scripted_actions(
  env: DrawerEnv,
  names: Sequence[str],
  random: np.random.Generator,
  noise: float = 0.1,
) -> Iterator[FloatArray]:
  """Yields the actions of scripts, one after another, then those of rest.

  Args:
    env: where they are played, read at every step.
    names: of SCRIPTS.
    random: draws the noise.
    noise: standard deviation of what is added to the movement.
  """
  for stage in (stage for name in names for stage in SCRIPTS[name]()):
    where, is_closed, num_steps = stage
    remaining = num_steps
    for _ in range(25 + num_steps):
      away = where(env) - env.tip
      if np.abs(away).max() < 0.008:
        if remaining <= 0:
          break
        remaining -= 1
      yield _action(away / _STRIDE, is_closed, random, noise)
  while True:
    yield _action(np.zeros(3), False, random, noise)


def _action(
  movement: npt.NDArray[np.float64],
  is_closed: bool,
  random: np.random.Generator,
  noise: float,
) -> FloatArray:
  noisy = movement + noise * random.standard_normal(3)
  grip = (1.0 if is_closed else -1.0) * random.uniform(0.5, 1.0)
  # As COG's collector: a policy's tanh cannot reach 1.
  return np.clip([*noisy, grip], -0.9, 0.9).astype(np.float32)


for _name, _start, _num_steps in (
  ('DrawerOpenGrasp', 'closed', 50),
  ('DrawerBlockedGrasp', 'blocked', 80),
):
  gymnasium.register(
    f'batch_rl_dr3/{_name}-v0',
    entry_point=f'{__name__}:DrawerEnv',
    max_episode_steps=_num_steps,
    kwargs={'start': _start},
  )
