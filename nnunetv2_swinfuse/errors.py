"""The exception for problems that a user can solve."""


class InputError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do.

    The command lines print it without a traceback and exit with status 2.
    """
