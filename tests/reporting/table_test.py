import dataclasses
import math

from batch_rl_dr3.reporting import tables


def _made(rows):
  made = tables.build(
    'choices',
    rows,
    [
      tables.Column('name', 'Name & co', 'text'),
      tables.Column('iqm low high complete', 'IQM, %', 'interval'),
      tables.Column('gradient_steps', 'Steps', when='never'),
    ],
  )
  return dataclasses.replace(made, title='A title', caption='A caption.')


_ROWS = [
  {
    'name': 'a_b',
    'iqm': 43.66,
    'low': 39.6,
    'high': 48.0,
    'complete': True,
    'gradient_steps': 3,
  },
  {'name': 'c', 'iqm': 1.0, 'low': 0.0, 'high': 2.0, 'complete': False},
  {'name': 'd'},
]


def test_a_cell_may_be_made_of_several_columns():
  made = _made(_ROWS)
  assert made.cells == [
    ['a_b', '43.7 (39.6, 48.0)'],
    ['c', '1.0 (0.0, 2.0) †'],
    ['d', '–'],  # noqa: RUF001
  ]
  assert made.to_csv().splitlines() == [
    'name,iqm,low,high,complete,gradient_steps',
    'a_b,43.66,39.6,48.0,True,3',
    'c,1.0,0.0,2.0,False,',
    'd,,,,,',
  ]


def test_latex_is_booktabs_with_what_the_page_shows():
  assert _made(_ROWS).to_latex().splitlines() == [
    '% A title. A caption.',
    r'\begin{tabular}{lr}',
    r'\toprule',
    r'Name \& co & IQM, \% \\',
    r'\midrule',
    r'a\_b & 43.7 (39.6, 48.0) \\',
    r'c & 1.0 (0.0, 2.0) $^\dagger$ \\',
    r'd & -- \\',
    r'\bottomrule',
    r'\end{tabular}',
  ]


def test_a_table_without_rows():
  made = _made([])
  assert made.cells == []
  assert made.to_csv() == 'name,iqm,low,high,complete,gradient_steps\n'
  assert r'\begin{tabular}' in made.to_latex()


def test_percent():
  assert tables.percent(43.66) == '43.7'
  assert tables.percent(math.nan) == tables.MISSING
