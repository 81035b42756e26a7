"""The systems that job arrays are written for, by the names users give."""

import os

from batch_rl_dr3.runs import run_directory
from batch_rl_dr3.sweeping import gcp_batch, job_array, kubernetes, slurm

BACKENDS = {
  'gcp-batch': gcp_batch.GcpBatch,
  'slurm': slurm.Slurm,
  'kubernetes': kubernetes.Kubernetes,
}


def write(
  name: str, array: job_array.JobArray, folder: str | os.PathLike[str]
) -> list[str]:
  """Writes the files of a job array and returns the commands to submit them.

  Args:
    name: one of `BACKENDS`, which is made as gin says.
    array: the job array.
    folder: where the files go.

  Raises:
    WriteError: if they cannot be written.
  """
  backend: job_array.Backend = BACKENDS[name]()
  place = run_directory.make_directory(folder)
  files = backend.files(array)
  for file_name, text in files.items():
    run_directory.write_atomically(place / file_name, text)
  return backend.submit(list(files))
