"""Every run of every study, as its grid and gin have it."""

import gin
import pytest

from batch_rl_dr3 import study
from batch_rl_dr3.agents import bellman  # noqa: F401
from batch_rl_dr3.config import cli
from batch_rl_dr3.games import (
  atari,  # noqa: F401
  minatar,  # noqa: F401
)
from batch_rl_dr3.reporting import figures, words
from batch_rl_dr3.sweeping import grid
from batch_rl_dr3.training import discrete as runner  # noqa: F401

_ATARI = (
  "Sweep.suite = 'atari'",
  "Sweep.datasets = ['5pct']",
  """Sweep.gin_files = [
    'atari/{method}_1pct.gin', 'atari/datasets/{dataset}.gin']""",
  'Sweep.gin_bindings = []',
)


def load(name, *bindings):
  gin.clear_config()
  cli.load_gin([f'studies/{name}.gin'], bindings)
  return grid.Sweep()


def config(run):
  """Returns what gin has for a run."""
  gin.clear_config()
  cli.load_gin(run.gin_files, run.gin_bindings)
  return dict(gin.config._CONFIG)


@pytest.mark.parametrize('bindings', [(), _ATARI], ids=['minatar', 'atari'])
@pytest.mark.parametrize('name', study.TRAINED)
def test_a_run_is_what_gin_calls_it(clear_gin, name, bindings):
  sweep = load(name, *bindings, "Sweep.games = ['a']", 'Sweep.seeds = [0]')
  runs = sweep.runs()
  assert [run.method for run in runs] == list(sweep.methods)
  for run in runs:
    config(run)
    assert gin.query_parameter('FixedReplayRunner.method') == run.method
    fraction = 0.05 if bindings else 0.1 if name == 'figure1' else 1.0
    assert gin.query_parameter('Subset.fraction') == fraction
    # Whom it starts from is trained before it.
    assert run.start is None or run.start.method in sweep.methods[: run.index]


@pytest.mark.parametrize('name', study.TRAINED)
def test_a_study_has_quantities_that_can_be_drawn(name):
  for quantity in words.entries(name, 'quantities'):
    assert figures.panel(quantity).title
  assert words.say(name, 'title')
  assert words.say(name, 'caption')


def test_the_four_backups_are_those_of_the_paper(clear_gin):
  backups = {}
  for run in load('figure1', "Sweep.games = ['breakout']").runs()[:4]:
    config(run)
    backups[run.method] = gin.query_parameter('FixedReplayDQNAgent.backup')
    assert gin.query_parameter('FixedReplayDQNAgent.penalties') == []
  assert backups == {
    'regression': 'monte_carlo',
    'sarsa': 'sarsa',
    'td': 'td',
    'q_learning': 'q_learning',
  }


def test_the_stop_gradient_ablation_changes_that_alone(clear_gin):
  runs = {run.method: run for run in load('table_a1').runs()[:4]}
  before, after = (
    config(runs[method]) for method in ('cql_dr3', 'cql_dr3_stop_gradient')
  )
  changed = {
    (scope_and_name, key): value
    for scope_and_name, bound in after.items()
    for key, value in bound.items()
    if before.get(scope_and_name, {}).get(key) != value
    and not isinstance(value, list | gin.config.ConfigurableReference)
  }
  assert set(changed.values()) == {True, 'cql_dr3_stop_gradient'}
