"""`python -m dlgsanet.options.reference`: write docs/options.md and the JSON schemas again after a change of the table.

It writes into the checkout that it is part of.
"""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.options import CHOICES
from dlgsanet.options.kinds import REQUIRED, DataSets, Kind, Maybe, Option, Section, Unset, as_yaml
from dlgsanet.options.table import TEST_FILE, TRAINING_FILE

INTRODUCTION = """# Options

Every option of training and test files. This page, the JSON schemas in `options/schema` and the checks are made from
one table, `dlgsanet/options/table.py`; `python -m dlgsanet.options.reference` writes the page and the schemas again.

The first line of each option file names its schema: editors with a YAML language server complete and check the file.
`~` is an empty value. Empty default: optional; see the last column.

`network_g`, `optim_g`, `scheduler`, losses and metrics are sections with a `type`: the name of a class, ours,
PyTorch's, BasicSR's or another plugin's. Their other options are the arguments of that class.
"""
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def network_arguments() -> Iterator[tuple[str, Any, str]]:
    """(name, default, meaning) of each argument of `DLGSANet`, from its signature and docstring."""
    described = inspect.cleandoc(DLGSANet.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", described, re.MULTILINE)
    meanings = {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}
    for name, parameter in inspect.signature(DLGSANet).parameters.items():
        yield name, parameter.default, meanings[name]


def schema(file: Section) -> dict[str, Any]:
    """The JSON schema of training or test files, with the arguments of `DLGSANet` in `network_g`."""
    properties: dict[str, Any] = {"type": {}}
    for name, default, meaning in network_arguments():
        values: dict[str, Any] = {"enum": list(CHOICES[name])} if name in CHOICES else {}
        if not values and default is not None:
            values = {"type": TYPES[type(default)]}
        properties[name] = {"description": meaning} | values | {"default": default}
    whole: dict[str, Any] = {"$schema": "http://json-schema.org/draft-07/schema#"} | file.schema()
    ours = {"properties": properties, "additionalProperties": False}
    whole["properties"]["network_g"]["allOf"] = [{"if": {"properties": {"type": {"const": "DLGSANet"}}}, "then": ours}]
    return whole


def entries(section: Section, where: str, name: str, context: str) -> Iterator[tuple[str, str, Option, str]]:
    """(section, name within it, option, context) of each option of a section and the sections in it.

    `context` names the files, or the type of data set, that have the option.
    """
    for option in section.options:
        kind: Kind = option.kind.kind if isinstance(option.kind, Maybe) else option.kind
        if isinstance(kind, DataSets):
            for phase, by_type in kind.phases:
                for type_name, options in by_type.sections:
                    yield from entries(options, f"datasets.{'train' if phase == 'train' else 'NAME'}", "", type_name)
        elif isinstance(kind, Section):
            inner = f"{name}{option.name}."
            yield from entries(kind, *((where, inner) if where else (option.name, "")), context)
        else:
            yield where, name + option.name, option, context


def page() -> str:
    """docs/options.md."""
    found: dict[str, dict[str, tuple[Option, set[str]]]] = {"": {}, "datasets.NAME": {}, "datasets.train": {}}
    for file, context in ((TRAINING_FILE, "training files"), (TEST_FILE, "test files")):
        for where, name, option, of in entries(file, "", "", context):
            found.setdefault(where, {}).setdefault(name, (option, set()))[1].add(of)
    for name in found["datasets.NAME"]:
        found["datasets.train"].pop(name, None)
    text = [INTRODUCTION]
    for where, options in found.items():
        contexts = set().union(*(of for _, of in options.values()))
        rows = [_row(name, option, sorted(of) if of != contexts else []) for name, (option, of) in options.items()]
        text.append(_table(f"`{where}`" if where else "At the top", ["option", "values", "default", "meaning"], rows))
    rows = [[f"`{name}`", f"`{as_yaml(default)}`", meaning] for name, default, meaning in network_arguments()]
    text.append(_table("`network_g` with `type: DLGSANet`", ["option", "default", "meaning"], rows))
    return "\n".join(text)


def _row(name: str, option: Option, contexts: list[str]) -> list[str]:
    default, meaning = "", option.meaning
    if option.default is REQUIRED:
        default = "required"
    elif isinstance(option.default, Unset):
        meaning += f" Left out: {option.default.meaning}."
    else:
        default = f"`{as_yaml(option.default)}`"
    if contexts or option.only:
        meaning += f" Only {', '.join(contexts) or option.only}."
    return [f"`{name}`", str(option.kind), default, meaning]


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def files() -> dict[str, str]:
    """The content of each file that is made from the table, by its path in the repository."""
    return {
        "docs/options.md": page(),
        "options/schema/train.json": json.dumps(schema(TRAINING_FILE), indent=1) + "\n",
        "options/schema/test.json": json.dumps(schema(TEST_FILE), indent=1) + "\n",
    }


if __name__ == "__main__":
    repository = Path(__file__).resolve().parents[2]
    for name, content in files().items():
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text(content, encoding="utf-8")
        print(name)
