"""What the runs are and were made from and with, as the page lists it."""

from collections.abc import Callable
import dataclasses
import functools
import shlex
from typing import Any

from batch_rl_dr3.reporting import guards, methods, notes, scores
from batch_rl_dr3.reporting.table import Column, Table, build, text

# A list or table in provenance.json that is longer is only counted.
_MAX_NESTED_CHARACTERS = 160
# Facts of provenance.json that the page states, with their headings.
_FACTS = (
  ('protocol', 'Protocol'),
  ('versions', 'Versions'),
  ('git_revision', 'Git revision'),
  ('device', 'Device'),
)
# Those that differ between games, stated where there are few of them.
_FACTS_OF_FEW = (
  ('data', 'Data'),
  ('rom_md5', 'ROM (MD5)'),
  ('command', 'Command'),
)


@dataclasses.dataclass(frozen=True)
class Fact:
  """Something that runs share.

  Attributes:
    heading: what it is about.
    runs: whom it is true of; empty for all.
    lines: names and values; a plain value has no name.
  """

  heading: str
  runs: str
  lines: tuple[tuple[str, str], ...]


def facts(collection: scores.Collection, few: bool) -> list[Fact]:
  """Returns each distinct fact once, with the runs that it is true of.

  Args:
    collection: the runs.
    few: whether they are few enough to state what differs between games.
  """
  chosen = (*_FACTS_OF_FEW, *_FACTS) if few else _FACTS
  return [
    fact
    for key, heading in chosen
    for fact in _grouped(collection, heading, functools.partial(_lines, key))
  ]


def _grouped(
  collection: scores.Collection,
  heading: str,
  lines: Callable[[scores.Run], tuple[tuple[str, str], ...]],
) -> list[Fact]:
  groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
  for run in collection.runs:
    groups.setdefault(lines(run), []).append(run.name)
  return [
    Fact(heading, '' if len(groups) == 1 else notes.listed(names), fact)
    for fact, names in groups.items()
  ]


def _lines(key: str, run: scores.Run) -> tuple[tuple[str, str], ...]:
  value = run.provenance.get(key)
  if key == 'command' and isinstance(value, list):
    value = shlex.join(map(str, value))
  if key == 'data':
    value = {'hash': guards.data_hash(run)} | guards.mapping(run, 'data')
    value.pop('data_hash', None)
  if key == 'protocol':
    value = guards.shared_protocol(run)
  if isinstance(value, dict) and value:
    return tuple((name, _line(value[name])) for name in sorted(value))
  return (('', _line(value)),)


def _line(value: Any) -> str:
  line = guards.plain(value)
  if isinstance(value, list | dict) and len(line) > _MAX_NESTED_CHARACTERS:
    noun = 'entry' if len(value) == 1 else 'entries'
    return f'{len(value)} {noun}, see provenance.json'
  return line


def runs_table(collection: scores.Collection) -> Table:
  """Returns a line for every run."""
  return build(
    'runs',
    'The runs',
    f'In {collection.parent}{_skipped(collection)}.',
    'There are no runs.',
    (
      text('folder', 'Folder'),
      text('method', 'Method', methods.display_name),
      text('suite', 'Suite', when='never'),
      text('game', 'Game'),
      text('dataset', 'Data set', _or_unknown),
      text('run', 'Logged run', _or_unknown),
      text('seed', 'Seed', _or_unknown),
      Column('gradient_steps', 'Gradient steps'),
      Column('evaluations', 'Evaluations'),
      text('finished', 'Finished'),
      text('data_hash', 'Data', when='never'),
      text('rom_md5', 'ROM (MD5)', when='never'),
      text('version', 'Version', when='never'),
    ),
    [_run_row(run) for run in collection.runs],
  )


def _run_row(run: scores.Run) -> dict[str, Any]:
  return run.setting._asdict() | {
    'folder': run.name,
    'method': run.method,
    'run': run.logged_run,
    'seed': run.seed,
    'gradient_steps': run.num_gradient_steps,
    'evaluations': len(run.evaluations),
    'finished': 'yes' if run.finished else 'no',
    'data_hash': guards.data_hash(run),
    'rom_md5': run.provenance.get('rom_md5'),
    'version': guards.mapping(run, 'versions').get('batch_rl_dr3'),
  }


def _skipped(collection: scores.Collection) -> str:
  if not collection.skipped:
    return ''
  names = [path.name for path in collection.skipped]
  what = (
    'it is no run directory'
    if len(names) == 1
    else ('they are no run directories')
  )
  return f'. Skipped, since {what}: {len(names)} ({notes.listed(names)})'


def _or_unknown(value: str) -> str:
  return value or 'unknown'
