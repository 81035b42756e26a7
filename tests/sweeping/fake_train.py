"""A stand-in for `train` that honours its contract without TensorFlow.

It takes train's flags. One step is 10 ms; every step is a checkpoint. What it
is to do beside is in the file `behaviour` of the folder of all runs: lines of
'<words of the run directory>: <what>', where what is one of

    exit N       ends with the code N at once
    die_once N   kills itself after N steps, the first time
    steps N      takes N steps in place of 3
"""

import argparse
import fcntl
import json
import os
import pathlib
import signal
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument('--base_dir', type=pathlib.Path)
base_dir = parser.parse_known_args()[0].base_dir


def behaviour():
  path = base_dir.parents[4] / 'behaviour'
  found = {'steps': 3}
  if path.exists():
    for line in path.read_text().splitlines():
      words, _, what = line.partition(':')
      if words in str(base_dir):
        name, _, value = what.strip().partition(' ')
        found[name] = int(value or 0)
  return found


def stop(*_):
  print('train: stopped by SIGTERM; give the same command again.')
  sys.exit(75)


def main():
  what = behaviour()
  if 'exit' in what:
    print(f'train: this run fails with {what["exit"]}.')
    sys.exit(what['exit'])
  lock = open(base_dir / '.lock', 'a')  # noqa: SIM115
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    pathlib.Path(os.environ['BATCH_RL_DR3_ENDING']).write_text(
      json.dumps({'error': 'BusyError', 'message': 'somebody works on it'})
    )
    sys.exit(75)
  with open(base_dir / 'workers', 'a') as workers:
    workers.write(f'{os.getpid()}\n')
  checkpoints = base_dir / 'checkpoints'
  checkpoints.mkdir(exist_ok=True)
  done = len(list(checkpoints.glob('ckpt.*.json')))
  for step in range(done, what['steps']):
    time.sleep(0.01)
    manifest = checkpoints / f'ckpt.{step}.json'
    manifest.with_suffix('.tmp').write_text(
      json.dumps(
        {
          'name': str(step),
          'gradient_steps': step + 1,
          'files': {f'tf_ckpt-{step}.index': {'bytes': 0, 'sha256': '0' * 64}},
        }
      )
    )
    manifest.with_suffix('.tmp').rename(manifest)
    if step + 1 == what.get('die_once') and done == 0:
      os.kill(os.getpid(), signal.SIGKILL)
  columns = 'suite,game,method,dataset,run,seed,iteration,gradient_steps,'
  (base_dir / 'scores.csv').write_text(
    f'{columns}episode,return,length,truncated\n'
    f'minatar,breakout,dqn,all,,0,0,{what["steps"]},0,1.5,20,0\n'
  )
  (base_dir / 'finished.json').write_text('{"num_iterations": 20}')


signal.signal(signal.SIGTERM, stop)
main()
