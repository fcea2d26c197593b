"""Kinds of option values. Each kind checks a value, describes itself as JSON schema, and names itself in the docs.

A check takes where the value is in the file (`train.optim_g.lr`), the value, and the registries that name classes. It
yields one line per fault.
"""

import inspect
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from dlgsanet.errors import shown, unknown

# The classes or functions of a registry (ARCH, LOSS, METRIC, MODEL, DATASET, OPTIMIZER, SCHEDULER) by name.
Registries = Callable[[str], Mapping[str, Callable[..., Any]]]
Schema = dict[str, Any]

LARGEST_WHOLE = 2**53  # to which floating-point numbers hold every whole one
LONGEST_NAME = 200  # bytes; file systems allow 255, and suffixes such as `_archived_...` are appended


class Kind:
    """What values an option takes; `name` is what the docs call them."""

    name = ""

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        """One line per fault of a value at a place in the file (`train.ema_decay`)."""
        raise NotImplementedError

    def schema(self) -> Schema:
        """The JSON schema of the values. It may allow more than `faults`."""
        raise NotImplementedError

    def completed(self, value: Any) -> Any:
        """A value without faults as the run uses it, with the defaults of all that it leaves out."""
        return value

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Number(Kind):
    """A finite number within bounds. Those of `without` are no values themselves."""

    least: float = -math.inf
    most: float = math.inf
    without: tuple[float, ...] = ()

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not _is_finite(value):
            yield f"{where}: {shown(value)} is not a number{_hint(value)}"
        elif not self.least <= value <= self.most or value in self.without:
            yield f"{where}: {value} is out of range, {_range(self.least, self.most)}{self._exception()}"

    def schema(self) -> Schema:
        schema = {"type": "number"} | _bounds(self.least, self.most)
        return schema | ({"not": {"enum": list(self.without)}} if self.without else {})

    def __str__(self) -> str:
        return f"number{_range_in_docs(self.least, self.most)}{self._exception()}"

    def _exception(self) -> str:
        return f", not {' or '.join(map(str, self.without))}" if self.without else ""


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number within bounds; 5e3 counts, as published files write it."""

    least: int = 0
    most: float = math.inf

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not _is_finite(value):
            yield f"{where}: {shown(value)} is not a whole number{_hint(value)}"
        elif value != int(value):
            yield f"{where}: {value} is not a whole number"
        elif value > LARGEST_WHOLE:
            yield f"{where}: {value} is out of range, it must be at most {min(self.most, LARGEST_WHOLE)}"
        elif not self.least <= value <= self.most:
            yield f"{where}: {value} is out of range, {_range(self.least, self.most)}"

    def schema(self) -> Schema:
        return {"type": "integer"} | _bounds(self.least, self.most)

    def completed(self, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def __str__(self) -> str:
        return f"whole number{_range_in_docs(self.least, self.most)}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _reads_as_number(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[-+]?[\d.]{1,40}([eE][-+]?\d{1,10})?", value))


def _hint(value: Any) -> str:
    return "; YAML reads it as text: write !!float before it" if _reads_as_number(value) else ""


def _range(least: float, most: float) -> str:
    return f"it must be at least {least}" if most == math.inf else f"it must be from {least} to {most}"


def _range_in_docs(least: float, most: float) -> str:
    if most == math.inf:
        return "" if least == -math.inf else f" from {least}"
    return f" from {least} to {most}"


def _bounds(least: float, most: float) -> Schema:
    bounds = {"minimum": least, "maximum": most}
    return {key: bound for key, bound in bounds.items() if math.isfinite(bound)}


@dataclass(frozen=True)
class Flag(Kind):
    """true or false."""

    name = "true or false"

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not isinstance(value, bool):
            yield f"{where}: {shown(value)} is neither true nor false"

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text(Kind):
    """One line of text."""

    name = "text"

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not isinstance(value, str):
            yield f"{where}: {shown(value)} is not text"
        elif any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
            yield f"{where}: {shown(value)} has characters that are not text"
        elif fault := self._fault(value):
            yield f"{where}: {fault}"

    def _fault(self, text: str) -> str | None:
        """What is wrong with a text, or None."""
        return None

    def schema(self) -> Schema:
        return {"type": "string"}


class PathName(Text):
    """A path of a file or folder. `~` is the home folder. Whether it exists is checked where it must."""

    name = "path"

    def _fault(self, text: str) -> str | None:
        return None if text else "is empty"

    def schema(self) -> Schema:
        return super().schema() | {"minLength": 1}


class FileName(Text):
    """One component of a path: it stays within the folder that it is put into."""

    name = "name of a folder"

    def _fault(self, text: str) -> str | None:
        if text in ("", ".", "..") or "/" in text or "\\" in text or text != text.strip():
            return f"{shown(text)} cannot be the name of a folder; give a name without / and \\"
        if not text.isprintable():
            return f"{shown(text)} has characters that cannot be seen; give a name without them"
        if len(text.encode()) > LONGEST_NAME:
            return f"{shown(text)} is too long; give a name of at most {LONGEST_NAME} bytes"
        return None

    def schema(self) -> Schema:
        return super().schema() | {"minLength": 1, "maxLength": LONGEST_NAME, "pattern": r"^[^/\\]+$"}


class Template(Text):
    """A file name in which `{}` stands for another."""

    name = "text with {}"

    _pattern = r"[^{}/\\]*\{\}[^{}/\\]*"

    def _fault(self, text: str) -> str | None:
        if re.fullmatch(self._pattern, text):
            return None
        return f"{shown(text)} must have {{}} once, for the name of the GT image, and no other braces or /"

    def schema(self) -> Schema:
        return super().schema() | {"pattern": f"^{self._pattern}$"}


@dataclass(frozen=True)
class OneOf(Kind):
    """One of a few values."""

    values: tuple[Any, ...]

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.values):
            yield f"{where}: {unknown(where.rpartition('.')[2], value, map(as_yaml, self.values))}"

    def schema(self) -> Schema:
        return {"enum": list(self.values)}

    def __str__(self) -> str:
        return ", ".join(f"`{as_yaml(value)}`" for value in self.values)


def as_yaml(value: Any) -> str:
    """A default or choice as an option file writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "~" if value is None else "''" if value == "" else str(value)


@dataclass(frozen=True)
class Either(Kind):
    """What any of several kinds takes; the faults are those of the last."""

    kinds: tuple[Kind, ...]

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if all(any(kind.faults(where, value, known)) for kind in self.kinds):
            yield from self.kinds[-1].faults(where, value, known)

    def schema(self) -> Schema:
        return {"anyOf": [kind.schema() for kind in self.kinds]}

    def __str__(self) -> str:
        return " or ".join(map(str, self.kinds))


@dataclass(frozen=True)
class Maybe(Kind):
    """A value that may be left empty (`~`)."""

    kind: Kind

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if value is not None:
            yield from self.kind.faults(where, value, known)

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "null"}, self.kind.schema()]}

    def completed(self, value: Any) -> Any:
        return None if value is None else self.kind.completed(value)

    def __str__(self) -> str:
        return str(self.kind)


@dataclass(frozen=True)
class ListOf(Kind):
    """A list, of a given length or any."""

    kind: Kind
    length: int | None = None

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{where}: {shown(value)} is not a list"
            return
        if self.length is not None and len(value) != self.length:
            yield f"{where}: {self.length} values are expected, found {len(value)}"
        for i, item in enumerate(value):
            yield from self.kind.faults(f"{where}[{i}]", item, known)

    def schema(self) -> Schema:
        length = {} if self.length is None else {"minItems": self.length, "maxItems": self.length}
        return {"type": "array", "items": self.kind.schema()} | length

    def __str__(self) -> str:
        noun, separator, bounds = str(self.kind).partition(" from ")
        return f"list of {self.length or ''} {noun}s{separator}{bounds}".replace("  ", " ")


@dataclass(frozen=True)
class Named(Kind):
    """The name of a class in a registry."""

    name = "name of a class"

    registry: str

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not isinstance(value, str) or value not in known(self.registry):
            yield f"{where}: {unknown(where.rpartition('.')[2], value, known(self.registry))}"

    def schema(self) -> Schema:
        return {"type": "string"}


@dataclass(frozen=True)
class Several(Kind):
    """A section of values of one kind, under names of the user's choice."""

    name = "section with names of your choice"

    kind: Kind

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where}: a section is expected, found {shown(value)}"
            return
        for name, item in value.items():
            yield from self.kind.faults(inside(where, name), item, known)

    def schema(self) -> Schema:
        return {"type": "object", "additionalProperties": self.kind.schema()}


@dataclass(frozen=True)
class ByType(Kind):
    """A section whose options depend on its `type`, a class of a registry.

    Args:
        registry: of the classes.
        sections: the options of the types that are known.
        common: the options of all other types, which may have more.
    """

    name = "section with a `type`"
    registry: str
    sections: tuple[tuple[str, "Section"], ...] = ()
    common: tuple["Option", ...] = ()

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where}: a section is expected, found {shown(value)}"
        elif "type" not in value:
            yield f"{where}.type: is missing; choose from {', '.join(sorted(known(self.registry)))}"
        elif faults := [*Named(self.registry).faults(f"{where}.type", value["type"], known)]:
            yield from faults
        else:
            yield from self._section(value["type"]).faults(where, value, known)

    def schema(self) -> Schema:
        conditions = []
        for name, section in self.sections:
            rule = section.schema()
            rule["properties"].setdefault("type", {})
            conditions.append({"if": {"properties": {"type": {"const": name}}}, "then": rule})
        names = [name for name, _ in self.sections]
        types = {"anyOf": [{"enum": names}, {"type": "string"}]} if names else {"type": "string"}
        schema: Schema = {"type": "object", "properties": {"type": types}, "required": ["type"]}
        return schema | ({"allOf": conditions} if conditions else {})

    def completed(self, value: Mapping[str, Any]) -> dict[str, Any]:
        return self._section(value["type"]).completed(value)

    def _section(self, type_name: str) -> "Section":
        return dict(self.sections).get(type_name) or Section(self.common, open=True)


@dataclass(frozen=True)
class DataSets(Kind):
    """The section of data sets, whose names begin with what they are for: `train`, `val`, `val_2`, `test_1`.

    Args:
        phases: the kind of a data set for each.
        required: a phase that must be there, once.
    """

    phases: tuple[tuple[str, ByType], ...]
    required: str | None = None

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where}: a section is expected, found {shown(value)}"
            return
        for name, data_set in value.items():
            kind = dict(self.phases).get(phase_of(name))
            if kind and (name == self.required or phase_of(name) != self.required):
                yield from kind.faults(f"{where}.{name}", data_set, known)
            else:
                names = [(phase,) if phase == self.required else (phase, f"{phase}_1") for phase, _ in self.phases]
                yield f"{where}: {unknown('data set', name, sum(names, ()))}"
        if self.required and self.required not in value:
            yield f"{where}.{self.required}: is missing"
        if not value:
            yield f"{where}: names no data set"

    def schema(self) -> Schema:
        more = {phase: "" if phase == self.required else "(_.*)?" for phase, _ in self.phases}
        patterns = {f"^{phase}{more[phase]}$": kind.schema() for phase, kind in self.phases}
        required = {"required": [self.required]} if self.required else {"minProperties": 1}
        return {"type": "object", "patternProperties": patterns, "additionalProperties": False} | required

    def completed(self, value: Mapping[str, Any]) -> dict[str, Any]:
        return {name: dict(self.phases)[phase_of(name)].completed(item) for name, item in value.items()}


def phase_of(data_set: str) -> str:
    """What a data set is for, from its name in the file: `val_2` validates."""
    return data_set.split("_")[0]


@dataclass(frozen=True)
class Anything(Kind):
    """No check: what BasicSR allows here has no effect."""

    name = "anything"

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        yield from ()

    def schema(self) -> Schema:
        return {}


@dataclass(frozen=True)
class Unset:
    """The default of an option that is left out when its value follows from something else."""

    meaning: str


REQUIRED = Unset("required")


@dataclass(frozen=True)
class Option:
    """One option: an entry of the table.

    Args:
        name: key in its section.
        kind: which values it takes.
        default: value of an option that is not in the file; `REQUIRED`; or `Unset("...")` where it follows from
            something else, in words.
        meaning: one sentence for the docs and for editors.
        only: the `model_type` that reads it; other models would ignore it, which is refused.
    """

    name: str
    kind: Kind
    default: Any
    meaning: str
    only: str | None = None


@dataclass(frozen=True)
class Section(Kind):
    """A section: a dictionary of options. An open one may have others too."""

    options: tuple[Option, ...]
    open: bool = False

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where}: a section is expected, found {shown(value)}"
            return
        kinds = {option.name: option.kind for option in self.options}
        for option in self.options:
            if option.default is REQUIRED and option.name not in value:
                yield f"{inside(where, option.name)}: is missing; it is {option.kind}"
        for key, item in value.items():
            if key in kinds:
                yield from kinds[key].faults(inside(where, key), item, known)
            elif not self.open:
                yield f"{where or 'file'}: {unknown('option', key, kinds)}"

    def schema(self) -> Schema:
        properties = {}
        for option in self.options:
            given = {} if isinstance(option.default, Unset) else {"default": option.default}
            properties[option.name] = {"description": option.meaning} | option.kind.schema() | given
        required = [option.name for option in self.options if option.default is REQUIRED]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def completed(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        complete = dict(value)
        for option in self.options:
            if option.name in complete or not isinstance(option.default, Unset):
                complete[option.name] = option.kind.completed(complete.get(option.name, option.default))
        return complete


def inside(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def arguments_of(function: Callable[..., Any], given: Iterable[str] = ()) -> dict[str, inspect.Parameter]:
    """The arguments of a class or function that options may set.

    Not what `**kwargs` would take: misspelt options vanish there.
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if p.kind in named and n not in ("self", *given)}


_BASIC: dict[Any, Kind] = {bool: Flag(), int: Number(), float: Number(), str: Text()}


def _kind_of(argument: inspect.Parameter) -> Kind | None:
    """What an argument takes, by its default or else by its annotation. None: unknown."""
    default, annotation = argument.default, argument.annotation
    if isinstance(default, tuple) and default and all(type(item) in (int, float) for item in default):
        return ListOf(Number())
    several = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    types = (type(default),) if type(default) in _BASIC else several
    kinds = {_BASIC[basic] for basic in types if basic in _BASIC}
    return kinds.pop() if len(kinds) == 1 else None


def _faults_of_argument(where: str, value: Any, argument: inspect.Parameter, known: Registries) -> Iterator[str]:
    """Faults of a value of the wrong type. Many classes accept text for a number, or for a switch, and go on."""
    kind = _kind_of(argument)
    if isinstance(value, list) and not isinstance(kind, (ListOf, Flag)):  # the class knows which lists it takes
        for i, item in enumerate(value):
            yield from _faults_of_argument(f"{where}[{i}]", item, argument, known)
    elif kind and not (value is None and (argument.default is None or isinstance(argument.default, str))):
        yield from kind.faults(where, value, known)
    elif kind is None and _reads_as_number(value):
        yield from Number().faults(where, value, known)


@dataclass(frozen=True)
class Registered(Kind):
    """A section that names a class or function of a registry in `type`; its other keys are the arguments.

    Args:
        registry: its name.
        given: arguments that do not come from the options.
        extra: options that are allowed next to the arguments.
        examples: types that editors offer; others are allowed.
        checked: kinds of arguments whose values the classes do not check, by name.
    """

    name = "section with a `type`"
    registry: str
    given: tuple[str, ...] = ()
    extra: tuple[Option, ...] = ()
    examples: tuple[str, ...] = ()
    checked: tuple[tuple[str, Kind], ...] = ()

    def faults(self, where: str, value: Any, known: Registries) -> Iterator[str]:
        faults = [*ByType(self.registry).faults(where, value, known)]
        yield from faults or self._faults_of_arguments(where, value, known)

    def _faults_of_arguments(self, where: str, value: dict[str, Any], known: Registries) -> Iterator[str]:
        arguments = arguments_of(known(self.registry)[value["type"]], self.given)
        extra, checked = {option.name: option.kind for option in self.extra}, dict(self.checked)
        for key, item in value.items():
            if key in extra:
                yield from extra[key].faults(f"{where}.{key}", item, known)
            elif key != "type" and key not in arguments:
                yield f"{where}: {unknown('option', key, ['type', *arguments, *extra])}"
            elif key in checked:
                yield from checked[key].faults(f"{where}.{key}", item, known)
            elif key != "type":
                yield from _faults_of_argument(f"{where}.{key}", item, arguments[key], known)
        for key, argument in arguments.items():
            if argument.default is argument.empty and key not in value:
                yield f"{where}.{key}: is missing"

    def schema(self) -> Schema:
        types = {"anyOf": [{"enum": list(self.examples)}, {"type": "string"}]}
        extra = {option.name: {"description": option.meaning} | option.kind.schema() for option in self.extra}
        return {"type": "object", "properties": {"type": types} | extra, "required": ["type"]}
