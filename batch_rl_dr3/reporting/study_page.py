"""The page of a study: the paper's tables and figures, and what is missing."""

from collections.abc import Callable, Iterator, Sequence
import functools

from batch_rl_dr3.reporting import (
  facts,
  findings,
  game_tables,
  glossary,
  intervals,
  methods,
  notes,
  parallel,
  preset,
  reference,
  scores,
  selection_figure,
  study_figures,
  study_tables,
)
from batch_rl_dr3.reporting import (
  figure as figure_lib,
)
from batch_rl_dr3.reporting import (
  study as study_lib,
)
from batch_rl_dr3.reporting.section import Content, Section
from batch_rl_dr3.reporting.study_figures import QUANTITIES

# Figure 4, Figure 5, the feature dot product, and profiles.
_NUM_OVER_GAMES = len(QUANTITIES) + 1


def content(
  study: study_lib.Study,
  collection: scores.Collection,
  normalisation: reference.Normalisation,
  bootstrap: intervals.Bootstrap,
  num_processes: int,
) -> Content:
  """Returns what the page says.

  Args:
    study: the runs that it is about.
    collection: all that were read.
    normalisation: the scale of scores.
    bootstrap: makes the intervals.
    num_processes: how many figures are drawn at a time.
  """
  tables = study_tables.StudyTables(study, normalisation, bootstrap)
  # First, so that the processes that draw find rliable loaded.
  table_1, statistics = tables.table_1(), tables.statistics()
  drawn = _draw(
    study,
    study_figures.StudyFigures(study, normalisation, bootstrap),
    num_processes,
  )
  figure_4, figure_5, dot_product, profiles = (
    [figure] if figure else [] for figure in drawn[:_NUM_OVER_GAMES]
  )
  return Content(
    title=study.preset.title,
    summary=_summary(study),
    notes=[*_notes(study), *notes.of_files(collection)],
    sections=[
      Section('', [table_1, *figure_4]),
      Section('', [findings.findings(study, normalisation, bootstrap)]),
      Section('', [statistics, tables.improvement(), *profiles]),
      Section('', [tables.stability(), *figure_5, *dot_product]),
      *_per_game(study, normalisation, drawn[_NUM_OVER_GAMES:]),
      Section(
        'Which runs there are',
        [game_tables.presence(study, dataset) for dataset in study.datasets],
      ),
      selection_figure.section(collection),
      Section('', [facts.runs_table(collection)], is_folded=True),
    ],
    glossary=glossary.of_study(study.preset, normalisation, bootstrap),
    facts=facts.facts(collection, few=False),
  )


def _draw(
  study: study_lib.Study,
  figures: study_figures.StudyFigures,
  num_processes: int,
) -> list[figure_lib.Figure | None]:
  """Returns the figures over games, then those of each game by data set."""
  tasks: list[Callable[[], figure_lib.Figure | None]] = [
    *(functools.partial(figures.over_games, q) for q in QUANTITIES),
    figures.profiles,
    *(
      functools.partial(figures.per_game, quantity, dataset)
      for dataset in study.datasets
      for quantity in QUANTITIES
    ),
  ]
  return parallel.run(tasks, num_processes, 'drawing', 'figure')


def _per_game(
  study: study_lib.Study,
  normalisation: reference.Normalisation,
  drawn: Sequence[figure_lib.Figure | None],
) -> Iterator[Section]:
  size = len(QUANTITIES)
  for index, dataset in enumerate(study.datasets):
    figures = drawn[index * size : (index + 1) * size]
    yield Section(
      f'Each game, {preset.dataset_name(dataset)}',
      [
        *(
          game_tables.scores(study, normalisation, dataset, name)
          for name in study_lib.MEASURES
        ),
        *(figure for figure in figures if figure is not None),
      ],
    )


def _summary(study: study_lib.Study) -> str:
  runs = [run for found in study.runs.values() for run in found]
  finished = sum(map(study.is_finished, runs))
  wanted = study.preset
  num_wanted = (
    len(wanted.games)
    * len(wanted.methods)
    * len(wanted.datasets)
    * wanted.num_runs
  )
  of_paper = [run for run in runs if run.method in wanted.methods]
  return (
    f'{len(of_paper):,} of {num_wanted:,} runs ({len(wanted.games)} games x '
    f'{len(wanted.methods)} methods x {len(wanted.datasets)} data sets x '
    f'{wanted.num_runs} runs); {finished:,} of {len(runs):,} finished'
  )


def _notes(study: study_lib.Study) -> Iterator[str]:
  for dataset in study.preset.datasets:
    name = preset.dataset_name(dataset)
    if dataset not in study.datasets:
      yield f'There are no runs on {name}.'
      continue
    lacking = []
    for method in study.methods:
      cell = study.scores(dataset, method)
      if method not in study.methods_on(dataset):
        phrase = 'no runs'
      elif cell is None:
        phrase = 'no finished runs, so no scores'
      elif cell.lacks:
        phrase = '; '.join(cell.lacks)
      else:
        continue
      lacking.append(f'{methods.display_name(method)} ({phrase})')
    if lacking:
      yield f'Incomplete on {name}: {", ".join(lacking)}.'
  if study.strangers:
    reasons = sorted({reason for _, reason in study.strangers})
    yield (
      f'{len(study.strangers)} of the runs that were read do not belong to '
      f'{study.preset.name} and are left out: {notes.listed(reasons)}.'
    )
