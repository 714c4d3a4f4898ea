"""The one error that a command line shows as a line instead of a traceback."""


class UserError(ValueError):
    """Wrong input from a person: names the argument, what was given and what was expected."""
