import json

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import mirror
from batch_rl_dr3.sweeping import standing


def read(sweep, runs):
  return standing.read(sweep.runs(), str(runs), sweep.results_dir)


def runs_in(folder):
  return mirror.Mirror(str(folder), '', standing.CONTENTS)


def test_time_and_money_follow_from_a_given_rate(make_sweep, tmp_path):
  sweep = make_sweep(num_gpus=0.5, num_cpus=2.0)
  rates = standing.Rates({'': 50.0}, 100.0, 'as given')
  plan = standing.SweepEstimate(
    sweep, read(sweep, tmp_path), runs_in(tmp_path), rates
  )
  # 6 runs of 100,000 gradient and 200,000 agent steps:
  # 6 x (100,000 / 50 + 200,000 / 100) s = 24,000 s = 6.667 h.
  assert plan.run_hours == pytest.approx(24_000 / 3600)
  assert plan.gradient_steps == 600_000
  assert plan.agent_steps == 1_200_000
  # Each game's log of 2,000 rows of 1,000 bytes is one store.
  assert (plan.num_stores, plan.store_bytes) == (2, 4_000_000)
  text = plan.describe(3.0)
  # 6.667 h x 0.5 GPU x 3.0 = 10.
  assert 'money      10 at 3 an hour of a GPU' in text
  assert '3.333 GPU-hours, 13.33 core-hours' in text
  assert '50 gradient steps/s, play 100 agent steps/s (as given)' in text
  assert 'download   nothing' in text


def test_what_is_done_is_not_paid_for_again(make_sweep, write_run, tmp_path):
  sweep = make_sweep()
  runs = sweep.runs()
  write_run(runs[0], steps=(0, 50_000), rate=20.0, finished=True)
  write_run(runs[1], steps=(0, 25_000), rate=20.0)
  rates = standing.of_finished(runs, runs_in(tmp_path))
  plan = standing.SweepEstimate(
    sweep, read(sweep, tmp_path), runs_in(tmp_path), rates
  )
  assert plan.num_runs[standing.DONE] == 1
  # 4 whole runs and three quarters of one.
  assert plan.gradient_steps == 475_000
  assert plan.run_hours == pytest.approx(475_000 / 20 / 3600)
  assert rates.origin == f'median of 1 finished runs in {tmp_path}'
  assert plan.run_bytes_origin == 'mean of 1 finished runs'


def test_rates_of_a_benchmark(tmp_path):
  path = tmp_path / 'benchmark.json'
  rows = [
    {
      'quantity': 'gradient_steps_per_second',
      'method': method,
      'value': rate,
    }
    for method, rate in (('rem_dr3', 20.0), ('rem', 40.0))
  ]
  rows += [
    {'quantity': None, 'method': None, 'value': 1.0},
    {'quantity': 'agent_steps_per_second', 'method': None, 'value': 1300.0},
  ]
  path.write_text(json.dumps(rows))
  rates = standing.of_benchmark(str(path))
  assert rates.by_method == {'rem_dr3': 20.0, 'rem': 40.0}
  assert rates.play == 1300.0
  # A method that was not measured is taken for the slowest that was.
  assert rates.of('cql_dr3') == 20.0
  path.write_text(json.dumps(rows[:1]))
  with pytest.raises(errors.DataError, match='is not what `benchmark --json`'):
    standing.of_benchmark(str(path))


def test_what_is_not_known_is_said(make_sweep, tmp_path):
  sweep = make_sweep(replay_dir=None)
  plan = standing.SweepEstimate(
    sweep, read(sweep, tmp_path), runs_in(tmp_path), None
  )
  text = plan.describe(None)
  for line in (
    'rate       not known: give --rate or --benchmark',
    'time       not known without a rate',
    'download   not known: bind Sweep.log_gigabytes',
    'run disk   not known',
  ):
    assert line in text
  assert standing.of_finished(sweep.runs(), runs_in(tmp_path)) is None


@pytest.mark.parametrize(
  ('rule', 'gigabytes'), [('prefix', 2 * 0.5), ('uniform', 2 * 10.0)]
)
def test_a_part_of_a_log_is_a_part_of_the_download(
  make_sweep, tmp_path, rule, gigabytes
):
  sweep = make_sweep(
    replay_dir=None,
    log_gigabytes=10.0,
    gin_bindings=[f"Subset.rule='{rule}'", 'Subset.fraction=0.05'],
  )
  plan = standing.SweepEstimate(
    sweep, read(sweep, tmp_path), runs_in(tmp_path), None
  )
  assert plan.download_bytes == pytest.approx(gigabytes * 1e9)
