"""Studies: the results of many runs in three files, for version control.

    runs.json    by the name of a run's folder below the study, the contents of
                 its small files: provenance.json, finished.json, ...
    scores.csv   all runs' rows, with the folder in the first column
    metrics.csv  the same; a cell is empty where a run has no such column

A study is read like the folders of its runs: `RunGlobs` makes them, and lets a
glob go on below a study.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import csv
import dataclasses
import functools
import glob
import hashlib
import io
import itertools
import json
import os
import pathlib
import tempfile
import threading
from typing import Any

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import (
  atomic,
  mirror,
  place,
  records,
  run_directory,
  run_tables,
)

_Path = str | os.PathLike[str]
RUNS = 'runs.json'
_FOLDER = 'folder'
_TABLES = (run_directory.SCORES, run_directory.METRICS)

Rows = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class KeptRun:
  """What a study holds of one run: files and tables, by their names."""

  files: Mapping[str, Any]  # Objects of .json files, else texts.
  tables: dict[str, Rows]  # Of scores.csv and metrics.csv.


def is_study(path: _Path) -> bool:
  """Returns whether a folder is a study."""
  return (pathlib.Path(path) / RUNS).is_file()


def folders(study: _Path) -> frozenset[str]:
  """Returns the folders of the runs that a study holds, none if absent."""
  return frozenset(_files(study))


def _files(study: _Path) -> Mapping[str, Mapping[str, Any]]:
  path = pathlib.Path(study) / RUNS
  try:
    status = path.stat()
  except OSError:
    return {}
  return _read_files(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _read_files(
  path: pathlib.Path, changed: int, num_bytes: int
) -> Mapping[str, Mapping[str, Any]]:
  del changed, num_bytes  # They say when it is to be read again.
  mend = 'Restore it from where it came from.'
  runs = records.read(path, {'*': 'object'}, mend) or {}
  for folder, files in runs.items():
    for name in (folder, *files):
      place.plain(name, path, 'a run')
  return runs


def read(study: _Path) -> dict[str, KeptRun]:
  """Returns the runs of a study by their folders; DataError if damaged."""
  runs = {
    folder: KeptRun(files, {name: [] for name in _TABLES})
    for folder, files in _files(study).items()
  }
  for name in _TABLES:
    for row in run_tables.read_rows(pathlib.Path(study) / name):
      folder = row.pop(_FOLDER, None)
      if folder in runs:  # Else a writer was killed before it said so.
        runs[folder].tables[name].append(row)
    for run in runs.values():
      run.tables[name] = _without_empty_columns(run.tables[name])
  return runs


def _without_empty_columns(table: Rows) -> Rows:
  names = [n for n in (table[0] if table else ()) if any(r[n] for r in table)]
  return [{name: row[name] for name in names} for row in table]


def write(study: _Path, runs: Mapping[str, KeptRun]) -> None:
  """Writes a study; what was there before is replaced."""
  path = atomic.make_directory(study)
  ordered = sorted(runs)
  for name in _TABLES:
    text = _to_csv(
      {_FOLDER: folder, **row}
      for folder in ordered
      for row in runs[folder].tables[name]
    )
    atomic.write_text(path / name, text)
  files = {folder: dict(runs[folder].files) for folder in ordered}
  text = json.dumps(files, indent=1, sort_keys=True, allow_nan=False)
  atomic.write_text(path / RUNS, f'{text}\n')


def _to_csv(rows: Iterable[Mapping[str, str]]) -> str:
  rows = list(rows)
  columns = list(dict.fromkeys(column for row in rows for column in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def _unpack(study: str, folder: pathlib.Path) -> None:
  """Makes the folders of a study's runs below a folder."""
  for name, run in read(study).items():
    target = folder / name
    target.mkdir(parents=True)
    for file_name, content in run.files.items():
      if file_name.endswith('.json'):
        atomic.write_json(target / file_name, content)
      else:
        atomic.write_text(target / file_name, content)
    for file_name, rows in run.tables.items():
      atomic.write_text(target / file_name, _to_csv(rows))


def _studies(pattern: str) -> dict[str, str]:
  """Returns the studies that a glob such as results/** names or goes on below.

  To each belongs the rest of the glob below it, such as breakout/**.
  """
  parts = pathlib.PurePath(os.path.expanduser(pattern)).parts
  if parts and parts[-1] == RUNS:
    parts = parts[:-1]
  found: dict[str, str] = {}
  for length in range(1, len(parts) + 1):
    for match in glob.glob(os.path.join(*parts[:length]), recursive=True):
      if is_study(match):
        rest = os.path.join(*(parts[length:] or ('**',)))
        found.setdefault(os.path.normpath(match), rest)
  return found


def _unpacked(study: str, cache: pathlib.Path) -> pathlib.Path:
  """Returns the folder that a study is unpacked in, once for each state."""
  digest = hashlib.sha256()
  for name in (RUNS, *_TABLES):
    digest.update((pathlib.Path(study) / name).read_bytes())
  target = cache / digest.hexdigest()[:16]
  if not target.is_dir():
    with atomic.whole_folder(target) as partial:
      _unpack(study, partial)
  return target


class RunGlobs:
  """What globs of run directories match; so do `patterns` on this machine."""

  def __init__(
    self,
    patterns: Iterable[str],
    cache_dir: _Path,
    contents: mirror.Contents,
  ):
    """Unpacks studies, and reads nothing of a bucket yet.

    The patterns are globs of paths, or of URLs such as gs://BUCKET/RUNS/**, and
    may name a study or go on below it. Mirrors and studies are in cache_dir, or
    in a temporary folder if that is ''.
    """
    self.patterns: list[str] = []
    self._mirrors: list[mirror.Mirror] = []
    # What is read in a folder here, and its URL or path.
    self._names: dict[pathlib.Path, str] = {}
    if not cache_dir:
      self._scratch = tempfile.TemporaryDirectory(prefix='batch_rl_dr3.')
      cache_dir = self._scratch.name
    for pattern in patterns:
      path = place.local_path(pattern)
      if path is None:
        base, rest = _split(pattern)
        runs = mirror.Mirror(base, cache_dir, contents)
        self._mirrors.append(runs)
        self._add(runs.name, runs.folder, rest)
        continue
      studies = _studies(path)
      for study, rest in studies.items():
        cache = pathlib.Path(cache_dir) / 'studies'
        self._add(study, _unpacked(study, cache), rest)
      if not studies or _matches_runs(path):
        self.patterns.append(path)

  def _add(self, name: str, folder: pathlib.Path, rest: str) -> None:
    self._names[folder] = name
    self.patterns.append(os.path.join(glob.escape(str(folder)), rest))

  def name_of(self, path: str) -> str:
    """Returns where a file of this machine is from: its URL, or itself."""
    for folder, name in self._names.items():
      rest = path.removeprefix(str(folder))
      if rest != path:
        return f'{name}{rest}'
    return path

  @property
  def is_elsewhere(self) -> bool:
    """Whether files are read in a cache, of a bucket or of a study."""
    return bool(self._names)

  def refresh(self) -> None:
    """Refreshes the mirrors; raises DataError if one cannot be read."""
    for runs in self._mirrors:
      runs.refresh()

  @contextlib.contextmanager
  def kept_fresh(self, seconds: float) -> Iterator[None]:
    """Refreshes every so many seconds meanwhile; failures change nothing."""
    ended = threading.Event()

    def refresh() -> None:
      while not ended.wait(seconds):
        with contextlib.suppress(errors.DataError):
          self.refresh()

    if self._mirrors:
      threading.Thread(target=refresh, daemon=True).start()
    try:
      yield
    finally:
      ended.set()


def _split(pattern: str) -> tuple[str, str]:
  """Returns the folder that a glob of a URL begins with, and the rest."""
  scheme, _, path = pattern.partition('://')
  parts = path.rstrip('/').split('/')
  fixed = list(
    itertools.takewhile(lambda part: not glob.has_magic(part), parts)
  )
  if not fixed:
    raise errors.UsageError(f'{pattern} has to name a bucket.')
  return f'{scheme}://{"/".join(fixed)}', '/'.join(parts[len(fixed) :])


def _matches_runs(pattern: str) -> bool:
  return any(
    os.path.isfile(os.path.join(path, name))
    for path in glob.iglob(os.path.expanduser(pattern), recursive=True)
    for name in (run_directory.PROVENANCE, run_directory.METRICS)
    if not is_study(path)
  )
