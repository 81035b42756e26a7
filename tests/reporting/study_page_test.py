"""The whole page of a small study, against one that was kept.

golden_report.json holds every table, to ten digits, and the data of every line
of every figure. After a change that is meant, look at the difference and write
it anew: REGENERATE_GOLDEN=1 python -m pytest tests/reporting/study_page_test.py
"""

import dataclasses
import json
import os
import pathlib
import re

import numpy as np
import pytest

from batch_rl_dr3.reporting import (
  figures,
  page,
  reference,
  run_reader,
  statistics,
)
from batch_rl_dr3.reporting import study as study_lib

_GOLDEN = pathlib.Path(__file__).with_name('golden_report.json')
_BOOTSTRAP = statistics.Bootstrap(100)


@pytest.fixture
def collection(make_collection, in_points, small_study):
  """REM falls after a peak, REM + DR3 holds it; one of its runs is missing."""
  time = np.linspace(0.2, 1, 5)
  game = np.arange(4)[:, np.newaxis] / 10
  run = np.arange(2)[:, np.newaxis, np.newaxis] / 20
  rem = 0.4 + game + run + 0.5 * time * (1 - time)
  dr3 = 0.6 + game + run + 0.3 * time
  points = {
    ('5pct', 'rem'): in_points(rem, small_study.games),
    ('5pct', 'rem_dr3'): in_points(dr3, small_study.games),
  }
  measured = {
    run_reader.EFFECTIVE_RANK: 100 * (1.5 - rem),
    run_reader.DOT_PRODUCT: np.exp(4 * rem),
  }
  made = make_collection(points, metrics=measured)
  return dataclasses.replace(made, runs=made.runs[:-1])


@pytest.fixture
def drawn(monkeypatch):
  """The data of every line of every figure, in place of pictures."""
  found = {}

  def make(name, title, caption, draw):
    found[name] = {
      axes.get_title(): {
        line.get_label(): [list(map(float, v)) for v in line.get_data()]
        for line in axes.lines
      }
      for axes in draw(False).axes
    }
    return figures.Figure(name, title, caption, b'wide', b'narrow', b'pdf')

  monkeypatch.setattr(figures, 'make', make)
  return found


def _content(collection, small_study, scale='dqn'):
  return page.study_content(
    study_lib.select_runs(
      small_study, collection, reference.Normalisation(scale), _BOOTSTRAP
    ),
    collection,
    num_processes=1,
  )


def test_the_report_is_the_one_that_was_kept(collection, small_study, drawn):
  content = _content(collection, small_study)
  report = {
    'notes': list(content.notes),
    'sections': [
      [section.title, [block.title for block in section.blocks]]
      for section in content.sections
    ],
    'captions': {f.name: f.caption for f in content.figures},
    'tables': {
      t.name: _to_ten_digits(t.to_csv())
      for t in content.tables
      if t.name != 'runs'  # It names a folder of this very test.
    },
    'figures': drawn,
  }
  if os.environ.get('REGENERATE_GOLDEN'):
    _GOLDEN.write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n')
  kept = json.loads(_GOLDEN.read_text())
  for part in ('notes', 'sections', 'captions', 'tables'):
    assert report[part] == kept[part]
  assert _names(drawn) == _names(kept['figures'])
  for name, panels in drawn.items():
    for panel, lines in panels.items():
      for label, data in lines.items():
        np.testing.assert_allclose(
          data, kept['figures'][name][panel][label], rtol=1e-9
        )


def _to_ten_digits(table):
  """Returns the lines of a CSV file without the noise of other processors."""
  number = re.compile(r'-?[0-9]+[.][0-9]+(?:e-?[0-9]+)?')
  return number.sub(lambda m: f'{float(m[0]):.10g}', table).splitlines()


def _names(figures):
  return {
    name: {panel: list(lines) for panel, lines in panels.items()}
    for name, panels in figures.items()
  }


def test_the_page_says_what_is_missing(collection, small_study, drawn):
  content = _content(collection, small_study)
  assert content.summary == (
    '15 of 16 runs (4 games x 2 methods x 1 data sets x 2 runs); 15 of 15 '
    'finished'
  )
  assert list(content.notes) == [
    (
      'Incomplete on 5%: REM + DR3 (3 of 4 games; 1 left out where games have '
      'more runs).'
    )
  ]


def test_a_study_of_one_run(make_collection, small_study, drawn):
  collection = make_collection({('5pct', 'rem'): np.full((1, 1, 2), 9.0)})
  content = _content(collection, small_study)
  assert (
    'Incomplete on 5%: REM (1 of 4 games; 1 of 2 runs of each), REM + DR3 (no '
    'runs).'
  ) in content.notes
  (row,) = content.tables[0].cells
  # (9 - 210) / (2736.7 - 210) = -8.0%; of one run there is no spread.
  assert row[1] == '-8.0 †'


def test_strangers_are_named(make_collection, small_study, drawn):
  values = np.full((2, 4, 2), 9.0)
  collection = make_collection(
    {('5pct', 'rem'): values, ('all', 'rem'): values}
  )
  assert (
    '8 of the runs that were read do not belong to small and are left out: '
    'data set all.'
  ) in _content(collection, small_study).notes


def test_another_method_is_shown_beside_the_studys(
  make_collection, small_study, drawn
):
  values = np.full((2, 4, 2), 9.0)
  collection = make_collection(
    {('5pct', 'rem'): values, ('5pct', 'dqn_cql'): values}
  )
  content = _content(collection, small_study)
  assert [row[0] for row in content.tables[0].cells] == [
    'REM, 5%',
    'CQL on DQN, 5%',
  ]
  assert content.summary.startswith('8 of 16 runs')
  assert list(drawn['figure_4']) == ['REM, 5%', 'CQL on DQN, 5%']


def test_the_page_shows_every_table_and_figure(
  collection, small_study, drawn, monkeypatch
):
  monkeypatch.setattr(study_lib, 'PRESETS', {'small': small_study})
  options = page.Options(preset='small', bootstrap=_BOOTSTRAP)
  html, content = page.make(collection, options, ['a & b'])
  for block in (*content.tables, *content.figures):
    assert f'{block.name}.' in html
  assert len(re.findall('<table>', html)) == len(content.tables) == 10
  assert len(re.findall('<figure>', html)) == len(content.figures) == 8
  assert '<li>a &amp; b</li>' in html
  assert 'href="https://arxiv.org/abs/2108.13264"' in html
  assert 'average performance over the course of training' in html
  assert '(score - random) / (final score of the online DQN - random)' in html
  assert '<script' not in html
  assert not re.findall(r'(?:src|srcset)="(?!data:)', html)
