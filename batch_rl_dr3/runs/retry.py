"""What a failed read of a storage means, and when it is tried again."""

from collections.abc import Callable
import random
import time
from typing import TypeVar

from absl import logging
import gin

from batch_rl_dr3.config import errors

_T = TypeVar('_T')
_REFUSALS = frozenset({400, 401, 403, 404})
_FALTERS = frozenset({408, 425, 429})
# Names of exceptions, so that no client library is imported to compare types.
_REFUSING = {'FileNotFoundError', 'PermissionError', 'NoCredentialsError'}
_FALTERING = {
  'ClientError',  # aiohttp's, for connections and bodies that break.
  'RequestException',
  'TimeoutError',
  'ConnectionError',
  'FSTimeoutError',
}
# No connection was ever made: a wrong address, no network, a wall.
_UNREACHABLE = 'ClientConnectorError'
_UNREACHABLE_ATTEMPTS = 2


class RefusedError(errors.DataError):
  """A storage does not give the data: forbidden, absent, or out of reach."""


def _status(error: BaseException) -> int | None:
  for name in ('status', 'code'):
    value = getattr(error, name, None)
    if isinstance(value, int | str) and str(value).isdigit():
      return int(value)
  return None


def _is_refusal(error: Exception) -> bool:
  """Whether to ask elsewhere: 401, 403, 404, no such bucket, no credentials."""
  kinds = _kinds(error)
  # gcsfs turns 403 into a bare OSError, and a bad bucket into a ValueError.
  told = str(error).startswith(('Forbidden', 'Bad Request'))
  return (
    told
    or _status(error) in _REFUSALS
    or bool(kinds & _REFUSING)
    or 'GoogleAuthError' in kinds
  )


def _falters(error: Exception) -> bool:
  """Whether another attempt may succeed: 429, 5xx, timeouts, broken bodies."""
  status = _status(error)
  if status is not None:
    return status in _FALTERS or status >= 500
  return bool(_kinds(error) & _FALTERING)


def _kinds(error: Exception) -> set[str]:
  return {kind.__name__ for kind in type(error).__mro__}


@gin.configurable
class Retry:
  """Tries again what may pass: exponential backoff with jitter, bounded.

  gcsfs tries each request up to 6 times by itself; these attempts come on top
  of that, and cover what it does not: timeouts and short reads.
  """

  def __init__(
    self,
    attempts: int = 5,
    first_delay: float = 1.0,
    max_delay: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
  ):
    """Sets the rule.

    Args:
      attempts: int, how often a read is tried in all; twice at most where
        no connection could be made: gcsfs alone tries for a minute.
      first_delay: float, seconds before the second attempt; each further
        delay is twice as long. The delay used is a random half to whole of
        it, so that many readers do not come back at once.
      max_delay: float, the longest delay in seconds.
      sleep: what waits.

    Raises:
      ConfigError: if attempts is less than 1.
    """
    if attempts < 1:
      raise errors.ConfigError(
        f'Retry.attempts is {attempts}; it must be at least 1.'
      )
    self._attempts = attempts
    self._first_delay = first_delay
    self._max_delay = max_delay
    self._sleep = sleep

  def __call__(self, name: str, read: Callable[[], _T]) -> _T:
    """Returns what `read` returns.

    Args:
      name: what is read, for messages.
      read: what is tried.

    Raises:
      RefusedError: if the storage refuses, or did not answer in any attempt.
      DataError: if anything else goes wrong.
    """
    for attempt in range(1, self._attempts + 1):
      try:
        return read()
      except errors.BatchRLError:
        raise
      except Exception as error:  # fsspec's backends raise many kinds.
        told = _one_line(error)
        if _is_refusal(error):
          raise RefusedError(f'{name} is refused: {told}.') from error
        if not _falters(error):
          raise errors.DataError(f'cannot read {name}: {told}.') from error
        is_unreachable = _UNREACHABLE in _kinds(error)
        most = _UNREACHABLE_ATTEMPTS if is_unreachable else self._attempts
        if attempt >= min(most, self._attempts):
          raise RefusedError(
            f'{name} could not be read in {attempt} attempts; the last one '
            f'ended with: {told}. Try again later.'
          ) from error
        delay = min(self._max_delay, self._first_delay * 2 ** (attempt - 1))
        delay *= random.uniform(0.5, 1)
        logging.info('%s: %s; again in %.1f s', name, told, delay)
        self._sleep(delay)
    raise AssertionError('unreachable')


def _one_line(error: Exception) -> str:
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text}' if text else type(error).__name__
