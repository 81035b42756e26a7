"""Ranks the checkpoints of training runs without playing the game.

  python -m batch_rl_dr3.select --runs='runs/minatar/*'

prints, for each run that holds two whole checkpoints or more, which of them
each rule chooses, by the feature dot product, effective rank, TD loss and
Q-values that the run logged while it trained. Where returns are known it also
prints how much of them each rule would have kept, had it chosen among all
evaluations: look there before trusting one. Rules never see a return.

Rules:
{rules}

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
import functools
import json
import math
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from absl import flags

from batch_rl_dr3.config import cli, errors, flag_tables
from batch_rl_dr3.reporting import words
from batch_rl_dr3.runs import atomic, results

if TYPE_CHECKING:
  import pandas as pd

  from batch_rl_dr3.reporting import tables

FLAGS = flags.FLAGS

RULES = tuple(name for name in words.parts('rules') if name != 'random')
# Runs that are named where some cannot be ranked.
_MAX_NAMED = 10


def define_flags() -> None:
  """Defines the flags of the command."""
  cache_help = 'Where what is read of runs in a bucket is kept.'
  cli.define_shared('cache', cache_dir=cache_help)
  flag_tables.define('select', rule={'enum_values': RULES})


def select(
  patterns: Sequence[str],
  names: Sequence[str] = (),
  top: int = 1,
  output: str | None = None,
  cache_dir: str = '',
) -> None:
  """Prints, and writes to `output`, the choices of the rules and their worth.

  The arguments are what the flags are: no `names` of rules stand for all.

  Raises:
    DataError: if there are no runs, or none that can be ranked.
    WriteError: if `output` cannot be written.
  """
  from batch_rl_dr3.reporting import run_reader, selection

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
  if output is not None:
    content = {
      'rules': [
        {name: getattr(rule, name) for name in ('name', 'choice', 'source')}
        for rule in rules
      ],
      'ranking': records(ranked),
      'measured': records(measured.frame),
      'outcomes': records(outcomes),
    }
    text = json.dumps(content, indent=1, allow_nan=False) + '\n'
    if output.endswith('.csv'):
      text = ranked.to_csv(index=False, lineterminator='\n')
    atomic.write_text(output, text)
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
  columns = tuple(c for c in measured.columns if c.names != ['choice'])
  short = dataclasses.replace(measured, columns=columns)
  print(f'\n{measured.title}\n{_text(short)}\n')
  if measured.cells:
    print(textwrap.fill(measured.caption, 80))


def _text(made: 'tables.Table') -> str:
  return made.as_shown().to_string(index=False) if made.cells else made.empty


def records(frame: 'pd.DataFrame') -> list[dict[str, Any]]:
  """Returns the rows of a table for JSON, None for what is not known."""
  known = frame.replace([math.inf, -math.inf], math.nan).astype(object)
  return list(known.where(known.notna(), None).to_dict('records'))


def _rules() -> str:
  """Returns what each rule chooses and who proposed it."""
  choices, sources = words.parts('rules'), words.parts('rule_sources')
  wrap = functools.partial(textwrap.fill, width=80, subsequent_indent=' ' * 20)
  rules = (f'  {n:18}{choices[n]} ({sources[n]})' for n in RULES)
  return '\n'.join(map(wrap, rules))


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
  cli.run(main, (__doc__ or '').format(rules=_rules()))
