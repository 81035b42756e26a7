"""What is trained on and scored in, and which data fit which environment.

D4RL's environments ran on mujoco-py and are not installable here. Whether a
data set can be scored in one of today's is a row of tasks.toml, and an error
where it cannot; docs/continuous.md says why. Data of one's own are of any id of
gymnasium's, which is then the game's name, and have no normalised score.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
import re
import tomllib
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.games import gymnasium_lanes

D4RL = 'd4rl'
MINARI = 'minari'
COG = 'cog'
OWN = 'own'

_FILE = pathlib.Path(__file__).with_name('tasks.toml')
_TABLES: dict[str, Any] = tomllib.loads(_FILE.read_text())
# What x and y of the ant and its goal stay below in D4RL's own mazes.
D4RL_MAZES: dict[str, list[float]] = _TABLES['mazes']


@dataclasses.dataclass(frozen=True)
class Task:
  """A game with the data of one layout."""

  game: str  # Its name, such as hopper or antmaze-medium-diverse.
  layout: str  # D4RL, MINARI, COG or OWN, whose data.
  observation_size: int = 0  # Numbers in an observation, 0 of an image.
  action_size: int = 0
  environment: str | None = None  # Gymnasium's id of what it can be scored in.
  # The returns that D4RL's normalised score calls 0 and 100, if it applies.
  scale: tuple[float, float] | None = None
  maze: str | None = None  # For antmaze, gymnasium-robotics' name of the map.
  start: tuple[int, int] = (0, 0)  # Row and column that an episode starts in,
  goal: tuple[int, int] = (0, 0)  # and those of the goal.
  kitchen_tasks: tuple[str, ...] = ()
  # The leading numbers of an observation that are a place or an angle, and so
  # change little in a step.
  num_positions: int = 2
  max_episode_steps: int = 1000  # 0 if data may be longer.
  image_shape: tuple[int, int, int] | None = None  # Where a camera sees it.

  @property
  def observation_shape(self) -> tuple[int, ...]:  # noqa: D102
    return self.image_shape or (self.observation_size,)

  @property
  def suite(self) -> str:  # noqa: D102
    return {COG: COG, OWN: 'gymnasium_control'}.get(self.layout, D4RL)

  def normalised(self, episode_return: float) -> float | None:
    """Returns D4RL's normalised score in percent; None without a scale."""
    if self.scale is None:
      return None
    low, high = self.scale
    return 100.0 * (episode_return - low) / (high - low)

  @property
  def max_lanes(self) -> int:
    """How many can be played in a process: roboverse has one simulation."""
    return 1 if str(self.environment).startswith('Widow250') else 1_000


TASKS = {
  (game, layout): Task(
    game,
    layout,
    **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()},
  )
  for layout in (D4RL, MINARI, COG)
  for game, fields in _TABLES[layout].items()
}


def find(game: str, layout: str) -> Task:
  """Returns the task of a game with data of a layout, else a ConfigError."""
  if (game, layout) in TASKS:
    return TASKS[game, layout]
  if layout in (D4RL, OWN) and gymnasium_lanes.is_id(game):
    return _own(game)
  games = sorted(name for name, other in TASKS if other == layout)
  raise errors.ConfigError(
    f'no game {game!r}; choose one of {", ".join(games)}'
    + (", or gymnasium's id of another." if layout == D4RL else '.')
  )


def _own(environment: str) -> Task:
  env = gymnasium_lanes.make(environment)
  observations, actions = env.observation_space, env.action_space
  env.close()
  is_vector = len(observations.shape) == len(actions.shape or ()) == 1
  is_box = isinstance(actions, gymnasium.spaces.Box)
  if not (is_vector and is_box and actions.is_bounded()):
    raise errors.ConfigError(
      f'{environment} has observations of {observations} and actions of '
      f'{actions}; continuous control takes a vector of each, and bounds of '
      'all actions.'
    )
  return Task(
    gymnasium_lanes.game_name(environment),
    OWN,
    *(observations.shape[0], actions.shape[0], environment),
    max_episode_steps=env.spec.max_episode_steps or 0,
  )


def described(name: str) -> dict[str, str]:
  """Returns what a name says about data: game, maze, kind, quality, version."""
  text = re.sub(r'[^a-z0-9]+', '-', name.lower())
  game = _match(_TABLES['families'], text)
  version = re.search(r'-(v\d+)(-|$)', text)
  parts = _TABLES['parts']
  found = {
    'game': game,
    **{
      part: _match(patterns, text)
      for part, patterns in parts.get(game, parts['others']).items()
    },
    'version': version and version[1],
  }
  return {part: value for part, value in found.items() if value}


def _match(patterns: Mapping[str, str], text: str) -> str | None:
  matches = (name for name, p in patterns.items() if re.search(p, text))
  return next(matches, None)


def check_same(
  path: str, source: str, name: str, task: Task, dataset: str = ''
) -> None:
  """Refuses data that are by a name of theirs of another task or data set.

  The DataError names both; `source` says whose name it is. `dataset` is which
  data set of the task they have to be, such as medium; '' takes any.
  """
  there, here = described(name), described(f'{task.game}-{dataset}')
  if any(there[key] != here[key] for key in there.keys() & here.keys()):
    raise errors.DataError(
      f'{path} is by {source} data of {"-".join(there.values())}, not data of '
      f'{"-".join(here.values())}, which the configuration asks for.'
    )


def played_in(game: str, environment: str | None) -> Task:
  """Returns the task that is scored in an environment, else a ConfigError."""
  for task in TASKS.values():
    if (task.game, task.environment) == (game, environment):
      return task
  if game == environment:
    return find(game, OWN)
  raise errors.ConfigError(f'no task {game!r} is played in {environment}.')


def check_scorable(task: Task) -> None:
  """Raises ConfigError if there is no environment that the data are of."""
  if task.environment is None:
    family = described(task.game)['game']
    raise errors.ConfigError(
      f"{task.game} of D4RL's own files cannot be scored here: "
      f'{_TABLES["why_none"][family]}. Train on the Minari data of this game, '
      'or without evaluation: ContinuousRunner.num_evaluation_episodes = 0.'
    )


def flatten(observation: Any) -> npt.NDArray[np.float32]:
  """Returns an observation, or a batch, as the data have it: float32 [..., o].

  Of a goal environment's dict, AntMaze's is [achieved goal, observation], as in
  D4RL; the kitchen's goals are left out.
  """
  if not isinstance(observation, dict):
    return np.asarray(observation, np.float32)
  parts = [observation['observation']]
  if not isinstance(observation['achieved_goal'], dict):
    parts.insert(0, observation['achieved_goal'])
  return np.concatenate(parts, axis=-1).astype(np.float32)
