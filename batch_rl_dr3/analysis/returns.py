"""Returns that no game can give."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Below any score of Atari (Skiing's are above -40,000), and below any of a game
# whose scores are mostly positive.
_IMPOSSIBLE, _IMPLAUSIBLE = -50_000.0, -5_000.0


def is_wrapped(
  returns: Sequence[float] | npt.NDArray[np.floating[Any]],
) -> npt.NDArray[np.bool_]:
  """Returns which episodes [N] of one evaluation wrapped the score's counter.

  ALE's rewards are differences of the score on the screen. Where its four to
  six digits wrap, or are blanked as a game ends, one reward is about minus ten
  to that power: a return of -983,500 beside others of 21,000.
  """
  values = np.asarray(returns, np.float64)
  is_positive_game = values.size > 0 and np.median(values) > 0
  return values <= (_IMPLAUSIBLE if is_positive_game else _IMPOSSIBLE)
