"""Small logs, written by the package and by Dopamine, for all replay tests."""

import gzip
import types
from typing import NamedTuple

import numpy as np
import pytest

SHAPE = (12, 10)
NUM_ACTIONS = 6
STACK_SIZE = 4


class Transition(NamedTuple):
  observation: np.ndarray
  action: int
  reward: float
  terminal: int


def make_transitions(num, seed=0, shape=SHAPE, episode_length=20):
  """Returns random transitions; episodes have random lengths, some of 1."""
  rng = np.random.default_rng(seed)
  return [
    Transition(
      rng.integers(0, 256, shape, dtype=np.uint8),
      int(rng.integers(NUM_ACTIONS)),
      float(rng.choice([-1.0, 0.0, 0.25, 1.0])),
      int(rng.random() < 1 / episode_length),
    )
    for _ in range(num)
  ]


def write_log(folder, transitions, rows_per_file=200, close=True, **kwargs):
  """Writes a log with the package's LogWriter."""
  from batch_rl_dr3.replay import log_writer

  shape = transitions[0].observation.shape
  writer = log_writer.LogWriter(
    folder, shape, STACK_SIZE, rows_per_file, **kwargs
  )
  for transition in transitions:
    writer.add(*transition)
  if close:
    writer.close()
  return writer


def dopamine_buffer(
  capacity, update_horizon=1, shape=SHAPE, gamma=0.9, save_to=None, cursor=0
):
  """Returns Dopamine's buffer; it saves itself whenever at `cursor`."""
  from batch_rl_dr3 import dopamine_compat

  class Buffer(dopamine_compat.OutOfGraphReplayBuffer):
    num_saved = 0

    def _create_storage(self):
      super()._create_storage()
      for array in self._store.values():
        array[:] = 0

    def _add_transition(self, transition):
      super()._add_transition(transition)
      if save_to is not None and self.cursor() == cursor:
        self.save(str(save_to), type(self).num_saved)
        type(self).num_saved += 1

  return Buffer(
    shape,
    STACK_SIZE,
    capacity,
    batch_size=32,
    update_horizon=update_horizon,
    gamma=gamma,
    checkpoint_duration=10**6,
  )


def write_with_dopamine(
  folder, transitions, capacity=200, update_horizon=1, cursor=0, final=False
):
  """Writes a log with Dopamine's buffer, one file per time at `cursor`."""
  folder.mkdir(parents=True, exist_ok=True)
  shape = transitions[0].observation.shape
  buffer = dopamine_buffer(
    capacity, update_horizon, shape, save_to=folder, cursor=cursor
  )
  for transition in transitions:
    buffer.add(*transition)
  if final:
    buffer.save(str(folder), type(buffer).num_saved)
  return buffer


def load_with_dopamine(
  folder, suffix, update_horizon=1, shape=SHAPE, gamma=0.9
):
  """Returns Dopamine's buffer of a file's own capacity, loaded from it."""
  with gzip.open(folder / f'$store$_terminal_ckpt.{suffix}.gz') as stream:
    capacity = len(np.load(stream))
  buffer = dopamine_buffer(capacity, update_horizon, shape, gamma)
  buffer.load(str(folder), suffix)
  return buffer


def valid_with_dopamine(buffer, num_rows=None):
  """Returns the indices that Dopamine accepts, asked one by one."""
  num_rows = num_rows or buffer._replay_capacity
  return [i for i in range(num_rows) if buffer.is_valid_transition(i)]


def read_array(path):
  with gzip.open(path) as stream:
    return np.load(stream, allow_pickle=False)


def write_array(path, array):
  with gzip.open(path, 'wb', 1) as stream:
    np.save(stream, np.asarray(array))


@pytest.fixture(scope='session')
def logs():
  """The helpers above."""
  return types.SimpleNamespace(
    SHAPE=SHAPE,
    NUM_ACTIONS=NUM_ACTIONS,
    STACK_SIZE=STACK_SIZE,
    make_transitions=make_transitions,
    write_log=write_log,
    dopamine_buffer=dopamine_buffer,
    write_with_dopamine=write_with_dopamine,
    load_with_dopamine=load_with_dopamine,
    valid_with_dopamine=valid_with_dopamine,
    read_array=read_array,
    write_array=write_array,
  )
