import base64
import csv
import html.parser
import os
import re

from matplotlib import figure as mpl_figure
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import figures, page, selection

FILES = [
  'figures/minatar_breakout_10pct.pdf',
  'figures/minatar_breakout_10pct.png',
  'figures/minatar_breakout_10pct_narrow.png',
  'figures/selection.pdf',
  'figures/selection.png',
  'figures/selection_narrow.png',
  'index.html',
  'tables/co_adaptation.csv',
  'tables/co_adaptation.tex',
  'tables/dr3_effect.csv',
  'tables/dr3_effect.tex',
  'tables/final_metrics.csv',
  'tables/final_metrics.tex',
  'tables/final_scores.csv',
  'tables/final_scores.tex',
  'tables/runs.csv',
  'tables/runs.tex',
  'tables/selection.csv',
  'tables/selection.tex',
]


class _Reader(html.parser.HTMLParser):
  """Collects the tables and the text of a page, and checks its nesting."""

  def __init__(self, text):
    super().__init__()
    self.tables, self.text, self._open = [], '', []
    self.feed(text)
    assert self._open == []
    self.text = ' '.join(self.text.split())

  def handle_starttag(self, tag, attrs):
    if tag not in ('meta', 'img', 'source'):
      self._open.append(tag)
    if tag == 'table':
      self.tables.append([])
    elif tag == 'tr':
      self.tables[-1].append([])
    elif tag in ('td', 'th'):
      self.tables[-1][-1].append('')

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if 'style' in self._open:
      return
    self.text += data
    if self._open and self._open[-1] in ('td', 'th'):
      self.tables[-1][-1][-1] += data


def _files(folder):
  return sorted(
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if path.is_file()
  )


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch):
  """Small blank figures; figures_test looks at the real ones."""

  def draw(collection, setting, narrow):
    return mpl_figure.Figure(figsize=(0.1, 0.2 if narrow else 0.1))

  monkeypatch.setattr(figures, 'draw', draw)


@pytest.fixture
def index(rem_pair):
  return page.write_report([rem_pair])


def test_the_report_is_beside_the_runs(index, tmp_path):
  assert index == tmp_path / 'runs' / 'report' / 'index.html'
  assert _files(index.parent) == FILES
  assert sorted(p.name for p in (tmp_path / 'runs').iterdir()) == [
    'rem',
    'rem_dr3',
    'report',
  ]


def test_the_page_shows_the_tables(index):
  found = _Reader(index.read_text()).tables
  assert [[row[0] for row in rows] for rows in found] == [
    ['Method', 'REM', 'REM + DR3'],
    ['Method', 'REM'],
    ['Method', 'REM', 'REM + DR3'],
    ['Method', 'REM', 'REM + DR3'],
    ['Rule', *(rule.name for rule in selection.RULES), 'random'],
    ['Folder', 'rem', 'rem_dr3'],
  ]
  assert found[0][1] == [
    'REM',
    '3.00',
    '5.00',
    '3.33',
    '3',
    '2',
    '1',
    '1',
    '300',
  ]
  assert found[5][2] == [
    'rem_dr3',
    'REM + DR3',
    'breakout',
    '10pct',
    '1',
    '0',
    '200',
    '2',
    'no',
  ]


def test_csv_files_hold_exact_numbers(index):
  with open(index.parent / 'tables' / 'final_scores.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [float(row['average_return']) for row in rows] == [10 / 3, 5.5]


def test_the_page_needs_no_other_file(index):
  text = index.read_text()
  found = re.findall(r'(?:src|srcset)="([^"]*)"', text)
  assert len(found) == 4  # Two figures, wide and narrow.
  embedded = []
  for uri in found:
    assert uri.startswith('data:image/png;base64,')
    embedded.append(base64.b64decode(uri.partition(',')[2]))
  figures = index.parent / 'figures'
  assert embedded == [
    (figures / f'{name}.png').read_bytes()
    for name in (
      'minatar_breakout_10pct_narrow',
      'minatar_breakout_10pct',
      'selection_narrow',
      'selection',
    )
  ]
  assert '<script' not in text
  assert '<link' not in text


def test_the_page_states_what_the_runs_are(index):
  text = _Reader(index.read_text()).text
  for expected in (
    'DR3 report: breakout, 10pct',
    '2 runs · 1 game (minatar) · 2 methods · 1 seed',
    'One game, one seed',
    'python -m batch_rl_dr3.train \\ --seed=0',
    'hash hash1 num_rows 1000 subset 10pct',
    'epsilon_eval 0.001 gamma 0.9',
    'ROM (MD5) not recorded',
    'tensorflow 2.18.1',
    'Git revision abc123',
    'arXiv:2112.04716',
    'δ = 0.01',
    'Proposition 3.2',
  ):
    assert expected in text
  assert 'Warning' not in text


def test_warnings_are_visible_and_differences_listed_by_run(make_run, rem_pair):
  make_run('cql', data={'hash': 'hash2'})
  with pytest.raises(errors.DataError, match='hash2 in cql'):
    page.write_report([rem_pair])
  options = page.Options(allow_mixed=True)
  index = page.write_report([rem_pair], options=options)
  text = _Reader(index.read_text()).text
  assert 'Warning: these runs are not alike' in text
  assert 'rem, rem_dr3: hash hash1' in text
  assert 'cql: hash hash2' in text


def test_what_provenance_says_is_escaped(make_run):
  folder = make_run('rem', command=['<b>train</b>'], game='a&b')
  text = page.write_report([str(folder)]).read_text()
  assert '&lt;b&gt;train&lt;/b&gt;' in text
  assert 'a&amp;b' in text
  assert '<b>' not in text


def test_long_lists_are_only_counted(make_run):
  data = {'hash': 'h', 'files': [{'suffix': i} for i in range(50)]}
  text = page.write_report([str(make_run('rem', data=data))]).read_text()
  assert '50 entries, see provenance.json' in text


def test_a_run_that_has_only_started_has_a_page(make_run):
  text = _Reader(
    page.write_report([str(make_run('rem', finished=False))]).read_text()
  ).text
  assert 'No run has been evaluated yet.' in text
  assert 'No run has logged any metrics yet.' in text
  assert 'there is nothing to compare' in text


def test_a_report_is_replaced_and_not_taken_for_a_run(index, rem_pair):
  index.write_text('old')
  (index.parent / 'tables' / 'old.csv').touch()
  assert page.write_report([rem_pair]) == index
  assert _files(index.parent) == FILES
  assert 'Skipped' in index.read_text()
  assert '1 (report)' in _Reader(index.read_text()).text


def test_a_report_that_fails_leaves_the_old_one(
  index, rem_pair, tmp_path, monkeypatch
):
  index.write_text('old')

  def interrupt(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(page, 'render', interrupt)
  with pytest.raises(KeyboardInterrupt):
    page.write_report([rem_pair])
  assert index.read_text() == 'old'
  assert not any('tmp' in p.name for p in (tmp_path / 'runs').iterdir())


def test_output_dir_may_be_new_and_deep(rem_pair, tmp_path):
  index = page.write_report([rem_pair], str(tmp_path / 'a' / 'b'))
  assert index == tmp_path / 'a' / 'b' / 'index.html'
  assert _files(index.parent) == FILES


def test_a_folder_with_anything_else_is_not_replaced(rem_pair, tmp_path):
  with pytest.raises(errors.UsageError, match='no part of a report'):
    page.write_report([rem_pair], str(tmp_path / 'runs'))
  assert (tmp_path / 'runs' / 'rem' / 'metrics.csv').exists()


def test_a_place_that_cannot_be_written(rem_pair, tmp_path):
  (tmp_path / 'file').touch()
  for place in ('file', 'file/report'):
    with pytest.raises(errors.WriteError, match='cannot write'):
      page.write_report([rem_pair], str(tmp_path / place))
  assert sorted(os.listdir(tmp_path)) == ['file', 'runs']
