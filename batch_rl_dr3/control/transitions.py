"""Logged transitions in memory, checked."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors

FloatArray = npt.NDArray[np.float32]
# The policy's tanh reaches no bound: actions are kept so far inside.
_ACTION_MARGIN = 1e-5


@dataclasses.dataclass(frozen=True)
class Transitions:
  """N transitions (s, a, r, s', terminal).

  Attributes:
    observations: float32 [N, o].
    actions: float32 [N, d], inside (-1, 1).
    rewards: float32 [N].
    next_observations: float32 [N, o].
    terminals: float32 [N], 1 where the episode ended by itself. Where its
      time ran out it is 0.
    manifest: what the data are, for provenance.json.
  """

  observations: FloatArray
  actions: FloatArray
  rewards: FloatArray
  next_observations: FloatArray
  terminals: FloatArray
  manifest: dict[str, Any]

  def __len__(self) -> int:
    return len(self.rewards)

  @property
  def columns(self) -> tuple[FloatArray, ...]:
    """The five arrays, in the order of their names above."""
    return (
      self.observations,
      self.actions,
      self.rewards,
      self.next_observations,
      self.terminals,
    )

  def take(self, rows: npt.NDArray[np.int64]) -> 'Transitions':
    """Returns some of the transitions."""
    return Transitions(
      self.observations[rows],
      self.actions[rows],
      self.rewards[rows],
      self.next_observations[rows],
      self.terminals[rows],
      self.manifest,
    )


def checked(
  name: str,
  observation_size: int,
  action_size: int,
  columns: dict[str, npt.NDArray[Any]],
  manifest: dict[str, Any],
) -> Transitions:
  """Returns transitions after a look at every number.

  Args:
    name: the file, for errors.
    observation_size: what the task has.
    action_size: what the task has.
    columns: the arrays of `Transitions`, by name.
    manifest: what the data are.

  Raises:
    DataError: if a shape is not the task's, a number is not finite, or there
      is nothing.
  """
  num_rows = len(columns['rewards'])
  if not num_rows:
    raise errors.DataError(f'{name} holds no transition.')
  expected = {
    'observations': (num_rows, observation_size),
    'actions': (num_rows, action_size),
    'rewards': (num_rows,),
    'next_observations': (num_rows, observation_size),
    'terminals': (num_rows,),
  }
  arrays = {}
  for column, shape in expected.items():
    array = np.ascontiguousarray(columns[column], np.float32)
    if array.shape != shape:
      raise errors.DataError(
        f'{name}: {column} has shape {array.shape}, and the task has {shape}. '
        'It is data of another environment.'
      )
    if not np.isfinite(array).all():
      raise errors.DataError(f'{name}: {column} holds a number not finite.')
    arrays[column] = array
  if np.abs(arrays['actions']).max() > 1.0 + 1e-3:
    raise errors.DataError(
      f'{name}: actions reach {np.abs(arrays["actions"]).max():g}, and those '
      'of the task are in [-1, 1].'
    )
  limit = 1.0 - _ACTION_MARGIN
  arrays['actions'] = np.clip(arrays['actions'], -limit, limit)
  return Transitions(**arrays, manifest=manifest)
