import pandas as pd
import pytest

from batch_rl_dr3.reporting import selection


@pytest.mark.parametrize('narrow', [False, True])
def test_the_figure_shows_means_and_intervals(narrow):
  measured = pd.DataFrame(
    {
      'rule': ['last', 'td_error', 'random'],
      'kept': [40.0, 60.0, 50.0],
      'kept_low': [30.0, 55.0, float('nan')],
      'kept_high': [45.0, 70.0, float('nan')],
      'gained': [0.0, 20.0, 10.0],
      'gained_low': [0.0, -5.0, float('nan')],
      'gained_high': [0.0, 30.0, float('nan')],
    }
  )
  figure = selection.draw(measured, narrow)
  figure.draw_without_rendering()
  assert len(figure.axes) == 2
  for axes, quantity in zip(figure.axes, ('kept', 'gained'), strict=True):
    intervals, dots = axes.collections
    assert dots.get_offsets()[:, 0].tolist() == list(measured[quantity])
    assert intervals.get_segments()[1][:, 0].tolist() == [
      measured[f'{quantity}_low'][1],
      measured[f'{quantity}_high'][1],
    ]
    assert 'evaluation' in axes.get_xlabel()
  labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
  assert labels == list(measured['rule'])
  # The first rule is at the top.
  assert figure.axes[0].yaxis_inverted()
