"""Figures: return, TD loss, dot product and rank over gradient steps."""

from collections.abc import Sequence
import dataclasses
import io
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import colors, style, ticker
from matplotlib import figure as mpl_figure
import numpy as np
from numpy import typing as npt

from batch_rl_dr3.reporting import curves, methods, scores

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_HUES = {'dqn': '#0072B2', 'rem': '#D55E00', 'cql': '#009E73'}
_MORE_HUES = ('#CC79A7', '#E69F00', '#56B4E9', '#555555')
# Points beyond which raw lines hide each other, and a running mean is drawn.
MAX_RAW_POINTS = 200
_WINDOWS_PER_CURVE = 20
# Points up to which each gets a marker.
_MAX_MARKERS = 15
# Ratio of largest to smallest value, one and a half decades, from which an
# axis is logarithmic.
_LOG_SPAN = 30.0
# Above this ratio of its ends, a logarithmic axis has powers of ten as ticks.
_NARROW_LOG_SPAN = 300.0
_DPI = 160
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
}


@dataclasses.dataclass(frozen=True)
class Panel:
  """One quantity of a figure.

  Attributes:
    quantity: its name in the run directory.
    title: above the panel.
    label: of the vertical axis, with the unit.
    may_be_log: whether a wide span makes the axis logarithmic.
  """

  quantity: str
  title: str
  label: str
  may_be_log: bool


PANELS = (
  Panel(scores.RETURN, 'Return', 'points per episode', False),
  Panel(scores.TD_LOSS, 'TD loss', 'loss, mean over a data sample', True),
  Panel(
    scores.DOT_PRODUCT, 'Feature dot product', 'mean over a data sample', True
  ),
  Panel(scores.EFFECTIVE_RANK, 'Effective rank', 'number of directions', False),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
  """A figure of one setting, for wide and for narrow screens.

  Attributes:
    name: of the PNG files.
    title: which setting it is of.
    caption: what is drawn, and what was done to it.
    wide: PNG, two panels by two.
    narrow: PNG, four panels below each other.
  """

  name: str
  title: str
  caption: str
  wide: bytes
  narrow: bytes


def running_mean(
  values: npt.NDArray[np.float64], window: int
) -> npt.NDArray[np.float64]:
  """Returns the centred mean over `window` points, fewer at the ends.

  Args:
    values: float64 [T]; a NaN makes NaN of every window that holds it.
    window: number of points, odd.
  """
  half = window // 2
  return np.asarray(
    [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
  )


def _window(num_points: int) -> int:
  return num_points // _WINDOWS_PER_CURVE // 2 * 2 + 1


def _hues(names: Sequence[str]) -> dict[str, str]:
  """Returns one colour per base method."""
  bases = dict.fromkeys(methods.base_of(name) for name in names)
  others = [base for base in bases if base not in _HUES]
  more = {
    base: _MORE_HUES[i % len(_MORE_HUES)] for i, base in enumerate(others)
  }
  return {base: _HUES.get(base) or more[base] for base in bases}


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


def _draw_curve(
  axes: mpl_axes.Axes, curve: curves.Curve, line: dict[str, Any], label: str
) -> None:
  mean = curve.mean
  if len(mean) > MAX_RAW_POINTS:
    axes.plot(curve.steps, mean, color=line['color'], alpha=0.22, linewidth=0.7)
    mean = running_mean(mean, _window(len(mean)))
  marker = 'o' if len(mean) <= _MAX_MARKERS else ''
  axes.plot(
    curve.steps, mean, label=label, marker=marker, markersize=4.2, **line
  )
  if curve.num_seeds > 1:
    axes.fill_between(
      curve.steps,
      curve.values.min(axis=0),
      curve.values.max(axis=0),
      color=line['color'],
      alpha=0.14,
      linewidth=0,
    )


def spans_decades(drawn: Sequence[curves.Curve]) -> bool:
  """Returns whether a logarithmic axis shows the curves better.

  It does when all values are positive and the largest is at least thirty
  times the smallest.
  """
  values = np.concatenate([[], *(curve.values.ravel() for curve in drawn)])
  values = values[np.isfinite(values)]
  if not values.size or values.min() <= 0:
    return False
  return bool(values.max() / values.min() >= _LOG_SPAN)


def _set_log_scale(axes: mpl_axes.Axes) -> None:
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


def _draw_panel(
  axes: mpl_axes.Axes, panel: Panel, drawn: dict[str, curves.Curve]
) -> None:
  hues = _hues(list(drawn))
  axes.set_title(panel.title)
  axes.set_xlabel('gradient steps')
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
  label = panel.label
  for method, curve in drawn.items():
    if curve.steps.size:
      line = _line_style(method, hues[methods.base_of(method)])
      _draw_curve(axes, curve, line, methods.display_name(method))
  if panel.may_be_log and spans_decades(list(drawn.values())):
    _set_log_scale(axes)
    label += ' (log scale)'
  axes.set_ylabel(label)
  if not any(curve.steps.size for curve in drawn.values()):
    axes.set_yticks([])
    axes.text(
      0.5,
      0.5,
      'not measured',
      transform=axes.transAxes,
      ha='center',
      color='#666666',
    )


def draw(
  collection: scores.Collection, setting: scores.Setting, narrow: bool
) -> mpl_figure.Figure:
  """Returns the Matplotlib figure of a setting, its methods side by side.

  Args:
    collection: the runs.
    setting: which game and data set.
    narrow: True for four panels below each other, False for two by two.
  """
  with style.context(_STYLE):
    figure = mpl_figure.Figure(
      figsize=(4.2, 12.4) if narrow else (8.0, 6.4), layout='constrained'
    )
    grid = figure.subplots(*((4, 1) if narrow else (2, 2)))
    runs = [run for run in collection.runs if run.setting == setting]
    last_step = max(1, *(run.num_gradient_steps for run in runs))
    handles: dict[str, Any] = {}
    for axes, panel in zip(np.ravel(grid), PANELS, strict=True):
      drawn = {
        method: curves.curve(collection, setting, method, panel.quantity)
        for method in collection.methods(setting)
      }
      _draw_panel(axes, panel, drawn)
      axes.set_xlim(-0.02 * last_step, 1.03 * last_step)
      lines, labels = axes.get_legend_handles_labels()
      handles |= dict(zip(labels, lines, strict=True))
    names = [methods.display_name(m) for m in collection.methods(setting)]
    names = [name for name in names if name in handles]
    figure.legend(
      [handles[name] for name in names],
      names,
      loc='outside upper center',
      ncols=2 if narrow else min(6, max(1, len(names))),
      handlelength=2.6,
    )
  return figure


def _png(figure: mpl_figure.Figure) -> bytes:
  buffer = io.BytesIO()
  # Without the library's version, equal figures are equal files.
  figure.savefig(buffer, format='png', dpi=_DPI, metadata={'Software': None})
  return buffer.getvalue()


def caption(collection: scores.Collection, setting: scores.Setting) -> str:
  """Returns what a setting's figure shows, and what was done to its data."""
  drawn = [
    curves.curve(collection, setting, method, panel.quantity)
    for panel in PANELS
    for method in collection.methods(setting)
  ]
  basis = (
    'Each quantity against gradient steps; dashed and lighter without DR3, '
    'solid with it.'
  )
  parts = [basis]
  if any(curve.num_seeds > 1 for curve in drawn):
    parts.append(
      'Lines are means over seeds, bands reach from the lowest to the highest '
      'seed, at the steps that every seed has.'
    )
  else:
    parts.append('One seed per method, so there is no band.')
  if any(len(curve.steps) > MAX_RAW_POINTS for curve in drawn):
    parts.append(
      f'Where a line has more than {MAX_RAW_POINTS} points, it is a centred '
      f'running mean over a {_WINDOWS_PER_CURVE}th of them, and the raw values '
      'are drawn faintly behind it.'
    )
  else:
    parts.append('Nothing is smoothed.')
  return ' '.join(parts)


def all_figures(collection: scores.Collection) -> list[Figure]:
  """Returns one figure per setting."""
  return [
    Figure(
      name=setting.slug,
      title=setting.label,
      caption=caption(collection, setting),
      wide=_png(draw(collection, setting, narrow=False)),
      narrow=_png(draw(collection, setting, narrow=True)),
    )
    for setting in collection.settings
  ]
