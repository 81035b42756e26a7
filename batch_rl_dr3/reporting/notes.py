"""Notes: what limits the meaning of a page's numbers, a sentence each."""

from collections.abc import Iterator

import numpy as np

from batch_rl_dr3.analysis import returns
from batch_rl_dr3.reporting import (
  figures,
  reference,
  run_reader,
  tables,
  words,
)
from batch_rl_dr3.reporting.run_reader import Collection
from batch_rl_dr3.reporting.study import Study
from batch_rl_dr3.reporting.words import listed

_FEW_SEEDS = 5


def _note(part: str, **values: object) -> str:
  return words.say('notes', part, **values)


def of_runs(collection: Collection) -> list[str]:
  """Returns the notes of a page on each game and data set on its own."""
  return [
    *_extent(collection),
    *_unfinished(collection),
    *_unequal_steps(collection),
    *_not_finite(collection),
    *_truncated(collection),
    *_assumed(collection),
    *of_files(collection),
  ]


def of_study(study: Study, collection: Collection) -> list[str]:
  """Returns the notes of a study's page."""
  found = []
  for dataset in study.preset.datasets:
    name = words.dataset_name(dataset)
    if dataset not in study.datasets:
      found.append(_note('no_runs_on', dataset=name))
      continue
    lacking = [
      f'{words.display_name(method)} ({lacks})'
      for method in study.methods
      if (lacks := _lacks(study, dataset, method))
    ]
    if lacking:
      methods = ', '.join(lacking)
      found.append(_note('incomplete', dataset=name, methods=methods))
  if study.strangers:
    found.append(
      _note(
        'strangers',
        count=len(study.strangers),
        study=study.preset.name,
        reasons=listed(sorted({reason for _, reason in study.strangers})),
      )
    )
  return [*found, *of_files(collection)]


def _lacks(study: Study, dataset: str, method: str) -> str:
  if (dataset, method) not in study.lines:
    return 'no runs'
  cell = study.scores(dataset, method)
  if cell is None:
    return 'no finished runs, so no scores'
  return '; '.join(cell.lacks)


def of_files(collection: Collection) -> Iterator[str]:
  """Yields what is odd about files and ROMs, whatever the report is about."""
  dated = [run.name for run in collection.runs if run.from_future]
  if dated:
    yield _note('from_future', runs=listed(dated))
  for run in collection.runs:
    if 'lowest' not in run.evaluations:
      continue
    lowest = run.evaluations['lowest']
    wrapped = lowest[returns.is_wrapped(lowest.to_numpy(float))]
    if len(wrapped):
      yield _note(
        'wrapped',
        run=run.name,
        lowest=wrapped.min(),
        step=wrapped.idxmin(),
        count=len(wrapped),
        total=len(lowest),
      )
  yield from reference.rom_notes(collection.runs)
  yield from reference.data_notes(collection.runs)
  yield from _public(collection)


def _extent(collection: Collection) -> Iterator[str]:
  num_games = len({setting[:2] for setting in collection.settings})
  num_seeds = [len(collection.select(*line)) for line in collection.lines]
  fewest = min(num_seeds)
  if len(collection.runs) == 1:
    yield _note('one_run')
  if max(num_seeds) == 1 and num_games == 1:
    yield _note('one_game_one_seed')
  elif fewest == 1:
    yield _note('one_seed')
  elif fewest < _FEW_SEEDS:
    yield _note('few_seeds', count=fewest)


def _unfinished(collection: Collection) -> Iterator[str]:
  unfinished = [run.name for run in collection.runs if not run.finished]
  if unfinished:
    yield _note('unfinished', runs=', '.join(unfinished))
  for run in collection.runs:
    if run.evaluations.empty:
      yield _note('not_evaluated', run=run.name)
    if not len(run.metrics):
      yield _note('not_measured', run=run.name)


def _unequal_steps(collection: Collection) -> Iterator[str]:
  for setting in collection.settings:
    steps: dict[str, int] = {}
    for method in collection.methods(setting):
      name = words.display_name(method)
      curve = figures.curve_of(collection, setting, method, run_reader.RETURN)
      if curve.last_step is not None:
        steps[name] = curve.last_step
      elif curve.num_seeds:
        yield _note('no_shared_step', setting=setting.label, method=name)
    if len(set(steps.values())) > 1:
      last = ', '.join(f'{name} at {step:,}' for name, step in steps.items())
      yield _note('unequal_steps', setting=setting.label, steps=last)


def _not_finite(collection: Collection) -> Iterator[str]:
  for run in collection.runs:
    for quantity in run_reader.METRICS:
      values = run.series(quantity)
      wrong = values[np.isinf(values)]
      if len(wrong):
        yield _note(
          'not_finite',
          run=run.name,
          quantity=quantity,
          count=len(wrong),
          total=len(values),
          step=wrong.index[0],
        )


def _truncated(collection: Collection) -> Iterator[str]:
  every = [run.evaluations for run in collection.runs]
  count = sum(int(table['truncated'].sum()) for table in every)
  total = sum(int(table['episodes'].sum()) for table in every)
  if count:
    yield _note('truncated', count=count, total=total)


def _assumed(collection: Collection) -> Iterator[str]:
  runs = collection.runs
  names = [run.name for run in runs if 'gamma' not in run.recorded('protocol')]
  if names:
    who = 'every run' if len(names) == len(runs) else ', '.join(names)
    yield _note('no_gamma', runs=who, gamma=tables.DEFAULT_GAMMA)
  if len({reference.plain(run.provenance.get('versions')) for run in runs}) > 1:
    yield _note('versions')


def _public(collection: Collection) -> Iterator[str]:
  """Yields how runs stand to the public ones of the same settings."""
  for run in collection.runs:
    method = reference.COUNTERPARTS.get(run.method)
    if method is None or run.setting[::2] != ('atari', '1pct'):
      continue
    curve = run.series(run_reader.RETURN)
    for found in reference.compare(
      method, run.setting.game, curve.index.to_numpy(), curve.to_numpy()
    ):
      yield _note(
        'public',
        run=run.name,
        measure=f'its {found.measure}',
        steps=found.gradient_steps,
        value=found.value,
        verdict='outside' if found.is_outside else 'within',
        method=method,
        low=found.low,
        high=found.high,
        mean=found.mean,
      )
