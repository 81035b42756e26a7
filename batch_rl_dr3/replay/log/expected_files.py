"""Which files the DQN Replay Dataset has, game by game and run by run.

A run has files 0 to 49, and a short file 50 with what was left over when the
agent that made it stopped. The runs without a file 50 are in absent_files.csv,
as users found them in the public bucket (github.com/google-research/batch_rl,
issue 33, which looked at run 1 of all games; Breakout's run 5 is known too).
"""

from collections.abc import Collection
import csv
import functools
import importlib.resources
import re

from batch_rl_dr3.config import errors

NUM_RUNS = 5
_LAST_SUFFIX = 50


@functools.cache
def _absent() -> frozenset[tuple[str, int, int]]:
  folder = importlib.resources.files('batch_rl_dr3.replay.log')
  text = folder.joinpath('absent_files.csv').read_text()
  return frozenset(
    (row['game'], int(row['run']), int(row['suffix']))
    for row in csv.DictReader(text.splitlines())
  )


def expected_suffixes(game: str, run: int) -> list[int]:
  """Returns the suffixes of the files that a logged run has.

  Args:
    game: str, as the data set spells it, such as 'MsPacman'.
    run: int, 1 to 5.

  Raises:
    ConfigError: if there is no such run.
  """
  if not 1 <= run <= NUM_RUNS:
    raise errors.ConfigError(
      f'run {run} of {game}: the runs are numbered 1 to {NUM_RUNS}.'
    )
  return [
    suffix
    for suffix in range(_LAST_SUFFIX + 1)
    if (game, run, suffix) not in _absent()
  ]


def num_actions(game: str) -> int:
  """Returns the size of a game's minimal action set, which the data use.

  Args:
    game: str, as the data set spells it.

  Raises:
    ConfigError: if ale-py knows no such game.
  """
  import ale_py  # It takes a moment, and few callers need it.

  rom_name = re.sub(r'(?<!^)(?=[A-Z])', '_', game).lower()
  path = ale_py.roms.get_rom_path(rom_name)
  if path is None:
    raise errors.ConfigError(
      f'there is no Atari game {game!r}; games are spelt like MsPacman.'
    )
  ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
  ale = ale_py.ALEInterface()
  ale.loadROM(path)
  return len(ale.getMinimalActionSet())


def missing_notes(game: str, run: int, present: Collection[int]) -> list[str]:
  """Returns one line per file that is not there, and whether that is known.

  Args:
    game: str, as the data set spells it.
    run: int, 1 to 5.
    present: the suffixes that are there.
  """
  expected = expected_suffixes(game, run)
  notes = []
  for suffix in range(_LAST_SUFFIX + 1):
    if suffix in present:
      continue
    if suffix in expected:
      note = 'missing and should be there'
    else:
      note = 'known to be absent from the data set'
    notes.append(f'{game}/{run}: suffix {suffix} is {note}')
  return notes
