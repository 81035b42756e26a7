#!/usr/bin/env bash
# The main job at the smallest scale: play Freeway and log it, train four
# methods on the log, evaluate them, write a report. Given again, it goes on
# from wherever it was left.
set -euo pipefail
cd "$(dirname "$0")/.."

RUNS=runs/quickstart
PYTHON=${PYTHON:-python}

"$PYTHON" -m batch_rl_dr3.collect \
  --gin_files=collect/freeway_scripted.gin \
  --gin_bindings='collect.num_rows=20000' \
  --gin_bindings='collect.rows_per_file=10000' \
  --output_dir="$RUNS/data"

for method in rem rem_dr3 cql cql_dr3; do
  "$PYTHON" -m batch_rl_dr3.train \
    --gin_files="atari/${method}_1pct.gin" \
    --gin_files=quickstart.gin \
    --replay_dir="$RUNS/data" \
    --cache_dir="$RUNS/cache" \
    --base_dir="$RUNS/$method"
done

"$PYTHON" -m batch_rl_dr3.report --runs="$RUNS/*"
