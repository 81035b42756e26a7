import dataclasses
from typing import Literal

import gin
import numpy as np
import pytest

from batch_rl_dr3.config import errors, ranges


@ranges.checked(gamma=ranges.Share)
class Thing:
  def __init__(
    self,
    steps: ranges.Count = 1,
    rate: ranges.Positive = 1.0,
    seed: ranges.Natural | None = None,
    name: str = 'x',
    is_on: bool = False,
    weight: float = 0.0,
    other: 'list[Thing] | float' = (),
    mode: Literal['fast', 'exact'] = 'fast',
    **kwargs,
  ):
    self.values = (steps, rate, seed, name, is_on, weight, other, mode, kwargs)


@pytest.mark.parametrize(
  ('parameter', 'value', 'wanted'),
  [
    ('steps', 'many', 'a whole number >= 1'),
    ('steps', -5, 'a whole number >= 1'),
    ('steps', 1e3, 'a whole number >= 1'),
    ('steps', True, 'a whole number >= 1'),
    ('rate', -1, 'a number > 0'),
    ('rate', 0.0, 'a number > 0'),
    ('rate', float('inf'), 'a number > 0'),
    ('seed', -1, 'a whole number >= 0 or None'),
    ('name', 3, 'a text'),
    ('is_on', 1, 'True or False'),
    ('weight', float('nan'), 'a number'),
    ('weight', '3', 'a number'),
    ('gamma', 1.5, r'a number in \[0, 1\]'),
    ('mode', 'slow', 'one of fast, exact'),
    ('mode', ['fast'], 'one of fast, exact'),
  ],
)
def test_what_is_out_of_range_is_named(parameter, value, wanted):
  message = rf'^Thing\.{parameter} is .*; it must be {wanted}\.$'
  with pytest.raises(errors.ConfigError, match=message):
    Thing(**{parameter: value})


def test_what_is_in_range_is_taken():
  Thing(np.int64(3), 1, None, 'y', True, -2, 'anything', gamma=1)
  Thing(seed=0, other=[3], unknown=object())


def test_a_wrong_call_says_what_python_says():
  with pytest.raises(TypeError, match='multiple values'):
    Thing(1, steps=2)


def test_gin_sees_the_parameters(clear_gin):
  @gin.configurable(module='ranges_test')
  @ranges.checked
  @dataclasses.dataclass(frozen=True)
  class Limits:
    """Of something."""

    share: ranges.PositiveShare = gin.REQUIRED
    count: ranges.Count = 2

  @gin.configurable(module='ranges_test')
  @ranges.checked
  def half(of: ranges.Natural = 4):
    return of // 2

  with pytest.raises(RuntimeError, match=r"Required bindings.*'share'"):
    Limits()
  gin.bind_parameter('Limits.share', 0.5)
  gin.bind_parameter('half.of', 8)
  assert (Limits().share, Limits().count, half()) == (0.5, 2, 4)
  assert 'Limits.count = 2' in gin.operative_config_str()
  with pytest.raises(ValueError, match='nothing'):
    gin.bind_parameter('half.nothing', 8)
  gin.bind_parameter('Limits.share', 0)
  with pytest.raises(errors.ConfigError, match=r'Limits\.share is 0; .*\(0, 1'):
    Limits()
