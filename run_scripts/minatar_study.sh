#!/usr/bin/env bash
# Executes grids of the MinAtar study, such as `minatar_study.sh sweeps/minatar`:
# logs the play of each game of which a run is left, trains what is left, and
# keeps what is finished under results/. Given again, it goes on from wherever it
# was left; what results/ holds is done.
set -euo pipefail
cd "$(dirname "$0")/.."

RUNS=runs/minatar
PYTHON=${PYTHON:-python}
# Ray gives way to everything else unless it is told not to.
export RAY_worker_niceness=${RAY_worker_niceness:-0}

sweep() {  # COMMAND GRID
  "$PYTHON" -m batch_rl_dr3.sweep "$1" --grid="$2.gin" \
    --runs="$RUNS/runs" "${@:3}"
}

games_left() {  # GRID
  sweep status "$1" --json | "$PYTHON" -c "
import json, sys
left = (run['folder'] for run in json.load(sys.stdin) if run['state'] != 'done')
print(*sorted({folder.split('/')[1] for folder in left}))"
}

for grid in "$@"; do
  sweep keep "$grid"
  for game in $(games_left "$grid"); do
    "$PYTHON" -m batch_rl_dr3.collect --gin_files=collect/minatar_study.gin \
      --gin_bindings="create_minatar_lanes.game_name='$game'" \
      --output_dir="$RUNS/data/$game/1"
  done
  # Stopped or not, what has finished is kept.
  status=0
  sweep run "$grid" --cache_dir="$RUNS/cache" || status=$?
  sweep keep "$grid"
  [ "$status" = 0 ] || exit "$status"
done
