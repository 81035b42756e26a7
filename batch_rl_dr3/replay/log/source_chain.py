"""Opens the first of several locations that gives the data.

The public bucket of the DQN Replay Dataset has answered 403 or 404 to many
since 2025, so a run's data is looked for in more than one place. Whoever
refuses is named in a warning; if all do, one error lists them all.
"""

from collections.abc import Sequence
import os
import urllib.parse

from absl import logging
import gin

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import expected_files, rlu, sources
from batch_rl_dr3.replay.log.source import Source
from batch_rl_dr3.replay.store import store_source
from batch_rl_dr3.runs.retry import RefusedError

# In the order in which they are asked.
DEFAULT_LOCATIONS = (
  'gs://atari-replay-datasets/dqn/{game}/{run}/replay_logs',
  'gs://rl_unplugged/atari_episodes_ordered/{game}/run_{run}',
)
_MEND = (
  'Mend it by hand: copy the data where you have access, with `gcloud storage '
  'cp -r gs://atari-replay-datasets/dqn/GAME/RUN DIR` or `gsutil -m cp -R`, '
  "and name DIR; or ask the data set's owners for access and name your "
  'credentials in GOOGLE_APPLICATION_CREDENTIALS; or take RL Unplugged '
  '(gs://rl_unplugged/atari_episodes_ordered); or collect a log yourself with '
  '`python -m batch_rl_dr3.collect`.'
)


@gin.configurable
def default_locations(
  game: str, run: int, templates: Sequence[str] = DEFAULT_LOCATIONS
) -> list[str]:
  """Returns where a logged run is looked for, in order.

  Args:
    game: str, as the data set spells it, such as 'MsPacman'.
    run: int, 1 to 5.
    templates: locations with {game} and {run} in them.

  Raises:
    ConfigError: if there is no such run.
  """
  expected_files.expected_suffixes(game, run)  # Refuses other runs.
  return [template.format(game=game, run=run) for template in templates]


def make_source(location: str | os.PathLike[str] | Source) -> Source:
  """Returns the source at a location; only folders are looked at yet.

  Args:
    location: a folder of a log or a store, a URL that fsspec opens, or a
      source. What has
      atari_episodes_ordered or rlu_atari_checkpoints_ordered in its path is
      RL Unplugged's; anything else is in the DQN Replay layout.

  Raises:
    DataError: if it is a folder without data.
  """
  if not isinstance(location, str | os.PathLike):
    return location
  text = _without_file_scheme(os.fspath(location))
  if rlu.is_location(text):
    return rlu.RluSource(text)
  if '://' in text:
    return sources.FsspecSource(text)
  if store_source.is_store(text):
    return store_source.StoreSource(text)
  return sources.FolderSource(text)


def _without_file_scheme(location: str) -> str:
  """Returns the path that a file:// URL means, anything else as it is."""
  parts = urllib.parse.urlsplit(location)
  if parts.scheme != 'file' or parts.netloc not in ('', 'localhost'):
    return location
  return urllib.parse.unquote(
    location.partition('://')[2].removeprefix(parts.netloc)
  )


def open_source(
  locations: str
  | os.PathLike[str]
  | Source
  | Sequence[str | os.PathLike[str] | Source],
) -> Source:
  """Returns the first source that gives its files.

  A source gives them if its list of files is complete and a first file of it
  can be read.

  Args:
    locations: one or several, see make_source, in the order to ask them.

  Raises:
    DataError: if none does; it lists what each said. A source that answers
      with damaged or incomplete data is an error at once: to pass it over
      would be to train on other data than was asked for.
  """
  if isinstance(locations, str | os.PathLike) or not isinstance(
    locations, Sequence
  ):
    locations = [locations]
  refusals = []
  for location in locations:
    try:
      source = make_source(location)
      source.attribute('add_count', source.suffixes()[0])
    except RefusedError as error:
      refusals.append(str(error))
      if len(locations) > 1:
        logging.warning('%s The next source is asked.', error)
    else:
      return source
  raise errors.DataError(
    f'no source gives the data: {" | ".join(refusals)} {_MEND}'
  )


def open_run(game: str, run: int) -> Source:
  """Returns the source of a logged run, wherever it can be had.

  Suffixes that are missing are named in warnings, with whether that is known
  of the data set.

  Args:
    game: str, as the data set spells it, such as 'MsPacman'.
    run: int, 1 to 5.

  Raises:
    ConfigError: if there is no such run.
    DataError: if no source gives it.
  """
  source = open_source(default_locations(game, run))
  if not isinstance(source, rlu.RluSource):  # It has other files.
    notes = expected_files.missing_notes(game, run, source.suffixes())
    for note in notes:
      logging.warning('%s (%s).', note, source.name)
  return source
