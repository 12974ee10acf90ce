"""The one exception a user of `swinfuse_pretrain` is meant to read."""


class InputError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
