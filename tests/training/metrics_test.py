"""Rows of metrics.csv, of a learner that says what it is told."""

import types

from absl import logging
import pytest

from batch_rl_dr3.runs import run_directory, run_tables
from batch_rl_dr3.training import loop


@pytest.fixture
def open_log(tmp_path):
  """Makes logs on one run directory, with what the sample measures."""
  measured = {'discounted_dot_product': 1.0, 'feature_norm_squared': 4.0}
  sample = types.SimpleNamespace(
    columns=tuple(measured),
    measure=lambda: dict(measured),
    feature_columns=('effective_rank',),
    measure_features=lambda: {'effective_rank': 3},
  )

  def open_log():
    log = loop.MetricsLog(tmp_path, sample, 10, 10)
    return log, measured

  return open_log


def rows(tmp_path):
  return run_tables.read_rows(tmp_path / run_directory.METRICS)


def test_the_ratio_of_proposition_32_is_logged(open_log, tmp_path):
  log, _ = open_log()
  log.start(0)
  log.log(0, 0)
  log.close()
  (row,) = rows(tmp_path)
  assert float(row['divergence_ratio']) == 0.25
  assert row['effective_rank'] == '3'


def test_the_condition_is_said_once_a_run(open_log, tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(logging, 'warning', lambda *a: said.append(a[0] % a[1:]))
  log, measured = open_log()
  log.start(0)
  log.log(0, 0)
  assert not said
  measured['discounted_dot_product'] = 5.0
  log.log(0, 10)
  log.log(0, 20)
  log.close()
  assert said == [
    (
      "features satisfy Proposition 3.2's divergence condition at gradient "
      'step 10: divergence_ratio is 1.25.'
    )
  ]
  # A run that is gone on with remembers, unless it goes back before the row.
  for steps, expected in ((20, 1), (10, 2)):
    log, _ = open_log()
    log.start(steps)
    log.log(0, steps)
    log.close()
    assert len(said) == expected
