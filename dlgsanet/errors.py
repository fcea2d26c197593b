"""The error that a user can mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input: one line that names the file or option and says what to do. Commands print it and exit with 2."""


@contextmanager
def faults_of(where: str) -> Iterator[None]:
    """What a class of PyTorch or BasicSR finds wrong in its arguments becomes a UserError that names the options."""
    try:
        yield
    except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
