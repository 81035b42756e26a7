"""Texts that are templates of Jinja, in the folders `templates` of packages."""

from typing import Any

import jinja2


def environment(package: str, **options: Any) -> jinja2.Environment:
  """Returns a package's templates; what they name has to be given."""
  return jinja2.Environment(
    loader=jinja2.PackageLoader(package),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    **options,
  )
