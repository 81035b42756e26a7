"""A job array for Slurm, as scripts for sbatch."""

from collections.abc import Sequence
import dataclasses
import math
import shlex

import gin

from batch_rl_dr3.sweeping import attempt, job_array

_SCRIPT = """\
#!/usr/bin/env bash
{options}
# A task of this array is one run. It is told to save before its time is up,
# and begins again from there; Slurm itself requeues tasks of lost nodes.
set -uo pipefail
stopped= task=
trap 'stopped=1; ${{task:+kill -TERM $task}}' TERM
{setup}
{command} &
task=$!
${{stopped:+kill -TERM $task}}
wait "$task"
code=$?
if [[ -n $stopped ]]; then
  wait "$task"
  code=$?
  # Told before it listened, it has nothing to save.
  ((code != 128 + 15)) || code={preempted}
fi
if ((code == {preempted} && ${{SLURM_RESTART_COUNT:-0}} < {retries})); then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Slurm:
  """How a sweep is executed by Slurm.

  Attributes:
    setup: shell lines that make `python` the one with this package.
    partition: where jobs go; None for the site's own choice.
    time: limit of a task, as Slurm writes it.
    parallelism: tasks of an array at a time.
    max_array_size: tasks of one array; the site's MaxArraySize is 1001 unless
      it says otherwise.
  """

  setup: str = 'source .venv/bin/activate || exit 78'
  partition: str | None = None
  time: str = '2-00:00:00'
  parallelism: int = 100
  max_array_size: int = 1000

  def files(self, array: job_array.JobArray) -> dict[str, str]:
    """Returns a script for each array that the site can take."""
    return {
      f'{part.name}.sbatch': self._script(part)
      for part in array.parts(self.max_array_size)
    }

  def _script(self, array: job_array.JobArray) -> str:
    last = len(array.indices) - 1
    options = {
      'job-name': array.name,
      'array': f'0-{last}%{self.parallelism}',
      'cpus-per-task': math.ceil(array.num_cpus),
      'mem': f'{array.mebibytes}M',
      'time': self.time,
      'signal': f'B:TERM@{job_array.STOP_SECONDS}',
      'open-mode': 'append',
      'output': '%x-%a.log',
    }
    if array.num_gpus:
      options['gres'] = f'gpu:{array.whole_gpus}'
    if self.partition is not None:
      options['partition'] = self.partition
    lines = [f'#SBATCH --{name}={value}' for name, value in options.items()]
    return _SCRIPT.format(
      options='\n'.join([*lines, '#SBATCH --requeue']),
      setup=self.setup,
      command=' \\\n  '.join(map(shlex.quote, array.command)),
      preempted=attempt.PREEMPTED,
      retries=job_array.MAX_RETRIES,
    )

  def submit(self, names: Sequence[str]) -> list[str]:
    """Returns the command of each file."""
    return [f'sbatch {name}' for name in names]
