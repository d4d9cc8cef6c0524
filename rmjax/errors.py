"""The one exception that means: the input is at fault, not the program."""


class InputError(ValueError):
  """Something the user gave cannot be used. The message is one line that names the thing and the mend; programs print it and exit non-zero."""
