"""The exception for problems that a user can solve."""


class InputError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do.

    `swinfuse_pretrain` prints the message without a traceback and exits with status 2.
    """
