"""Opens the first of several locations that gives the data.

The public bucket of the DQN Replay Dataset has answered 403 or 404 to many
since 2025. Whoever refuses is named in a warning, or all in one error.
"""

from collections.abc import Collection, Sequence
import contextlib
import difflib
import http.client
import os
import pathlib
import threading
from typing import Any
import urllib.error
import urllib.request

from absl import logging
import gin

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import rlu, sources
from batch_rl_dr3.replay.log.sources import Source
from batch_rl_dr3.replay.store import read
from batch_rl_dr3.runs import place
from batch_rl_dr3.runs.retry import RefusedError

# In the order in which they are asked.
DEFAULT_LOCATIONS = (
  'gs://atari-replay-datasets/dqn/{game}/{run}/replay_logs',
  'gs://rl_unplugged/atari_episodes_ordered/{game}/run_{run}',
)
_MEND = (
  'Mend it by hand: copy the data where you have access, with `gcloud storage '
  'cp -r gs://atari-replay-datasets/dqn/GAME/RUN DIR` or `gsutil -m cp -R`, '
  "and name DIR; or ask the data set's owners for access and run `gcloud auth "
  'application-default login`; or take RL Unplugged '
  '(gs://rl_unplugged/atari_episodes_ordered); or collect a log yourself with '
  '`python -m batch_rl_dr3.collect`.'
)
# Within which a web server answers, if it is there at all.
_ANSWER_SECONDS = 8.0
NUM_RUNS = 5
# A run has files 0 to 49, and a short one with the rest, but for these runs: as
# users found them in the public bucket (github.com/google-research/batch_rl,
# issue 33, which looked at run 1 of all games; Breakout's run 5 is known too).
_LAST_SUFFIX = 50
_WITHOUT_LAST = frozenset(
  {
    *(('Carnival', 1), ('Centipede', 1), ('IceHockey', 1), ('StarGunner', 1)),
    *(('VideoPinball', 1), ('YarsRevenge', 1), ('Breakout', 5)),
  }
)

_Location = str | os.PathLike[str] | Source


def expected_suffixes(game: str, run: int) -> list[int]:
  """Returns the suffixes of the files that a logged run has."""
  if not 1 <= run <= NUM_RUNS:
    raise errors.ConfigError(
      f'run {run} of {game}: the runs are numbered 1 to {NUM_RUNS}.'
    )
  return list(range(_LAST_SUFFIX + ((game, run) not in _WITHOUT_LAST)))


def rom_path(game: str) -> pathlib.Path:
  """Returns the ROM of a game; a UsageError says which game may be meant."""
  import ale_py  # It takes a moment, and few callers need it.

  roms = {
    ''.join(part.capitalize() for part in rom.split('_')): rom
    for rom in ale_py.roms.get_all_rom_ids()
  }
  if game not in roms:
    names = {name.lower(): name for name in roms}
    close = difflib.get_close_matches(game.lower(), names, n=1)
    meant = f' Is {names[close[0]]} meant?' if close else ''
    raise errors.UsageError(
      f'there is no Atari game {game!r}; games are spelt like MsPacman.{meant}'
    )
  path = ale_py.roms.get_rom_path(roms[game])
  assert path is not None
  return pathlib.Path(path)


def num_actions(game: str) -> int:
  """Returns the size of a game's minimal action set, which the data use."""
  import ale_py

  path = rom_path(game)
  ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
  ale = ale_py.ALEInterface()
  ale.loadROM(path)
  return len(ale.getMinimalActionSet())


def missing_notes(game: str, run: int, present: Collection[int]) -> list[str]:
  """Returns one line per file that is not there, and whether that is known."""
  expected = expected_suffixes(game, run)
  notes = (
    'known to be absent from the data set',
    'missing and should be there',
  )
  return [
    f'{game}/{run}: suffix {suffix} is {notes[suffix in expected]}'
    for suffix in range(_LAST_SUFFIX + 1)
    if suffix not in present
  ]


@gin.configurable
def default_locations(
  game: str, run: int, templates: Sequence[str] = DEFAULT_LOCATIONS
) -> list[str]:
  """Returns where a run is looked for: templates with {game} and {run}."""
  expected_suffixes(game, run)  # Refuses other runs.
  return [template.format(game=game, run=run) for template in templates]


def make_source(location: _Location) -> Source:
  """Returns the source at a location; only folders are looked at yet."""
  if isinstance(location, Source):
    return location
  text = os.fspath(location)
  text = place.local_path(text) or text
  if rlu.is_location(text):
    return rlu.RluSource(text)
  if '://' in text:
    return sources.FsspecSource(text)
  if read.is_store(text):
    return read.StoreSource(text)
  return sources.FolderSource(text)


def open_source(locations: _Location | Sequence[_Location]) -> Source:
  """Returns the first source that lists all its files and gives a first one.

  Of several, a web server silent for seconds is not waited for. A DataError
  lists what each said. Damaged or incomplete data is an error at once: to pass
  it over would be to train on other data.
  """
  if isinstance(locations, str | os.PathLike | Source):
    locations = [locations]
  is_only = len(locations) == 1
  refusals = []
  answers: dict[str | None, str] = {None: ''}
  for location in locations:
    try:
      source = make_source(location)
      endpoint = source.endpoint
      if not is_only and endpoint not in answers:
        answers[endpoint] = _ask(str(endpoint))
      if problem := answers.get(endpoint):
        raise RefusedError(
          f'{source.name} is out of reach: {endpoint} does not answer '
          f'({problem}).'
        )
      source.segment(source.suffixes()[0])
      return source
    except RefusedError as error:
      refusals.append(str(error))
      if not is_only:
        logging.warning('%s The next source is asked.', error)
  raise errors.DataError(
    f'no source gives the data: {" | ".join(refusals)} {_MEND}'
  )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  def redirect_request(self, *args: Any, **kwargs: Any) -> None:
    """Follows nothing: a redirection is an answer."""


def _ask(endpoint: str) -> str:
  """Returns why a web server does not answer in time, '' if it does.

  The clients of storages try again for minutes.
  """
  request = urllib.request.Request(endpoint, method='HEAD')
  opener = urllib.request.build_opener(_NoRedirect)
  problem = f'nothing came within {_ANSWER_SECONDS:.0f} s'

  def ask() -> None:
    nonlocal problem
    try:
      with contextlib.suppress(urllib.error.HTTPError):  # It is an answer.
        opener.open(request, timeout=_ANSWER_SECONDS).close()
      problem = ''
    except (OSError, http.client.HTTPException) as error:
      problem = errors.one_line(error)

  # A name server that says nothing cannot be given a time limit.
  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(_ANSWER_SECONDS + 1)
  return problem


def open_run(game: str, run: int) -> Source:
  """Returns the source of a logged run; warnings name missing suffixes."""
  source = open_source(default_locations(game, run))
  if not isinstance(source, rlu.RluSource):  # It has other files.
    for note in missing_notes(game, run, source.suffixes()):
      logging.warning('%s (%s).', note, source.name)
  return source
