"""The page of any runs: each game and data set on its own."""

from batch_rl_dr3.reporting import (
  facts,
  figures,
  glossary,
  methods,
  notes,
  scores,
  selection_figure,
  tables,
)
from batch_rl_dr3.reporting.section import Content, Section

_MAX_NAMED_SETTINGS = 3


def content(collection: scores.Collection) -> Content:
  """Returns what the page says."""
  first, *others = tables.all_tables(collection)
  return Content(
    title=_title(collection),
    summary=_summary(collection),
    notes=notes.notes(collection),
    sections=[
      Section('', [first]),
      Section('', figures.all_figures(collection)),
      Section('', others),
      selection_figure.section(collection),
      Section('', [facts.runs_table(collection)]),
    ],
    glossary=glossary.QUANTITIES,
    facts=facts.facts(collection, few=True),
  )


def _count(number: int, noun: str) -> str:
  return f'{number} {noun if number == 1 else noun + "s"}'


def _title(collection: scores.Collection) -> str:
  settings = collection.settings
  if len(settings) > _MAX_NAMED_SETTINGS:
    return f'DR3 report: {len(settings)} pairs of game and data set'
  return 'DR3 report: ' + '; '.join(setting.label for setting in settings)


def _summary(collection: scores.Collection) -> str:
  games = {setting[:2] for setting in collection.settings}
  suites = sorted({s.suite for s in collection.settings if s.suite})
  names = methods.ordered(run.method for run in collection.runs)
  seeds = {run.replicate for run in collection.runs}
  parts = [
    _count(len(collection.runs), 'run'),
    _count(len(games), 'game') + (f' ({", ".join(suites)})' if suites else ''),
    _count(len(names), 'method'),
    _count(len(seeds), 'seed'),
  ]
  return ' · '.join(parts)
