"""Things that a config names by import path."""

from collections.abc import Callable
import functools
import inspect
import pkgutil
from typing import Any

from rmjax.errors import InputError


def resolve(setting: str, name: str, example: str) -> Any:
  """What an import path such as 'optax:adamw' names.

  Args:
    setting: the config's, for the message.
    name: import path.
    example: one that would do, for the message.

  Raises:
    InputError: there is no such thing.
  """
  try:
    return pkgutil.resolve_name(name)
  except (ImportError, AttributeError, ValueError) as e:
    raise InputError(f"{setting}.name = '{name}': {e}; give an import path such as '{example}'") from e


def build(setting: str, example: str, /, *, name: str, **fields: Any) -> Any:
  """Calls what a config's dict(name, **fields) names with its fields.

  Raises:
    InputError: there is no such thing, or it has no such field.
  """
  factory = resolve(setting, name, example)
  try:
    return factory(**fields)
  except TypeError as e:
    raise InputError(f"{setting}.name = '{name}' with {fields}: {e}; give an import path such as '{example}' and its fields") from e


def partial(setting: str, example: str, /, *, name: str, **options: Any) -> Callable:
  """The function that a config's dict(name, **options) names, with these of its arguments filled in.

  Raises:
    InputError: there is no such function, or it has no such argument.
  """
  function = resolve(setting, name, example)
  parameters = inspect.signature(function).parameters
  if unknown := sorted(options.keys() - parameters.keys()):
    raise InputError(f'{setting}: {name} has no argument {unknown[0]!r}; it takes {", ".join(parameters)}')
  return functools.partial(function, **options)
