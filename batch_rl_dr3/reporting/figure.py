"""What a figure is, and how every figure here looks."""

from collections.abc import Callable, Sequence
import dataclasses
import io
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import colors, style, ticker
from matplotlib import figure as mpl_figure
from matplotlib.backends import backend_agg
import numpy as np
from PIL import Image

from batch_rl_dr3.reporting import methods

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_HUES = {'dqn': '#0072B2', 'rem': '#D55E00', 'cql': '#009E73'}
_MORE_HUES = ('#CC79A7', '#E69F00', '#56B4E9', '#555555')
# Above this ratio of its ends, a logarithmic axis has powers of ten as ticks.
_NARROW_LOG_SPAN = 300.0
_DPI = 160
_NUM_COLORS = 128
_STYLE: dict[str, Any] = {
  'font.size': 9,
  'axes.titlesize': 10,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': '#888888',
  'axes.grid': True,
  'grid.color': '#e6e6e6',
  'grid.linewidth': 0.6,
  'legend.frameon': False,
  'axes.formatter.useoffset': False,
  # Text stays text in PDF files.
  'pdf.fonttype': 42,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
  """A figure, for wide and for narrow screens and for paper.

  Attributes:
    name: of the files.
    title: above it.
    caption: what is drawn, and what was done to it.
    wide: PNG, for at least 600 pixels.
    narrow: PNG, for a phone.
    pdf: what `wide` shows.
  """

  name: str
  title: str
  caption: str
  wide: bytes
  narrow: bytes
  pdf: bytes


def make(
  name: str,
  title: str,
  caption: str,
  draw: Callable[[bool], mpl_figure.Figure],
) -> Figure:
  """Returns a figure that `draw` draws, given whether it is a narrow one."""
  with style.context(_STYLE):
    figure = draw(False)
    wide = _png(figure)
    # Its panels are in their places: to find them again takes half the time.
    figure.set_layout_engine('none')
    pdf = _pdf(figure)
    narrow = _png(draw(True))
  return Figure(name, title, caption, wide, narrow, pdf)


def _png(figure: mpl_figure.Figure) -> bytes:
  """Returns a PNG of few colours, a quarter of the size of one of many."""
  figure.set_dpi(_DPI)
  canvas: Any = backend_agg.FigureCanvasAgg(figure)
  canvas.draw()
  drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
  buffer = io.BytesIO()
  drawn.quantize(_NUM_COLORS, Image.Quantize.FASTOCTREE).save(buffer, 'png')
  return buffer.getvalue()


def _pdf(figure: mpl_figure.Figure) -> bytes:
  buffer = io.BytesIO()
  # Without date and version, equal figures are equal files.
  metadata = {'CreationDate': None, 'Producer': None}
  figure.savefig(buffer, format='pdf', metadata=metadata)
  return buffer.getvalue()


def line_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Returns one style per method: a hue per base, solid and dark with DR3."""
  bases = dict.fromkeys(methods.base_of(name) for name in names)
  others = [base for base in bases if base not in _HUES]
  hues = _HUES | {
    base: _MORE_HUES[i % len(_MORE_HUES)] for i, base in enumerate(others)
  }
  return {
    name: _line_style(name, hues[methods.base_of(name)]) for name in names
  }


def _lighter(color: str) -> tuple[float, ...]:
  """Returns the colour mixed with white; its hue stays."""
  return tuple(0.62 * part + 0.38 for part in colors.to_rgb(color))


def _line_style(method: str, hue: str) -> dict[str, Any]:
  if methods.has_dr3(method):
    return {
      'color': hue,
      'linestyle': '-',
      'linewidth': 1.9,
      'zorder': 3.0,
    }
  return {
    'color': _lighter(hue),
    'linestyle': (0, (4, 1.5)),
    'linewidth': 1.6,
    'markerfacecolor': 'white',
    'zorder': 2.5,
  }


def set_steps_axis(axes: mpl_axes.Axes, num_ticks: int = 6) -> None:
  """Labels the x axis as gradient steps, in thousands or millions."""
  axes.set_xlabel('gradient steps')
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(num_ticks))


def set_log_scale(axes: mpl_axes.Axes) -> None:
  """Makes the y axis logarithmic, its ticks few enough to be read."""
  axes.set_yscale('log')
  low, high = axes.get_ylim()
  narrow = high / low < _NARROW_LOG_SPAN
  axes.yaxis.set_major_locator(
    ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8)
  )
  axes.yaxis.set_major_formatter(
    ticker.StrMethodFormatter('{x:g}')
    if narrow
    else ticker.LogFormatterSciNotation()
  )
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def add_legend(
  figure: mpl_figure.Figure, names: Sequence[str], num_columns: int
) -> None:
  """Puts one legend above all panels: each method that is drawn, in order."""
  handles: dict[str, Any] = {}
  for axes in figure.axes:
    lines, labels = axes.get_legend_handles_labels()
    handles |= dict(zip(labels, lines, strict=True))
  labels = [methods.display_name(name) for name in names]
  labels = [label for label in labels if label in handles]
  figure.legend(
    [handles[label] for label in labels],
    labels,
    # Outside of the panels only where these are placed around it.
    loc='outside upper center'
    if figure.get_layout_engine()
    else 'upper center',
    ncols=min(num_columns, max(1, len(labels))),
    handlelength=2.6,
  )


def say_not_measured(axes: mpl_axes.Axes) -> None:
  """Says in an empty panel that it is empty for want of data."""
  axes.set_yticks([])
  axes.text(
    0.5,
    0.5,
    'not measured',
    transform=axes.transAxes,
    ha='center',
    color='#666666',
  )
