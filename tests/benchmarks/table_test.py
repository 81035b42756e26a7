import json
import time

import pytest

from benchmarks import table, timing


def test_rows_as_text_and_json(tmp_path):
  rows = [
    table.Row(
      *('steps', 1234.5, 'steps/s', 'stock', 617.25, 2.0, 'at least 1.3'),
      timed='bursts',
      seconds=12.0,
      quartiles=(1.5, 2.5),
      quantity=table.GRADIENT_STEPS,
      method='rem_dr3',
    ),
    table.Row('memory', 0.5, 'GiB'),
  ]
  lines = table.to_text(rows).splitlines()
  assert lines[0].split()[:2] == ['what', 'value']
  assert lines[1].split() == [
    *('steps', '1,234', 'steps/s', 'stock', '617.2', '2', '1.5', 'to', '2.5'),
    *('at', 'least', '1.3', 'bursts', '12.0'),
  ]
  assert lines[2].split() == ['memory', '0.5', 'GiB']
  table.write_json(str(tmp_path / 'rows.json'), rows)
  written = json.loads((tmp_path / 'rows.json').read_text())
  assert written[0]['ratio'] == 2.0
  assert written[0]['quantity'] == 'gradient_steps_per_second'
  assert written[0]['method'] == 'rem_dr3'
  assert written[1] == {
    'name': 'memory',
    'value': 0.5,
    'unit': 'GiB',
    'peer': None,
    'peer_value': None,
    'ratio': None,
    'goal': None,
    'timed': '',
    'seconds': None,
    'quartiles': None,
    'quantity': None,
    'method': None,
  }


def test_functions_are_called_in_turn_and_ratios_are_medians_of_pairs():
  calls = []
  times = timing.alternate(
    {'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')},
    num_rounds=3,
    num_calls=2,
    num_warm_up_calls=1,
  )
  assert ''.join(calls) == 'ab' + 3 * 'aabb'
  assert [len(t.wall) for t in times.values()] == [3, 3]
  slow = timing.Times(wall=[4.0, 9.0, 2.0], cpu=[1.0, 1.0, 8.0])
  fast = timing.Times(wall=[2.0, 3.0, 2.0], cpu=[2.0, 1.0, 2.0])
  assert timing.ratio(slow, fast) == 2.0  # of 2, 3, 1
  assert timing.cpu_ratio(slow, fast) == 1.0  # of 0.5, 1, 4
  assert fast.rate == 0.5
  assert timing.quartiles(slow, fast) == (1.5, 2.5)
  # Two calls a round: 2 x (15 + 7) s.
  assert timing.seconds({'slow': slow, 'fast': fast}, 2) == 44.0


def test_waiting_takes_no_processor_time():
  times = timing.alternate({'sleep': lambda: time.sleep(0.05)}, 1, 1, 0)
  assert times['sleep'].median_wall >= 0.05
  assert times['sleep'].median_cpu == pytest.approx(0.0, abs=0.04)
