#!/bin/sh
# Trains CQL and BRAC, with and without DR3, on Hopper data collected here.
#
#   run_scripts/d4rl_smoke.sh DATA.hdf5 RUNS
#
# Given again, it goes on from where it was left. DATA.hdf5 is what
# gin_configs/d4rl/collect_hopper.gin makes.
set -eu
data=$1 runs=$2
train() {
  method=$1; shift
  "${PYTHON:-python}" -m batch_rl_dr3.train "$@" \
    --gin_files=d4rl/tasks/hopper_smoke.gin \
    --replay_dir="$data" --base_dir="$runs/$method"
}
train brac_dr3 --gin_files=d4rl/brac_dr3_mujoco.gin \
  --gin_bindings='ContinuousRunner.num_cloning_steps=2000'
train brac --gin_files=d4rl/brac_dr3_mujoco.gin \
  --gin_bindings='ContinuousRunner.num_cloning_steps=2000' \
  --gin_bindings="ContinuousRunner.method='brac'" \
  --gin_bindings='DR3BracAgent.penalties=[]'
train cql_dr3 --gin_files=d4rl/cql_dr3_full-replay.gin
train cql --gin_files=d4rl/cql_dr3_full-replay.gin \
  --gin_bindings="ContinuousRunner.method='cql'" \
  --gin_bindings='DR3CqlSacAgent.penalties=[]'
