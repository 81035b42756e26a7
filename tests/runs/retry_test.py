"""What is tried again, and how often."""

import aiohttp
from aiohttp import client_reqrep
import pytest

from batch_rl_dr3.runs import retry


def _no_connection():
  key = client_reqrep.ConnectionKey(
    'nowhere.example', 443, True, True, None, None, None
  )
  return aiohttp.ClientConnectorError(key, OSError('no such host'))


@pytest.mark.parametrize(
  ('error', 'most', 'attempts'),
  [
    (_no_connection(), 5, 2),
    (_no_connection(), 1, 1),
    (aiohttp.ServerDisconnectedError(), 5, 5),
  ],
)
def test_a_host_that_is_not_there_is_left_sooner(error, most, attempts):
  calls = []

  def read():
    calls.append(0)
    raise error

  again = retry.Retry(attempts=most, sleep=lambda seconds: None)
  with pytest.raises(retry.RefusedError, match=f'in {attempts} attempts'):
    again('a log', read)
  assert len(calls) == attempts
