"""Option files from YAML text: only what option files need, and bounded in size."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from dlgsanet.errors import UserError, reason_of

LARGEST_FILE = 100_000  # bytes; a real option file has about 4,000
MOST_NODES = 10_000  # after aliases are replaced by what they stand for

# What goes wrong in YAML's own conversions: `!!int x`, `"\U00110000"`, nesting without end.
_CONVERSIONS = (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class _Loader(yaml.SafeLoader):
    """Safe YAML without dates, octal and sexagesimal numbers (they are text), in which a key appears once and aliases
    are few."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            self._count(node, {})
        return node

    def _count(self, node: yaml.Node, known: dict[int, int]) -> int:
        if id(node) not in known:
            known[id(node)] = MOST_NODES  # of a node that contains itself
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            items = [item for part in parts for item in (part if isinstance(part, tuple) else (part,))]
            known[id(node)] = 1 + sum(self._count(item, known) for item in items)
        if known[id(node)] > MOST_NODES:
            raise yaml.constructor.ConstructorError(
                None, None, f"it has more than {MOST_NODES} values, or aliases that contain themselves", node.start_mark
            )
        return known[id(node)]

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Before merge keys (`<<: *other`) are replaced by what they add, which the other keys may override."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                reason = f"the key {key.value!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, reason, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int"))]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 reads 010 as 8 and 1:30 as 90.
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _WHOLE, list("-+0123456789"))


class _ValueLoader(_Loader):
    """On the command line 1e-3 is a number, which YAML 1.1 wants as 1.0e-3. In quotes it is text there too."""


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_ValueLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """An option file as nested dictionaries.

    Raises:
        UserError: no such file, not YAML, too large, or a key that appears twice.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        text = content.decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); an option file is needed here") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file; an option file is needed here") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path}: is larger than {LARGEST_FILE:,} bytes; an option file is needed here")
    options = parse_yaml(text, str(path))
    if not isinstance(options, dict):
        raise UserError(f"{path}: holds no options")
    return _unshared(options)


def _unshared(value: Any) -> Any:
    """A copy in which a section and its aliases are different objects: a change of one is not one of the others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def parse_yaml(text: str, source: str) -> Any:
    """YAML text as an option file has it.

    Raises:
        UserError: it is not valid; the message begins with `source`.
    """
    return _parse(text, source, _Loader)


def parse_value(text: str, source: str) -> Any:
    """A value from the command line; 1e-3 is a number.

    Raises:
        UserError: it is not valid; the message begins with `source`.
    """
    return _parse(text, source, _ValueLoader)


def _parse(text: str, source: str, loader: type[_Loader]) -> Any:
    try:
        return yaml.load(text, Loader=loader)
    except RecursionError:
        raise UserError(f"{source}: is not valid YAML: too many lists or sections in each other") from None
    except _CONVERSIONS as error:
        raise UserError(f"{source}: is not valid YAML: {reason_of(error, 300)}") from error
