"""Errors that the user can fix. Imports nothing heavy."""

import difflib
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any, TypeGuard
from urllib.error import URLError

NOT_FINITE = "the output is not finite; with fp16, use bf16 or fp32, else the weights are damaged"


class UserError(Exception):
    """Bad input: one line that names the file or option and says what to do. Commands print it and exit with 2."""

    def for_command(self) -> str:
        """The message as commands print it."""
        return str(self)


class ArgumentError(UserError):
    """A bad argument of a library function.

    The message names the argument as the Python caller does, ``outscale: ...``. Commands print it as the option of the
    same name, ``--outscale: ...``.

    Args:
        argument: name of the argument, the same as the option of the command apart from dashes.
        problem: what is wrong and what to do.
    """

    def __init__(self, argument: str, problem: str):
        super().__init__(f"{argument}: {problem}")
        self.argument = argument
        self.problem = problem

    def for_command(self) -> str:
        return f"--{self.argument.replace('_', '-')}: {self.problem}"


def is_whole(value: Any, least: int = 0) -> TypeGuard[int]:
    """Whether a value is a whole number from `least` up. True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def shown(value: Any) -> str:
    """The value for a message: at most about 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


def one_line(text: str) -> str:
    """The text with line ends and control characters, which names of files may have, as escapes."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def counted(number: int, noun: str) -> str:
    """How many there are: ``1 image``, ``2,000 images``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def brief(error: BaseException, most: int | None = 300) -> str:
    """What an error says, in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


def first_line(error: BaseException, most: int | None = None) -> str:
    """The first line of what an error says, at most so many characters; its class if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def reason_of(error: BaseException, most: int | None = None) -> str:
    """`brief`, with the class of an error that says nothing, or only the name that was looked for."""
    text = brief(error, most)
    return f"{type(error).__name__} {text}".strip() if isinstance(error, LookupError) or not text else text


def nearest(given: Any, names: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    near = difflib.get_close_matches(given, list(names), 1) if isinstance(given, str) and len(given) <= 60 else []
    return near[0] if near else None


def unknown(what: str, given: Any, allowed: Iterable[Any]) -> str:
    """The message for a wrong choice: `unknown X 'y'; did you mean a? Choose from a, b, c`."""
    names = list(map(str, allowed))
    near = nearest(given, names)
    hint = f"did you mean {near}? Choose" if near else "choose"
    return f"unknown {what} {shown(given)}; {hint} from {', '.join(names) or 'nothing'}"


def missing_package(error: ImportError) -> UserError:
    """The error for a package of the installation that cannot be imported."""
    name = (error.name or "").partition(".")[0] or "NAME"
    if isinstance(error, ModuleNotFoundError):
        return UserError(f"the package {name} is not installed; pip install {name}")
    return UserError(f"the package {name} cannot be imported ({error}); pip install --force-reinstall {name}")


@contextmanager
def faults_of(where: str) -> Iterator[None]:
    """Turn errors of PyTorch's or BasicSR's classes about their arguments into a UserError that names the options."""
    try:
        yield
    except URLError as error:
        raise UserError(
            f"{where}: its weights could not be downloaded ({error.reason}); put the file where PyTorch looks "
            "for it, by default ~/.cache/torch/hub/checkpoints"
        ) from error
    except (
        ValueError, TypeError, AssertionError, NotImplementedError, AttributeError, ArithmeticError, LookupError
    ) as error:  # fmt: skip
        raise UserError(f"{where}: {reason_of(error)}") from error


@contextmanager
def within(where: str) -> Iterator[None]:
    """Begin the message of a UserError with the file or option that it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error.for_command()}") from error


def first_failure(error: RuntimeError) -> RuntimeError:
    """What has failed first: the end of a failed capture of a CUDA graph raises as well."""
    first, context = error, error.__context__
    while context:
        first = context if isinstance(context, RuntimeError) else first
        context = context.__context__
    return first
