"""Errors that a user can mend, and the exit code each one ends a command with.

The codes are those of BSD's sysexits.h, so that a batch system can tell a
wrong configuration (do not retry) from a preemption (retry).
"""


class BatchRLError(Exception):
  """An error whose message alone tells the user what is wrong."""

  exit_code = 70  # Of a command that ends with this error.


class UsageError(BatchRLError):
  """The command line is wrong: an unknown flag, a missing argument."""

  exit_code = 64


class DataError(BatchRLError):
  """Logged data is missing, damaged, or not what the run needs."""

  exit_code = 65


class DivergedError(BatchRLError):
  """Training produced a loss that is not finite."""


class WriteError(BatchRLError):
  """A file or folder cannot be written."""

  exit_code = 73


class PreemptedError(BatchRLError):
  """The run was asked to stop and can be resumed by the same command."""

  exit_code = 75


class ConfigError(BatchRLError):
  """A gin configuration cannot be used as it is."""

  exit_code = 78


# What reading JSON, and taking what should be in it, raises.
MALFORMED_JSON = (
  *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
)


def one_line(error: BaseException) -> str:
  """Returns what an error says, on one line and without gin's own words."""
  # Gin adds the chain of configurables.
  message = str(error).partition('\n  In call to configurable')[0]
  return ' '.join(message.split())


def picklable(error: BatchRLError) -> BatchRLError:
  """Returns an error that says the same and can be sent to another process.

  Gin raises errors from configurables anew, of classes that it makes up.
  """
  kind = next(k for k in type(error).__mro__ if globals().get(k.__name__) is k)
  said: BatchRLError = kind(one_line(error))
  return said
