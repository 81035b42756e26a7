"""What a reader has to know before believing a report."""

from collections.abc import Callable, Iterator
import functools
import json
from typing import Any

import numpy as np

from batch_rl_dr3.reporting import curves, methods, scores, tables

_FEW_SEEDS = 5


def warnings(collection: scores.Collection) -> list[str]:
  """Returns what makes runs of one game and data set not comparable.

  They have to share data, protocol and ROM; but different logged runs are
  different data by design.
  """
  found: list[str] = []
  for setting in collection.settings:
    runs = [run for run in collection.runs if run.setting == setting]
    for logged_run in sorted({run.logged_run for run in runs}):
      same = [run for run in runs if run.logged_run == logged_run]
      found += _differences(setting, same, 'the hash of the data', data_hash)
    for key in sorted({key for run in runs for key in _protocol(run)}):
      found += _differences(
        setting, runs, f'protocol: {key}', functools.partial(_setting_of, key)
      )
    found += _differences(
      setting, runs, 'the ROM', lambda run: run.provenance.get('rom_md5')
    )
  return found


def mapping(run: scores.Run, key: str) -> dict[str, Any]:
  """Returns a table of provenance.json, empty if there is none."""
  value = run.provenance.get(key)
  return value if isinstance(value, dict) else {}


def data_hash(run: scores.Run) -> Any:
  """Returns what identifies a run's data, None if it was not recorded."""
  data = mapping(run, 'data')
  return (
    data.get('hash') or data.get('data_hash') or run.provenance.get('data_hash')
  )


def _protocol(run: scores.Run) -> dict[str, Any]:
  return mapping(run, 'protocol')


def _setting_of(key: str, run: scores.Run) -> Any:
  return _protocol(run).get(key)


def _differences(
  setting: scores.Setting,
  runs: list[scores.Run],
  what: str,
  value_of: Callable[[scores.Run], Any],
) -> list[str]:
  groups: dict[str, list[str]] = {}
  for run in runs:
    groups.setdefault(plain(value_of(run)), []).append(run.name)
  if len(groups) == 1:
    return []
  listed = '; '.join(
    f'{value} in {", ".join(names)}' for value, names in groups.items()
  )
  line = (
    f'{setting.label}: the runs differ in {what} ({listed}), so what differs '
    'between them is not the method alone.'
  )
  return [line]


def plain(value: Any) -> str:
  """Returns a value of provenance.json as one line of text."""
  if value is None or value == '':
    return 'not recorded'
  return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def notes(collection: scores.Collection) -> list[str]:
  """Returns what limits the report's meaning, one sentence each."""
  return [
    *_extent(collection),
    *_unfinished(collection),
    *_unequal_steps(collection),
    *_not_finite(collection),
    *_truncated(collection),
    *_assumed(collection),
  ]


def _extent(collection: scores.Collection) -> Iterator[str]:
  num_runs = len(collection.runs)
  num_games = len({setting[:2] for setting in collection.settings})
  num_seeds = [
    len(collection.select(setting, method))
    for setting in collection.settings
    for method in collection.methods(setting)
  ]
  if num_runs == 1:
    yield 'One run: there is nothing to compare it with.'
  if max(num_seeds) == 1 and num_games == 1:
    yield (
      'One game, one seed: this shows that the machinery works; it is not '
      'evidence about the methods.'
    )
  elif min(num_seeds) == 1:
    yield (
      'At least one method has one seed only: no interval, and a difference '
      'can be chance.'
    )
  elif min(num_seeds) < _FEW_SEEDS:
    yield (
      f'As few as {min(num_seeds)} seeds: a bootstrap interval over so few is '
      'too narrow.'
    )


def _unfinished(collection: scores.Collection) -> Iterator[str]:
  unfinished = [run.name for run in collection.runs if not run.finished]
  if unfinished:
    yield (
      f'Not finished: {", ".join(unfinished)}. The report shows '
      'unfinished runs as far as they are.'
    )
  for run in collection.runs:
    if run.evaluations.empty:
      yield f'{run.name} has not been evaluated yet, so it has no return.'
    if run.metrics.empty:
      yield f'{run.name} has not logged any metrics yet.'


def _unequal_steps(collection: scores.Collection) -> Iterator[str]:
  for setting in collection.settings:
    steps: dict[str, int] = {}
    for method in collection.methods(setting):
      name = methods.display_name(method)
      curve = curves.curve(collection, setting, method, scores.RETURN)
      if curve.last_step is not None:
        steps[name] = curve.last_step
      elif curve.num_seeds:
        yield (
          f'{setting.label}: the seeds of {name} were never evaluated at the '
          'same gradient step, so it has no score.'
        )
    if len(set(steps.values())) > 1:
      listed = ', '.join(f'{name} at {step:,}' for name, step in steps.items())
      yield (
        f'{setting.label}: the last returns are at different gradient steps '
        f'({listed}).'
      )


def _not_finite(collection: scores.Collection) -> Iterator[str]:
  for run in collection.runs:
    for quantity in scores.METRICS:
      values = run.series(quantity)
      wrong = values[np.isinf(values)]
      if len(wrong):
        yield (
          f'{run.name}: {quantity} is not finite in {len(wrong)} of '
          f'{len(values)} rows, first at gradient step {wrong.index[0]:,}; '
          'the figures have a gap there, the tables a dash.'
        )


def _truncated(collection: scores.Collection) -> Iterator[str]:
  every = [run.evaluations for run in collection.runs]
  num_truncated = sum(int(e['truncated'].sum()) for e in every)
  if num_truncated:
    num_episodes = sum(int(e['episodes'].sum()) for e in every)
    yield (
      f'{num_truncated:,} of {num_episodes:,} evaluation episodes were '
      'cut short by a limit on steps; their returns count as they are.'
    )


def _assumed(collection: scores.Collection) -> Iterator[str]:
  names = [run.name for run in collection.runs if 'gamma' not in _protocol(run)]
  if names:
    who = (
      'every run' if len(names) == len(collection.runs) else ', '.join(names)
    )
    yield (
      f'Gamma is not in the protocol of {who}; {tables.DEFAULT_GAMMA} is '
      'assumed.'
    )
  versions = {plain(run.provenance.get('versions')) for run in collection.runs}
  if len(versions) > 1:
    yield 'The runs were made with different versions of software, see below.'
