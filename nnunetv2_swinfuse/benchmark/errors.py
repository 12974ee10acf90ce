"""What goes wrong in an experiment, in words."""


class BenchmarkError(ValueError):
    """Bad input or a failed step; the message names what was found, what was expected and what to do."""
