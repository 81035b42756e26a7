"""Tests for the JSON files of a run."""

import json

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import records


def test_a_file_that_is_not_there_says_nothing(tmp_path):
  assert records.read_provenance(tmp_path) is None
  assert records.read_finished(tmp_path) is None


@pytest.mark.parametrize(
  ('content', 'told'),
  [
    (b'', 'it is no JSON'),
    (b'{"num_iterations": 2', 'it is no JSON'),
    (b'{"num_iterations": \xff}', 'byte 19 is not UTF-8'),
    (b'[' * 100_000, 'it is no JSON'),
    (b'[2]', r'it is \[2\], not an object'),
    (b'null', 'it is null, not an object'),
    (b'{}', 'num_iterations is missing'),
    (b'{"num_iterations": null}', 'num_iterations is null, not a whole'),
    (b'{"num_iterations": "2"}', 'num_iterations is "2", not a whole'),
    (b'{"num_iterations": true}', 'num_iterations is true, not a whole'),
    (b'{"num_iterations": -2}', 'num_iterations is -2, not a whole'),
    (b'{"num_iterations": NaN}', 'num_iterations is NaN, not a whole'),
    (b'{"num_iterations": 2.5}', 'num_iterations is 2.5, not a whole'),
  ],
)
def test_damage_names_the_file_the_field_and_the_mend(tmp_path, content, told):
  path = tmp_path / 'finished.json'
  path.write_bytes(content)
  with pytest.raises(errors.DataError, match=told) as raised:
    records.read_finished(tmp_path)
  assert raised.value.exit_code == 65
  assert str(path) in str(raised.value)
  assert 'Remove it and rerun `train`' in str(raised.value)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
  (tmp_path / 'finished.json').mkdir()
  with pytest.raises(errors.DataError, match=r'finished\.json: Is a directory'):
    records.read_finished(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'told'),
  [
    ({'method': ''}, 'method is "", not a text that is not empty'),
    ({'method': None}, 'method is null'),
    ({'seed': [0]}, r'seed is \[0\], not a number'),
    ({'protocol': []}, r'protocol is \[\], not an object'),
    ({'versions': {'numpy': 2}}, r'versions\.numpy is 2, not a text'),
    ({'command': ['python', 3]}, r'command\.1 is 3, not a text'),
    ({'total_gradient_steps': 'many'}, 'total_gradient_steps is "many"'),
  ],
)
def test_a_provenance_is_what_its_schema_says(tmp_path, changes, told):
  whole = {'method': 'rem', 'game': 'Pong', 'seed': 0, 'mine': [{}]}
  path = tmp_path / 'provenance.json'
  path.write_text(json.dumps(whole))
  assert records.read_provenance(tmp_path) == whole
  path.write_text(json.dumps({**whole, **changes}))
  with pytest.raises(errors.DataError, match=told):
    records.read_provenance(tmp_path)


def test_what_one_reader_needs_must_be_there(tmp_path):
  (tmp_path / 'provenance.json').write_text('{"method": "rem"}')
  assert records.read_provenance(tmp_path, ('method',)) == {'method': 'rem'}
  with pytest.raises(errors.DataError, match='game is missing'):
    records.read_provenance(tmp_path)
