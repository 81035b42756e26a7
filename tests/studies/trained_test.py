"""Every variant of every study, as gin has it."""

import gin
import pytest

from batch_rl_dr3.agents import dqn, quantile, rem  # noqa: F401
from batch_rl_dr3.config import cli
from batch_rl_dr3.games import (
  atari,  # noqa: F401
  minatar,  # noqa: F401
)
from batch_rl_dr3.studies import trained
from batch_rl_dr3.training import discrete as runner  # noqa: F401

VARIANTS = [
  pytest.param(study, variant, id=f'{study.name}-{variant.method}')
  for study in trained.STUDIES.values()
  for variant in study.variants
]


@pytest.mark.parametrize(
  ('suite', 'dataset'), [('minatar', None), ('atari', '5pct')]
)
@pytest.mark.parametrize(('study', 'variant'), VARIANTS)
def test_a_variant_is_what_gin_calls_it(
  clear_gin, study, variant, suite, dataset
):
  cli.load_gin(variant.gin_files(suite, dataset), variant.bindings)
  assert gin.query_parameter('FixedReplayRunner.method') == variant.method
  assert gin.query_parameter('Subset.fraction') == (0.05 if dataset else 1.0)


@pytest.mark.parametrize('study', trained.STUDIES.values(), ids=str)
def test_a_study_has_variants_apart_and_quantities_that_can_be_drawn(study):
  names = [variant.method for variant in study.variants]
  assert len(set(names)) == len(names)
  assert set(study.quantities) <= set(trained.PANELS)
  for i, variant in enumerate(study.variants):
    # Whom it starts from is trained before it.
    assert variant.starts_from in (None, *names[:i])


def test_the_four_backups_are_those_of_the_paper(clear_gin):
  backups = {}
  for variant in trained.STUDIES['figure1'].variants:
    gin.clear_config()
    cli.load_gin(variant.gin_files('minatar', None), ())
    backups[variant.method] = gin.query_parameter('FixedReplayDQNAgent.backup')
    assert gin.query_parameter('FixedReplayDQNAgent.penalties') == []
  assert backups == {
    'regression': 'monte_carlo',
    'sarsa': 'sarsa',
    'td': 'td',
    'q_learning': 'q_learning',
  }


def test_the_stop_gradient_ablation_changes_that_alone(clear_gin):
  def config(method):
    gin.clear_config()
    variants = trained.STUDIES['table_a1'].variants
    variant = next(v for v in variants if v.method == method)
    cli.load_gin(variant.gin_files('minatar', None), ())
    return dict(gin.config._CONFIG)

  before, after = config('cql_dr3'), config('cql_dr3_stop_gradient')
  changed = {
    (scope_and_name, key): value
    for scope_and_name, bound in after.items()
    for key, value in bound.items()
    if before.get(scope_and_name, {}).get(key) != value
    and not isinstance(value, list | gin.config.ConfigurableReference)
  }
  assert set(changed.values()) == {True, 'cql_dr3_stop_gradient'}
