"""The checksums that storages state of their objects."""

import base64
import hashlib
from typing import Any, Protocol, cast

import google_crc32c


class Checksum(Protocol):
  """google_crc32c.Checksum or a hash of hashlib."""

  def update(self, data: bytes) -> None:
    """Takes further bytes."""

  def digest(self) -> bytes:
    """Returns the checksum of the bytes so far."""


def stated_in(info: dict[str, Any]) -> tuple[Checksum, bytes] | None:
  """Returns a fresh checksum and its expected value, None if none is stated.

  Args:
    info: what fsspec's `info` or `ls` says of an object. Google Cloud Storage
      states crc32c of every object, and md5Hash of most.
  """
  if 'crc32c' in info:
    crc = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
    return cast(Checksum, crc), base64.b64decode(info['crc32c'])
  if 'md5Hash' in info:
    md5 = hashlib.md5(usedforsecurity=False)
    return cast(Checksum, md5), base64.b64decode(info['md5Hash'])
  return None
