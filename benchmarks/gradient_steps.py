"""The measurements of `python -m batch_rl_dr3.benchmark`, one after another."""

import pathlib
import tempfile

from batch_rl_dr3.config import progress
from benchmarks import measurements, setups, table


def measure(quick: bool, json: str | None) -> None:
  """Measures, prints the table, and writes it where a file is named.

  Args:
    quick: whether with fewer bursts.
    json: the file to write the rows to.

  Raises:
    WriteError: if it cannot be written.
  """
  effort = measurements.QUICK if quick else measurements.FULL
  rows: list[table.Row] = []
  with (
    tempfile.TemporaryDirectory() as name,
    progress.bar(5, 'benchmark', 'part') as bar,
  ):
    folder = pathlib.Path(name)
    cache = folder / 'cache'
    log = setups.write_log(folder, setups.ATARI, 2000)
    store = setups.open_store(log, cache, setups.ATARI)
    # First, while no other child of this process has taken memory.
    startup = list(measurements.first_step(log, cache, folder))
    bar.update()
    rates: dict[tuple[str, bool], float] = {}
    for method in ('rem', 'cql'):
      measured, by_dr3 = measurements.training(store, method, effort)
      rows += measured
      rates |= {(method, with_dr3): r for with_dr3, r in by_dr3.items()}
      bar.update()
    small_log = setups.write_log(folder, setups.MINATAR, 2000)
    small_store = setups.open_store(small_log, cache, setups.MINATAR)
    rows.append(measurements.small_network(small_store, effort))
    bar.update()
    play = measurements.evaluation(effort)
    bar.update()
  rows += [play, *startup, *measurements.protocol(rates, play.value)]
  print(table.to_text(rows))
  if json:
    table.write_json(json, rows)
