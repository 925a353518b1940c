"""The root of bnbench's exception tree, and the errors that the metrics raise.

It stands here and not in `bnbench.errors` because `bnbench.metrics` may import nothing else of the project;
`bnbench.errors` gives it again together with its other branches. Catch `BnbenchError` to catch everything that bnbench
raises on purpose.
"""


class BnbenchError(Exception):
    """Something a user can mend. The message says what, where (file, row, key) and how to fix it."""

    exit_code = 1


class UsageError(BnbenchError):
    """The request itself is wrong: a flag, a configuration key, a file that does not have what was asked of it."""

    exit_code = 2


class InputError(UsageError):
    """Texts that cannot be scored as they are: unequal lengths, missing references, something that is not a string."""


class MissingExtraError(UsageError):
    """A package that an optional part needs is not installed; the message is the pip command that installs it."""
