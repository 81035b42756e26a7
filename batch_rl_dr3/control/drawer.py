"""A drawer and an object to grasp, seen by a camera: COG's task, built in.

A gripper hangs above a table with a cabinet whose drawer holds a cube. The
drawer is closed when an episode begins, in the second task with a block before
it that keeps it shut; the reward is 1 at each step at which the cube is held
above the table, and 0 otherwise. Scripts make the two parts of the data of
Singh et al. 2020 (COG, arXiv:2010.14500): prior data, in which drawers are
opened and closed and blocks moved but nothing is ever rewarded, and task data,
in which the cube is grasped from an open drawer. No single trajectory opens and
grasps, so a policy that does has put two parts together.

  gymnasium.make('batch_rl_dr3/DrawerOpenGrasp-v0')      40 steps
  gymnasium.make('batch_rl_dr3/DrawerBlockedGrasp-v0')   60 steps

are known once this module is imported. It needs PyBullet, the extra `cog`, but
no window: images come from PyBullet's software renderer. Data are logged as
COG's authors log theirs: trajectories of one length, noise of 0.1 on actions
that stay in [-0.9, 0.9].
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import itertools
import math
import pathlib
from typing import Any
import weakref

import gin
import gymnasium
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.control import cog, tasks

FloatArray = npt.NDArray[np.float32]
_Vector = npt.NDArray[np.float64]

_IMAGE_SIZE = 48
_SCENE = pathlib.Path(__file__).with_name('scene')
# Metres that an action of 1 moves the gripper, and steps of 1/240 s that it
# takes.
_STRIDE = 0.05
_SUBSTEPS = 24
# Where the fingers' tips may go, and how far above them the palm is.
_LOW = np.array([-0.2, -0.3, 0.02])
_HIGH = np.array([0.2, 0.14, 0.2])
_PALM = np.array([0.0, 0.0, 0.09])
_TRAVEL = 0.16  # Metres from closed to open.
_HANDLE = np.array([0.0, -0.045, 0.045])  # Of the closed drawer.
_DRAWER = np.array([0.0, 0.1, 0.04])  # The closed drawer's centre.
_BLOCK = np.array([0.0, -0.13, 0.045])  # Where a block keeps it shut.
_ASIDE = 0.14  # Metres from the middle at which a block is out of the way.
_HOVER = 0.16  # The height that things are approached at, in metres.
_WANDER = 0.6  # Standard deviation of the actions of a gripper without work.
_HELD = 0.1  # The height of a cube that counts as grasped, in metres.


class DrawerEnv(gymnasium.Env[npt.NDArray[np.uint8], FloatArray]):
  """The task as a gymnasium environment.

  Observations are images, uint8 [48, 48, 3]. Actions are float32 [4] in
  [-1, 1]: the gripper's movement along x, y and z, and whether its fingers
  are closed (above 0) or open. An episode ends by its time limit alone, as in
  COG. Positions are float64 [3], in metres.
  """

  metadata = {'render_modes': ['rgb_array'], 'render_fps': 10}
  observation_space = gymnasium.spaces.Box(
    0, 255, (_IMAGE_SIZE, _IMAGE_SIZE, 3), np.uint8
  )
  action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

  def __init__(self, start: str = 'closed', render_mode: str | None = None):
    """Creates the scene; a ConfigError without PyBullet or of another start.

    An episode starts 'closed', 'blocked' (closed, and a block before the
    drawer), 'open', or 'aside' (closed, the block out of the way).
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
    client = self._client
    self._camera = (
      client.computeViewMatrix((0, -0.52, 0.5), (0, -0.07, 0.07), (0, 0, 1)),
      client.computeProjectionMatrixFOV(40.0, 1.0, 0.05, 2.0),
    )
    client.setGravity(0, 0, -9.81)
    # In this order: contacts are solved in that of the bodies.
    self._ids = ids = {
      name: client.loadURDF(
        str(_SCENE / f'{name}.urdf'), useFixedBase=name in ('cabinet', 'table')
      )
      for name in ('cabinet', 'gripper', 'cube', 'block', 'table')
    }
    self._hand = client.createConstraint(
      *(ids['gripper'], -1, -1, -1, client.JOINT_FIXED),
      *((0, 0, 0), (0, 0, 0), (0, 0, 0.3)),
    )

  # What the scripted policies see.

  @property
  def tip(self) -> _Vector:
    """Where the fingers' tips are."""
    return self.position('gripper') - _PALM

  @property
  def is_closed(self) -> bool:
    """Whether the fingers are closed, about a thing or nothing."""
    states = self._client.getJointStates(self._ids['gripper'], (0, 1))
    return bool(states[0][0] + states[1][0] < 0.095)

  @property
  def opening(self) -> float:
    """How far the drawer is open, in metres."""
    return float(self._client.getJointState(self._ids['cabinet'], 0)[0])

  @property
  def handle(self) -> _Vector:
    """Where the drawer's handle is."""
    return _HANDLE - np.array([0.0, self.opening, 0.0])

  def position(self, name: str) -> _Vector:
    """Returns where the 'cube', the 'block' or the palm is."""
    position, _ = self._client.getBasePositionAndOrientation(self._ids[name])
    return np.array(position)

  @property
  def is_blocked(self) -> bool:
    """Whether the block keeps the drawer shut."""
    x, y, _ = self.position('block')
    return bool(abs(x) < _ASIDE and -0.3 < y < 0.0)

  # gymnasium's methods.

  def reset(  # noqa: D102
    self, *, seed: int | None = None, options: dict[str, Any] | None = None
  ) -> tuple[Any, dict[str, Any]]:
    super().reset(seed=seed)
    client, ids, random = self._client, self._ids, self.np_random
    opening = random.uniform(0.85, 1.0) * _TRAVEL * (self._start == 'open')
    client.resetJointState(ids['cabinet'], 0, opening)
    inside = random.uniform((-0.028, -0.035, 0.0), (0.028, 0.02, 0.0))
    self._place('cube', _DRAWER + inside - np.array([0, opening, 0.012]))
    side = random.choice((-1.0, 1.0))
    block = {
      'blocked': _BLOCK + random.uniform((-0.03, 0, 0), (0.03, 0, 0)),
      'aside': _BLOCK + side * random.uniform((0.16, 0, 0), (0.18, 0, 0)),
    }.get(self._start, np.array([0.0, 3.0, 0.045]))
    self._place('block', block)
    self._target = random.uniform((-0.1, -0.25, 0.14), (0.1, -0.1, 0.18))
    self._place('gripper', self._target + _PALM)
    for finger in (0, 1):
      client.resetJointState(ids['gripper'], finger, 0.055)
    self._move(is_closed=False)
    return self._image(_IMAGE_SIZE), self._info()

  def step(  # noqa: D102
    self, action: FloatArray
  ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    movement = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
    # From where the gripper is: pushing against a wall winds nothing up.
    self._target = np.clip(self.tip + _STRIDE * movement[:3], _LOW, _HIGH)
    self._move(is_closed=bool(movement[3] > 0))
    info = self._info()
    return self._image(_IMAGE_SIZE), float(info['success']), False, False, info

  def render(self) -> npt.NDArray[np.uint8]:  # noqa: D102
    return self._image(240)

  def close(self) -> None:  # noqa: D102
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
      targetPositions=[0.006 if is_closed else 0.055] * 2,
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
    cube = self.position('cube')
    is_held = cube[2] > _HELD and np.linalg.norm(cube - self.tip) < 0.06
    return {'success': bool(is_held), 'opening': self.opening}

  def _image(self, size: int) -> npt.NDArray[np.uint8]:
    *_, pixels, _, _ = self._client.getCameraImage(
      *(size, size, *self._camera),
      shadow=0,
      renderer=self._client.ER_TINY_RENDERER,
      flags=self._client.ER_NO_SEGMENTATION_MASK,
    )
    return np.reshape(np.asarray(pixels, np.uint8), (size, size, 4))[..., :3]


# What a script does depends on the scene alone, not on what it did before: it
# can be cloned from images, and tries again when it fails. It says where to go,
# whether the fingers are closed, and whether the work is done.
_Aim = tuple[_Vector, bool, bool]


def _take(env: DrawerEnv, thing: _Vector, then: _Vector | None) -> _Aim:
  """Takes hold of a thing from above and moves it `then`; None: lets it go."""
  tip = env.tip
  away = thing - tip
  sideways = np.abs(away[:2]).max()
  hover = np.array([*tip[:2], _HOVER])
  if then is None and not env.is_closed:
    return hover, False, True
  if env.is_closed:
    if then is None or np.abs(away).max() > 0.04:
      return tip, False, then is None
    return then, True, False
  if sideways > 0.05:  # Rises before it moves sideways.
    above = np.array([*thing[:2], _HOVER])
    return (above if tip[2] > 0.1 else hover), False, False
  return thing, bool(sideways < 0.02 and away[2] > -0.015), False


def _slide(opening: float, env: DrawerEnv) -> _Aim:
  way = opening - env.opening
  moved = env.handle - np.array([0.0, way + math.copysign(0.01, way), 0.0])
  return _take(env, env.handle, None if abs(way) < 0.012 else moved)


def _clear(env: DrawerEnv) -> _Aim:
  block = env.position('block')
  x, y = env.tip[:2]
  if not env.is_blocked:
    is_down = not env.is_closed or block[2] < 0.055
    return _take(env, block, None if is_down else np.array([x, y, 0.03]))
  aside = x if block[2] < 0.07 else math.copysign(_ASIDE + 0.04, x)
  return _take(env, block, np.array([aside, y, 0.12]))


def _grasp(env: DrawerEnv) -> _Aim:
  cube = env.position('cube')
  return _take(env, cube, np.array([*env.tip[:2], _HOVER]))


SCRIPTS: dict[str, Callable[[DrawerEnv], _Aim]] = {
  'open': functools.partial(_slide, _TRAVEL),
  'close': functools.partial(_slide, 0.0),
  'clear': _clear,
  'grasp': _grasp,
}


def scripted_actions(
  env: DrawerEnv,
  names: Sequence[str],
  random: np.random.Generator,
  noise: float = 0.1,
) -> Iterator[FloatArray]:
  """Yields the actions of SCRIPTS, one after another, in an environment.

  When the last is done the gripper wanders: prior data that ended where they
  stop would hold a cloned policy there. `noise` is the standard deviation of
  what is added to the movement.
  """
  remaining = list(names)
  while True:
    aim, is_closed, is_done = SCRIPTS[remaining[0]](env)
    if is_done and remaining[1:]:
      remaining.pop(0)
      continue
    spread = _WANDER if is_done and env.tip[2] > 0.12 else noise
    noisy = (aim - env.tip) / _STRIDE + spread * random.standard_normal(3)
    grip = (1.0 if is_closed else -1.0) * random.uniform(0.5, 1.0)
    # As COG's collector: a policy's tanh cannot reach 1.
    yield np.clip([*noisy, grip], -0.9, 0.9).astype(np.float32)


# What scripts do in prior data, and from which start. Most leave the drawer
# open, or a cloned policy closes again what it opened.
_OPEN = ('closed', ('open',))
_PRIOR = {
  'drawer-open-grasp': (_OPEN, _OPEN, ('closed', ('open', 'close'))),
  'drawer-blocked-grasp': (
    ('blocked', ('clear',)),
    ('aside', ('open',)),
    ('aside', ('open', 'close')),
  ),
}
_TASK = ('open', ('grasp',))


@gin.configurable(
  denylist=['folder', 'task', 'seed', 'num_rows', 'on_progress']
)
@ranges.checked
def collect_scripted(
  folder: pathlib.Path,
  task: tasks.Task,
  seed: int,
  num_rows: int,
  on_progress: Callable[[int, list[float]], None],
  prior_share: ranges.Share = 2 / 3,
  num_steps: ranges.Count = 20,
  noise: ranges.NonNegative = 0.1,
) -> dict[str, Any]:
  """Writes a store of scripted play and returns what it holds.

  A trajectory is a function of the seed and its number. `prior_share` of them
  are prior data; `noise` is that of `scripted_actions`; other arguments are
  `collection.collect_control`'s. A task that is not built in is a ConfigError.
  """
  if task.game not in _PRIOR:
    raise errors.ConfigError(
      f"{task.game} has no scripts here; convert COG's own files with "
      '`data convert --cog`.'
    )
  number = -(-num_rows // num_steps)
  num_prior = round(prior_share * number)
  plans = [
    *itertools.islice(itertools.cycle(_PRIOR[task.game]), num_prior),
    *[_TASK] * (number - num_prior),
  ]
  returns: list[float] = []  # Of the task's.

  def play() -> Iterator[tuple[str, cog.Trajectory]]:
    scenes = {start: DrawerEnv(start) for start in dict(plans)}
    for i, (start, scripts) in enumerate(plans):
      on_progress(i * num_steps, returns)
      played = _play(scenes[start], scripts, num_steps, noise, (seed, i))
      yield cog.PRIOR if i < num_prior else cog.TASK, played
      if i >= num_prior:
        returns.append(float(played.rewards[-1] > 0))

  behaviour = {'game': task.game, 'num_steps': num_steps, 'noise': noise}
  cog.write(folder, play(), scripts=behaviour)
  on_progress(number * num_steps, returns)
  return {
    'game': task.game,
    'environment': task.environment,
    'layout': task.layout,
    'behaviour': 'scripted',
    'num_rows': number * num_steps,
    'num_episodes': number,
    'num_prior_episodes': num_prior,
    'return_mean': float(np.mean(returns)) if returns else None,
  }


def _play(
  env: DrawerEnv,
  scripts: Sequence[str],
  num_steps: int,
  noise: float,
  seed: tuple[int, int],
) -> cog.Trajectory:
  random = np.random.default_rng(seed)
  first, _ = env.reset(seed=int(random.integers(2**31)))
  scripted = scripted_actions(env, scripts, random, noise)
  actions, images, rewards = [], [first], []
  for action in itertools.islice(scripted, num_steps):
    image, reward, *_ = env.step(action)
    actions.append(action)
    images.append(image)
    rewards.append(reward)
  return cog.Trajectory(
    *(np.stack(images), np.stack(actions), np.array(rewards, np.float32)),
    np.zeros(num_steps, np.float32),
  )


for _name, _start, _num_steps in (
  ('DrawerOpenGrasp', 'closed', 40),
  ('DrawerBlockedGrasp', 'blocked', 60),
):
  gymnasium.register(
    f'batch_rl_dr3/{_name}-v0',
    entry_point=f'{__name__}:DrawerEnv',
    max_episode_steps=_num_steps,
    kwargs={'start': _start},
  )
