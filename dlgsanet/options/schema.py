"""Which keys an option file may have, and which values.

A section is a dictionary from key to a check; a check takes (where, value) and yields faults, one line each. Keys of
BasicSR 1.4.2 are known beside ours. What a registered class takes (networks, losses, optimisers, ...) is read off its
signature, so that a class needs no entry here.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Check = Callable[[str, Any], Iterator[str]]


def unknown(where: str, key: str, allowed: Iterable[str]) -> str:
    """The line that names an unknown key, the nearest known one and all that are allowed."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(key, allowed, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{where}.{key}: unknown option{hint} (allowed: {', '.join(allowed)})"


def number(least: float = float("-inf"), most: float = float("inf")) -> Check:
    def check(where: str, value: Any) -> Iterator[str]:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            hint = "; YAML reads it as text: write !!float before it" if isinstance(value, str) else ""
            yield f"{where}: {value!r} is not a number{hint}"
        elif not least <= value <= most:
            yield f"{where}: {value} is out of range, {_range(least, most)}"

    return check


def whole(least: int = 0, most: float = float("inf")) -> Check:
    def check(where: str, value: Any) -> Iterator[str]:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            yield f"{where}: {value!r} is not a whole number"
        elif not least <= value <= most:
            yield f"{where}: {value} is out of range, {_range(least, most)}"

    return check


def _range(least: float, most: float) -> str:
    return f"it must be at least {least}" if most == float("inf") else f"it must lie in {least} to {most}"


def flag(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, bool):
        yield f"{where}: {value!r} is neither true nor false"


def text(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{where}: {value!r} is not text"


def anything(where: str, value: Any) -> Iterator[str]:
    yield from ()


def one_of(*words: Any) -> Check:
    def check(where: str, value: Any) -> Iterator[str]:
        if value not in words:
            near = difflib.get_close_matches(str(value), map(str, words), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"{where}: {value!r} is not allowed{hint} (allowed: {', '.join(map(str, words))})"

    return check


def optional(check: Check) -> Check:
    return lambda where, value: iter(()) if value is None else check(where, value)


def list_of(check: Check) -> Check:
    def check_list(where: str, value: Any) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{where}: {value!r} is not a list"
            return
        for i, item in enumerate(value):
            yield from check(f"{where}[{i}]", item)

    return check_list


def section(keys: Mapping[str, Check], required: Iterable[str] = ()) -> Check:
    def check(where: str, value: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where}: a section is expected, found {value!r}"
            return
        for key in required:
            if key not in value:
                yield f"{where}.{key}: is missing"
        for key, item in value.items():
            if key in keys:
                yield from keys[key](f"{where}.{key}", item)
            else:
                yield unknown(where, key, keys)

    return check


def arguments_of(function: Callable, given: Iterable[str] = ()) -> tuple[set[str], set[str]]:
    """Names of the arguments that options may set, and of those they must.

    What ``**kwargs`` would swallow counts as unknown: that is where misspelt options vanish.
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind in named]
    parameters = [p for p in parameters if p.name not in ("self", *given)]
    return {p.name for p in parameters}, {p.name for p in parameters if p.default is p.empty}


def registered(
    registry: Callable[[], Mapping[str, Callable]], given: Iterable[str] = (), extra: Iterable[str] = ()
) -> Check:
    """A section whose `type` names a class or function of a registry, and whose other keys are its arguments.

    Args:
        registry: gives the registered callables by name.
        given: arguments that do not come from the options.
        extra: keys that are allowed beside the arguments.
    """

    def check(where: str, value: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where}: a section is expected, found {value!r}"
            return
        known = registry()
        if value.get("type") not in known:
            yield from one_of(*sorted(known))(f"{where}.type", value.get("type"))
            return
        allowed, required = arguments_of(known[value["type"]], given)
        defaults = {p.name: p.default for p in inspect.signature(known[value["type"]]).parameters.values()}
        for key, item in value.items():
            if key not in {"type", *allowed, *extra}:
                yield unknown(where, key, {"type", *allowed, *extra})
            elif isinstance(defaults.get(key), float) and isinstance(item, str):
                yield from number()(f"{where}.{key}", item)
        for key in sorted(required - set(value)):
            yield f"{where}.{key}: is missing"

    return check
