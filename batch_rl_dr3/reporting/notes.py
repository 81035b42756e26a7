"""What a reader has to know before believing a report."""

from collections.abc import Iterator

import numpy as np

from batch_rl_dr3.reporting import curves, guards, methods, scores, tables

_FEW_SEEDS = 5
_MAX_NAMES = 12


def notes(collection: scores.Collection) -> list[str]:
  """Returns what limits the report's meaning, one sentence each."""
  return [
    *_extent(collection),
    *_unfinished(collection),
    *_unequal_steps(collection),
    *_not_finite(collection),
    *_truncated(collection),
    *_assumed(collection),
    *of_files(collection),
  ]


def of_files(collection: scores.Collection) -> Iterator[str]:
  """Yields what is odd about files and ROMs, whatever the report is about."""
  dated = [run.name for run in collection.runs if run.from_future]
  if dated:
    yield (
      f'Files of {listed(dated)} are dated in the future: the clock of the '
      'machine that wrote them, or of this one, is wrong. They were read, not '
      'taken from the cache.'
    )
  yield from guards.rom_notes(collection.runs)


def listed(names: list[str]) -> str:
  """Returns the first few of many names, and how many more there are."""
  more = len(names) - _MAX_NAMES
  shown = ', '.join(names[:_MAX_NAMES])
  return f'{shown} and {more} more' if more > 0 else shown


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
  names = [
    run.name
    for run in collection.runs
    if 'gamma' not in guards.mapping(run, 'protocol')
  ]
  if names:
    who = (
      'every run' if len(names) == len(collection.runs) else ', '.join(names)
    )
    yield (
      f'Gamma is not in the protocol of {who}; {tables.DEFAULT_GAMMA} is '
      'assumed.'
    )
  versions = {
    guards.plain(run.provenance.get('versions')) for run in collection.runs
  }
  if len(versions) > 1:
    yield 'The runs were made with different versions of software, see below.'
