"""docs/licences.md names the licence of everything that is pinned."""

import importlib.metadata
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / 'docs' / 'licences.md'

# What metadata say, as SPDX has it; of several, what is true of the package.
# What has no entry stands for itself.
SPDX = {
  'Apache': 'Apache-2.0',
  'Apache 2.0': 'Apache-2.0',
  'Apache License 2.0': 'Apache-2.0',
  'Apache Software License': 'Apache-2.0',
  '2-clause BSD': 'BSD-2-Clause',
  '3-Clause BSD License': 'BSD-3-Clause',
  'BSD 2-Clause License': 'BSD-2-Clause',
  'BSD 3-Clause': 'BSD-3-Clause',
  'BSD 3-Clause License': 'BSD-3-Clause',
  'BSD': 'BSD',
  'BSD License': 'BSD',
  'GPL': 'GPL-3.0',  # MinAtar, whose repository has the text of version 3.
  'LGPL': 'LGPL-2.1',  # pygame, whose documentation has that of 2.1.
  'ISC License': 'ISC',
  'MIT License': 'MIT',
  'Mozilla Public License 2.0 (MPL 2.0)': 'MPL-2.0',
  'Python Software Foundation License': 'PSF-2.0',
  'University of Illinois/NCSA Open Source License': 'NCSA',
  'zlib': 'Zlib',
}
# What says nothing, or too little, of itself; as its repository has it.
SPOKEN_FOR = {'namex': 'Apache-2.0'}


def normalise(name):
  return re.sub(r'[-_.]+', '-', name).lower()


def licence_of(name):
  if name in SPOKEN_FOR:
    return SPOKEN_FOR[name]
  metadata = importlib.metadata.metadata(name)
  said = metadata.get('License-Expression') or metadata.get('License') or ''
  classifiers = [
    text.rpartition(' :: ')[2]
    for text in metadata.get_all('Classifier', [])
    if text.startswith('License :: ') and not text.endswith('OSI Approved')
  ]
  if not said or '\n' in said or len(said) > 40:  # The text of a licence.
    said = classifiers[0] if classifiers else 'unknown'
  return SPDX.get(said, said)


def pinned():
  text = (ROOT / 'requirements.txt').read_text()
  return [normalise(n) for n in re.findall(r'^([\w.-]+)==', text, re.MULTILINE)]


def table():
  rows = re.findall(
    r'^\| ([A-Z][\w. -]+?) \| ([^|]+) \|', TABLE.read_text(), re.MULTILINE
  )
  return {
    normalise(name): licence
    for licence, names in rows
    for name in re.split(r',\s*', names.strip())
  }


def test_every_pinned_package_is_in_the_table_with_its_licence():
  names = pinned()
  assert len(names) > 80
  found = {name: licence_of(name) for name in names}
  assert 'unknown' not in found.values()
  stated = table()
  missing = {
    name: licence
    for name, licence in found.items()
    if stated.get(name) != licence
  }
  assert not missing, (
    f'add to the table of {TABLE.name}, and read what the licence asks: '
    f'{missing}'
  )


def test_the_table_names_nothing_that_is_not_pinned():
  assert set(table()) <= set(pinned())
