"""Why a run failed, for whoever looks at its directory later."""

from collections.abc import Callable, Iterator
import contextlib

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic, run_directory
from batch_rl_dr3.runs import home as home_lib


@contextlib.contextmanager
def noted(home: home_lib.Home, steps: Callable[[], int]) -> Iterator[None]:
  """Writes failed.json if the block fails; one from before is removed.

  It names the error's class, the exit code, the gradient step and the message.
  A run that was asked to stop, or is somebody else's now, has not failed.

  Args:
    home: of the run.
    steps: returns how many gradient steps the weights have had.
  """
  path = home.folder / run_directory.FAILED
  atomic.remove_tree(path)
  try:
    yield
  except errors.PreemptedError:
    raise
  except errors.BatchRLError as error:
    record = {
      'error': type(error).__name__,
      'exit_code': error.exit_code,
      'gradient_steps': steps(),
      'message': str(error),
    }
    # A disk that is full, or a home that is lost, must not hide the error.
    with contextlib.suppress(errors.BatchRLError):
      atomic.write_json(path, record, home.check)
      home.publish()
    raise
