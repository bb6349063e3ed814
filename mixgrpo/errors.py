"""The two kinds of error a user meets, and the exit code of each.

Anything else that escapes is a defect of the program and keeps its traceback.
"""


class ConfigError(Exception):
    """What the user wrote cannot be used: one sentence with place, key and mend. Exit code 2."""

    exit_code = 2


class UnidentifiedError(ConfigError):
    """A run cannot be named here: a file that is part of its identity is not at hand."""


class RunError(Exception):
    """A run failed for a reason outside what the user wrote (disk, corrupt data). Exit code 1."""

    exit_code = 1


class RepeatableError(RunError):
    """A failure that running again repeats: a reward that raises, a number that is not finite."""
