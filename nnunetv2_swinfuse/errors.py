"""The one exception that a user of this package's commands is meant to read."""


class InputError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do.

    The command lines print it without a traceback and exit with status 2.
    """
