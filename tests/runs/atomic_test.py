"""Tests for files and folders that are written whole or not at all."""

import contextlib
import os

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic


def test_write_atomically_keeps_the_old_file_when_it_fails(
  tmp_path, monkeypatch
):
  path = tmp_path / 'file'
  atomic.write_text(path, 'old')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.fsync', full)
  with pytest.raises(errors.WriteError, match='No space left'):
    atomic.write_text(path, 'new')
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_make_directory_names_what_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.WriteError, match='file/run'):
    atomic.make_directory(tmp_path / 'file' / 'run')


def test_a_url_is_no_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.ConfigError, match='gs://bucket/run is a URL'):
    atomic.make_directory('gs://bucket/run')
  assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_name_is_not_utf8_is_a_usage_error(tmp_path):
  name = os.fsdecode(bytes(tmp_path) + b'/run\xff')
  with pytest.raises(errors.UsageError, match=r'run\\udcff.* not UTF-8'):
    atomic.make_directory(name)
  assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_another_only_when_it_is_whole(tmp_path):
  target = tmp_path / 'report'
  with atomic.whole_folder(target) as staging:
    (staging / 'a').write_text('1')
  with contextlib.suppress(KeyError), atomic.whole_folder(target) as staging:
    (staging / 'b').write_text('2')
    raise KeyError
  assert [path.name for path in target.iterdir()] == ['a']
  with atomic.whole_folder(target) as staging:
    (staging / 'b').write_text('2')
  assert [path.name for path in target.iterdir()] == ['b']
  assert [path.name for path in tmp_path.iterdir()] == ['report']


def test_a_file_is_never_removed_as_a_tree(tmp_path):
  (tmp_path / 'folder' / 'precious').mkdir(parents=True)
  with pytest.raises(errors.WriteError, match='folder'):
    atomic.remove_file(tmp_path / 'folder')
  (tmp_path / 'link').symlink_to(tmp_path / 'folder')
  atomic.remove_tree(tmp_path / 'link')
  assert (tmp_path / 'folder' / 'precious').exists()
