"""Reads again what a storage may give next time; if it refuses, says why."""

from collections.abc import Callable
import dataclasses
import random
import time
from typing import Any, TypeVar

from absl import logging
import gin

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.runs.place import one_line

_T = TypeVar('_T')

_REFUSALS = frozenset({400, 401, 403, 404})
_FALTERS = frozenset({408, 425, 429})
# Names of exceptions, so that no client library is imported to compare types.
_REFUSING = {
  *('FileNotFoundError', 'PermissionError'),
  *('NoCredentialsError', 'GoogleAuthError'),
}
_FALTERING = {
  'ClientError',  # aiohttp's, for connections and bodies that break.
  *('RequestException', 'TimeoutError', 'ConnectionError', 'FSTimeoutError'),
}
# No connection was ever made: a wrong address, no network, a wall.
_UNREACHABLE = 'ClientConnectorError'
_UNREACHABLE_ATTEMPTS = 2


class RefusedError(errors.DataError):
  """A storage does not give the data: forbidden, absent, or out of reach."""


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class Retry:
  """Tries again what may pass: exponential backoff with jitter, bounded.

  These attempts come on top of gcsfs's own, up to 6 a request, and cover what
  those do not: timeouts and short reads.

  A random half to whole of a delay is used, so that many readers spread out.
  """

  # Of a read in all; at most two where no connection could be made.
  attempts: ranges.Count = 5
  # Seconds before the second attempt, doubled for each further.
  first_delay: ranges.NonNegative = 1.0
  max_delay: ranges.NonNegative = 60.0
  sleep: Callable[[float], None] = time.sleep

  def __call__(self, name: str, read: Callable[[], _T]) -> _T:
    """Returns what `read` returns; messages call what is read by `name`.

    Raises:
      RefusedError: if the storage refuses, or did not answer in any attempt.
      DataError: if anything else goes wrong.
    """
    import tenacity  # Only where something is read from afar.

    again = tenacity.Retrying(
      retry=tenacity.retry_if_exception(_falters),
      stop=lambda state: state.attempt_number >= self._most(_failure(state)),
      wait=lambda state: self._delay(state.attempt_number),
      sleep=self.sleep,
      before_sleep=lambda state: logging.info(
        *('%s: %s; again in %.1f s', name, one_line(_failure(state))),
        state.upcoming_sleep,
      ),
    )
    try:
      return again(read)
    except errors.BatchRLError:
      raise
    except tenacity.RetryError as given_up:
      number = given_up.last_attempt.attempt_number
      error = given_up.last_attempt.exception()
      raise RefusedError(
        f'{name} could not be read in {number} attempts; the last one ended '
        f'with: {one_line(error)}. Try again later.'
      ) from error
    except Exception as error:  # fsspec's backends raise many kinds.
      if _is_refusal(error):
        raise RefusedError(f'{name} is refused: {one_line(error)}.') from error
      message = f'cannot read {name}: {one_line(error)}.'
      raise errors.DataError(message) from error

  def _most(self, error: BaseException) -> int:
    if _UNREACHABLE in _kinds(error):
      return min(self.attempts, _UNREACHABLE_ATTEMPTS)
    return self.attempts

  def _delay(self, attempt: int) -> float:
    delay = min(self.max_delay, self.first_delay * 2 ** (attempt - 1))
    return delay * random.uniform(0.5, 1)


def _failure(state: Any) -> Any:
  return state.outcome.exception()


def _status(error: BaseException) -> int | None:
  for name in ('status', 'code'):
    value = getattr(error, name, None)
    if isinstance(value, int | str) and str(value).isdigit():
      return int(value)
  return None


def _kinds(error: BaseException) -> set[str]:
  return {kind.__name__ for kind in type(error).__mro__}


def _is_refusal(error: BaseException) -> bool:
  """Whether to ask elsewhere: 401, 403, 404, no such bucket, no credentials."""
  return (
    _status(error) in _REFUSALS
    # gcsfs turns 403 into a bare OSError, and a bad bucket into a ValueError.
    or str(error).startswith(('Forbidden', 'Bad Request'))
    or bool(_kinds(error) & _REFUSING)
  )


def _falters(error: BaseException) -> bool:
  """Whether another attempt may succeed: 429, 5xx, timeouts, broken bodies."""
  if _is_refusal(error):
    return False
  status = _status(error)
  if status is not None:
    return status in _FALTERS or status >= 500
  return bool(_kinds(error) & _FALTERING)
