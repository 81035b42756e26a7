"""What keeps runs apart that cannot be compared, by their provenance.json.

Runs of one suite share a table only if they were played under one protocol by
one version of this package; those of one game, with one ROM; those of one game,
data set, logged run and seed, on the same data. Seeds may each have data of
their own, as long as it is the same for every method.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import json
from typing import Any

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import reference, run_reader

# Settings of the protocol that differ between games by nature.
_PER_GAME = ('environment', 'num_evaluation_episodes', 'rom', 'scale')
_MAX_NAMES = 3


@dataclasses.dataclass(frozen=True)
class Difference:
  """A field in which runs differ that have to agree in it.

  Attributes:
    where: the suite, the game, or the game and the data.
    field: what it is called.
    groups: names of runs by what they say.
  """

  where: str
  field: str
  groups: dict[str, list[str]]

  @property
  def sentence(self) -> str:
    """All of it on one line."""
    groups = '; '.join(
      f'{value} in {_named(names)}' for value, names in self.groups.items()
    )
    return f'{self.where}: {self.field} ({groups})'


def differences(runs: Sequence[run_reader.Run]) -> list[Difference]:
  """Returns every field in which runs differ and should not."""
  found = [
    *_differences(runs, _suite, 'version of batch_rl_dr3', _version),
    *_differences(runs, _game, 'md5 of the ROM', _rom),
    *_data_differences(runs),
  ]
  for key in sorted({key for run in runs for key in mapping(run, 'protocol')}):
    scope = _game if key in _PER_GAME else _suite
    found += _differences(runs, scope, key, functools.partial(_setting, key))
  return found


def refuse(found: Sequence[Difference]) -> None:
  """Raises DataError if runs differ, naming fields and runs."""
  if found:
    raise errors.DataError(
      'these runs cannot share a table, since they differ in '
      f'{" and in ".join(d.sentence for d in found)}. Report on them apart, or '
      'give --allow_mixed to have this printed on the page.'
    )


def rom_notes(runs: Sequence[run_reader.Run]) -> Iterator[str]:
  """Yields which games were played with other ROMs than the logged data."""
  groups: dict[str, set[str]] = {}
  for run in runs:
    if run.setting.suite == 'atari':
      groups.setdefault(_judged(run), set()).add(run.setting.game)
  sentences = {
    'other': 'were evaluated with another ROM than that of atari-py 0.2.5, '
    'which or an older one the logged data was made with',
    'unrecorded': 'do not record the md5 of their ROM, so whether it is that '
    'of the logged data is unknown',
    'unknown': 'have no ROM in atari-py 0.2.5, so which one the logged data '
    'was made with is unknown',
  }
  for key, sentence in sentences.items():
    if games := sorted(groups.get(key, ())):
      yield f'Runs of {", ".join(games)} {sentence}.'


def data_notes(runs: Sequence[run_reader.Run]) -> Iterator[str]:
  """Yields in which settings the seeds of a logged run differ in their data."""
  hashes: dict[tuple[str, str], set[str]] = {}
  for run in runs:
    key = run.setting.label, run.logged_run
    hashes.setdefault(key, set()).add(plain(data_hash(run)))
  mixed = sorted(
    {label for (label, _), found in hashes.items() if len(found) > 1}
  )
  if mixed:
    yield (
      f'Seeds differ in their data, the same for every method, on '
      f'{"; ".join(mixed)}: intervals hold for other data, too.'
    )


def mapping(run: run_reader.Run, key: str) -> dict[str, Any]:
  """Returns a table of provenance.json, empty if there is none."""
  value = run.provenance.get(key)
  return value if isinstance(value, dict) else {}


def shared_protocol(run: run_reader.Run) -> dict[str, Any]:
  """Returns the settings of the protocol that do not differ between games."""
  protocol = mapping(run, 'protocol')
  return {key: protocol[key] for key in protocol if key not in _PER_GAME}


def data_hash(run: run_reader.Run) -> Any:
  """Returns what identifies a run's data, None if it was not recorded."""
  data = mapping(run, 'data')
  return (
    data.get('hash') or data.get('data_hash') or run.provenance.get('data_hash')
  )


def plain(value: Any) -> str:
  """Returns a value of provenance.json as one line of text."""
  if value is None or value == '':
    return 'not recorded'
  return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _differences(
  runs: Sequence[run_reader.Run],
  scope: Callable[[run_reader.Run], str],
  field: str,
  value_of: Callable[[run_reader.Run], Any],
) -> Iterator[Difference]:
  scopes: dict[str, dict[str, list[str]]] = {}
  for run in runs:
    groups = scopes.setdefault(scope(run), {})
    groups.setdefault(plain(value_of(run)), []).append(run.name)
  for where, groups in scopes.items():
    if len(groups) > 1:
      yield Difference(where, field, groups)


def _data_differences(runs: Sequence[run_reader.Run]) -> Iterator[Difference]:
  """Yields which data differ: by name and version where these do, too."""
  named = [
    found
    for found in _differences(runs, _data, 'data set', _name_and_version)
    if 'not recorded' not in found.groups
  ]
  yield from named
  there = {found.where for found in named}
  rest = [run for run in runs if _data(run) not in there]
  yield from _differences(rest, _seed_of_data, 'hash of the data', data_hash)


def _name_and_version(run: run_reader.Run) -> str:
  data = mapping(run, 'data')
  return ' '.join(data[key] for key in ('name', 'version') if data.get(key))


def _suite(run: run_reader.Run) -> str:
  return run.setting.suite or 'unknown suite'


def _game(run: run_reader.Run) -> str:
  return f'{_suite(run)} {run.setting.game}'


def _data(run: run_reader.Run) -> str:
  logged_run = f', logged run {run.logged_run}' if run.logged_run else ''
  return f'{_suite(run)} {run.setting.label}{logged_run}'


def _seed_of_data(run: run_reader.Run) -> str:
  return f'{_data(run)}, seed {run.seed}'


def _setting(key: str, run: run_reader.Run) -> Any:
  return mapping(run, 'protocol').get(key)


def _version(run: run_reader.Run) -> Any:
  return mapping(run, 'versions').get('batch_rl_dr3')


def _rom(run: run_reader.Run) -> Any:
  return run.provenance.get('rom_md5')


def _judged(run: run_reader.Run) -> str:
  expected = reference.legacy_rom(run.setting.game)
  if expected is None:
    return 'unknown'
  if not _rom(run):
    return 'unrecorded'
  return 'same' if _rom(run) == expected else 'other'


def _named(names: Sequence[str]) -> str:
  listed = ', '.join(names[:_MAX_NAMES])
  more = len(names) - _MAX_NAMES
  return f'{listed} and {more} more' if more > 0 else listed
