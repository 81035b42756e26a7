"""Ranks the checkpoints of training runs without playing the game.

  python -m batch_rl_dr3.select --runs='runs/minatar/*'

prints, for each run that holds two whole checkpoints or more, which of them
each rule chooses, by the feature dot product, effective rank, TD loss and
Q-values that the run logged while it trained. Where returns are known it also
prints how much of them each rule would have kept, had it chosen among all
evaluations: look there before trusting one. Rules never see a return.

Rules:
  last              last checkpoint (baseline)
  dot_growth        lowest feature dot product per gradient step taken (ours;
                    arXiv:2112.04716, Figures 1 and 2)
  co_adaptation     lowest ratio of Proposition 3.2 (ours; the margin to
                    Proposition 3.2 of arXiv:2112.04716)
  before_violation  last before Proposition 3.2's ratio first reaches 1
                    (Proposition 3.2 of arXiv:2112.04716)
  rank_highest      highest effective rank (ours; arXiv:2010.14498)
  rank_intact       last before the effective rank first falls below half of its
                    highest (ours; arXiv:2010.14498)
  td_error          lowest TD loss on the fixed sample (common practice)
  q_peak            highest mean Q of the data (arXiv:2109.10813, for
                    conservative methods such as CQL)
  q_settled         mean Q that moved least since half of the gradient steps
                    (ours; arXiv:2112.04716, Figure 1)
  mean_rank         best mean place under dot_growth, rank_highest, td_error and
                    q_peak (ours)

--output writes the whole ranking of every rule: as CSV one row per run, rule
and checkpoint (place 1 is the choice); as JSON these under "ranking", what
each rule would have kept, on average and run by run, under "measured" and
"outcomes", and the rules with their sources under "rules". It needs no
TensorFlow.

Exit status: 0 ranked; 64 wrong command line; 65 no runs, damaged runs, or
nothing that can be ranked; 73 the output cannot be written.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from absl import flags

from batch_rl_dr3.config import cli, errors, flag_tables
from batch_rl_dr3.runs import atomic, results

if TYPE_CHECKING:
  import pandas as pd

  from batch_rl_dr3.reporting import tables

FLAGS = flags.FLAGS

# Those of reporting/selection.py, which takes seconds to import.
RULES = (
  *('last', 'dot_growth', 'co_adaptation', 'before_violation'),
  *('rank_highest', 'rank_intact', 'td_error', 'q_peak', 'q_settled'),
  'mean_rank',
)
# Runs that are named where some cannot be ranked.
_MAX_NAMED = 10


def define_flags() -> None:
  """Defines the flags of the command."""
  cli.define_cache_dir('Where what is read of runs in a bucket is kept.')
  flag_tables.define('select', rule={'enum_values': RULES})


def select(
  patterns: Sequence[str],
  names: Sequence[str] = (),
  top: int = 1,
  output: str | None = None,
  cache_dir: str = '',
) -> None:
  """Prints, and writes if asked, the choices of the rules and their worth.

  Args:
    patterns: globs of run directories.
    names: of rules; none for all.
    top: how many checkpoints of each rule to print.
    output: a .csv or .json file for the whole ranking.
    cache_dir: where what is read of a bucket is kept.

  Raises:
    DataError: if there are no runs, or none that can be ranked.
    WriteError: if `output` cannot be written.
  """
  from batch_rl_dr3.reporting import run_reader, selection, words

  view = results.RunGlobs(patterns, cache_dir, selection.CONTENTS)
  view.refresh()
  collection = run_reader.load(view.patterns)
  rules = [r for r in selection.RULES if not names or r.name in names]
  ranked = selection.ranking(collection, rules)
  ranked['folder'] = ranked['folder'].map(view.name_of)
  outcomes = selection.outcomes(collection, rules)
  if ranked.empty and outcomes.empty:
    raise errors.DataError(
      'nothing to rank: a run needs two whole checkpoints, or two evaluations '
      f'that differ, and metrics.csv; none of {len(collection.runs)} has them.'
    )
  measured = selection.worth(collection, outcomes)
  if output is not None and output.endswith('.csv'):
    text = ranked.to_csv(index=False, lineterminator='\n')
    atomic.write_text(output, text)
  elif output is not None:
    content = {
      'rules': [
        {'name': rule.name, 'choice': rule.choice, 'source': rule.source}
        for rule in rules
      ],
      'ranking': records(ranked),
      'measured': records(measured.frame),
      'outcomes': records(outcomes),
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    atomic.write_text(output, f'{text}\n')
  print(_text(selection.choices(ranked, top)))
  there = set(ranked['run'])
  rest = [run.name for run in collection.runs if run.name not in there]
  if rest:
    print(
      'not ranked, since fewer than two whole checkpoints are there or '
      'nothing that the rules look at was logged: '
      f'{words.listed(rest, _MAX_NAMED)}',
      file=sys.stderr,
    )
  # What each rule chooses would fill the line, and --help says it.
  columns = tuple(c for c in measured.columns if c.names != ('choice',))
  short = dataclasses.replace(measured, columns=columns)
  print(f'\n{measured.title}\n{_text(short)}\n')
  if measured.cells:
    print(textwrap.fill(measured.caption, 80))


def _text(made: 'tables.Table') -> str:
  import pandas as pd

  if not made.cells:
    return made.empty
  headings = [column.heading for column in made.shown]
  return pd.DataFrame(made.cells, columns=headings).to_string(index=False)


def records(frame: 'pd.DataFrame') -> list[dict[str, Any]]:
  """Returns the rows of a table for JSON, None for what is not known."""
  finite = frame.astype(object).where(
    frame.notna() & ~frame.isin([math.inf, -math.inf]), None
  )
  return [
    {
      # NumPy's numbers have an item().
      str(name): value.item() if hasattr(value, 'item') else value
      for name, value in row.items()
    }
    for row in finite.to_dict('records')
  ]


def main() -> None:
  """Runs the command that the flags ask for."""
  if not FLAGS.runs:
    raise errors.UsageError(
      "no runs given: name them, such as --runs='runs/minatar/*'."
    )
  if FLAGS.output is not None and not FLAGS.output.endswith(('.csv', '.json')):
    raise errors.UsageError(
      f'--output={FLAGS.output} ends in neither .csv nor .json.'
    )
  select(FLAGS.runs, FLAGS.rule, FLAGS.top, FLAGS.output, FLAGS.cache_dir)


if __name__ == '__main__':
  define_flags()
  cli.run(main, __doc__)
