"""What a number may be, said once: where it is taken.

  @gin.configurable
  @ranges.checked
  class Subset:
    def __init__(self, rule: str = 'all', fraction: ranges.Share = 1.0): ...

A call with another type, or a number out of its range, is a ConfigError that
names the class and the parameter, before the class does anything.
"""

from collections.abc import Callable
import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from typing import Annotated, Any, TypeVar

from batch_rl_dr3.config import errors

_T = TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class Range:
  """Finite numbers from `low` to `high`, or above `low` if that is open."""

  low: float = -math.inf
  high: float = math.inf
  is_open: bool = False

  def __contains__(self, number: float) -> bool:
    above = self.low < number if self.is_open else self.low <= number
    return above and number <= self.high and math.isfinite(number)

  def __str__(self) -> str:
    if self.high < math.inf:
      bracket = '(' if self.is_open else '['
      return f' in {bracket}{self.low:g}, {self.high:g}]'
    if self.low > -math.inf:
      return f' {">" if self.is_open else ">="} {self.low:g}'
    return ''


_ANY = Range()
# Whole numbers.
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
# Real ones.
Positive = Annotated[float, Range(0, is_open=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, is_open=True)]

# What is said of each type, and what is of it; a bool is no number.
_TYPES: dict[type, tuple[str, type]] = {
  bool: ('True or False', bool),
  int: ('a whole number', numbers.Integral),
  float: ('a number', numbers.Real),
  str: ('a text', str),
  types.NoneType: ('None', types.NoneType),
}


def checked(target: Any = None, **annotations: Any) -> Any:
  """Decorates a function, or a class with its own __init__.

  The annotations are those of further parameters, taken by **kwargs.
  """
  if target is None:
    return functools.partial(checked, **annotations)
  if not inspect.isclass(target):
    return _wrap(target, annotations)
  target.__init__ = _wrap(target.__init__, annotations)
  return target


def _wrap(
  function: Callable[..., _T], further: dict[str, Any]
) -> Callable[..., _T]:
  signature = inspect.signature(function)
  is_method = next(iter(signature.parameters), '') == 'self'

  @functools.cache
  def annotations() -> dict[str, Any]:
    # When it is called first, as names may be defined later in the module.
    return typing.get_type_hints(function, include_extras=True) | further

  @functools.wraps(function)
  def wrapper(*args: Any, **kwargs: Any) -> _T:
    name = type(args[0]).__name__ if is_method else function.__name__
    try:
      given = signature.bind(*args, **kwargs).arguments
    except TypeError:
      return function(*args, **kwargs)  # Which says what is wrong.
    for parameter, value in (given | kwargs).items():
      check(f'{name}.{parameter}', value, annotations().get(parameter))
    return function(*args, **kwargs)

  # Gin looks at the parameters of what it calls, and not behind it.
  wrapper.__signature__ = signature  # type: ignore[attr-defined]
  return wrapper


def check(name: str, value: Any, annotation: Any) -> None:
  """Raises ConfigError if the value `name` does not match its annotation.

  One of anything but numbers, bools, texts and Literals allows all values.
  """
  union = isinstance(annotation, types.UnionType) or (
    typing.get_origin(annotation) is typing.Union
  )
  wanted = []
  for kind in typing.get_args(annotation) if union else [annotation]:
    allowed: Any = _ANY
    if typing.get_origin(kind) is Annotated:
      kind, allowed = typing.get_args(kind)[:2]
    if typing.get_origin(kind) is typing.Literal:
      if value in typing.get_args(kind):
        return
      wanted.append(f'one of {", ".join(map(str, typing.get_args(kind)))}')
      continue
    if kind not in _TYPES:
      return
    words, abstract = _TYPES[kind]
    if isinstance(value, abstract) and (
      kind not in (int, float)
      or (not isinstance(value, bool) and value in allowed)
    ):
      return
    wanted.append(f'{words}{allowed}')
  raise errors.ConfigError(
    f'{name} is {value!r}; it must be {" or ".join(wanted)}.'
  )
