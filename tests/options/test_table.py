"""The table of options: one entry gives the check, the page, the schema and the default."""

import json

import jsonschema
import pytest

from dlgsanet.options import table
from dlgsanet.options.check import registry
from dlgsanet.options.kinds import REQUIRED, DataSets, Maybe, Section, Unset
from dlgsanet.options.parse import load_yaml
from dlgsanet.options.reference import files
from tests.conftest import REPOSITORY

FILES = {"train": table.TRAINING_FILE, "test": table.TEST_FILE}
TINY = "SISR_ClassicDIV2K_Tiny_48C3G3B_DLGSANet_SRx2"


def sections(section: Section, where: str = ""):
    """Every section of the table with its place."""
    yield where, section
    for option in section.options:
        kind = option.kind.kind if isinstance(option.kind, Maybe) else option.kind
        if isinstance(kind, Section):
            yield from sections(kind, f"{where}.{option.name}")
        if isinstance(kind, DataSets):
            for phase, by_type in kind.phases:
                for name, inner in by_type.sections:
                    yield from sections(inner, f"{where}.{option.name}.{phase}:{name}")


@pytest.mark.parametrize("name", files())
def test_pages_and_schemas_are_current(name):
    """`python -m dlgsanet.options.reference` writes them."""
    assert (REPOSITORY / name).read_text(encoding="utf-8") == files()[name]


@pytest.mark.parametrize("file", FILES)
def test_every_option_has_a_sentence_and_a_default_that_it_accepts(file):
    for where, section in sections(FILES[file]):
        names = [option.name for option in section.options]
        assert len(names) == len(set(names)), where
        for option in section.options:
            assert option.meaning.endswith("."), (where, option.name)
            if not isinstance(option.default, Unset):
                assert not [*option.kind.faults(option.name, option.default, registry)], (where, option.name)
                jsonschema.validate(option.default, option.kind.schema())


@pytest.mark.parametrize("file", FILES)
def test_defaults_are_filled_in_everywhere_and_once(file):
    path = next((REPOSITORY / "options" / file).glob(f"{file}_{TINY}*.yml"))
    given = load_yaml(path)
    complete = FILES[file].completed(given)
    assert FILES[file].completed(complete) == complete
    assert complete["dist_params"]["timeout"] == 600
    assert next(iter(complete["datasets"].values()))["mean"] is None
    assert given == load_yaml(path)  # completed in a copy
    if file == "train":
        assert complete["train"]["accumulate"] == 1
        assert complete["logger"]["keep_last"] == 3


def test_what_is_left_out_of_the_table_is_refused_by_the_check_and_by_the_schema():
    schema = jsonschema.Draft7Validator(json.loads(files()["options/schema/train.json"]))
    path = next(REPOSITORY.glob(f"options/train/train_{TINY}*.yml"))
    for where, section in sections(table.TRAINING_FILE):
        if ":" in where or where.endswith(("best", "dist_params", "wandb", "io_backend")):
            continue
        options = load_yaml(path)
        inner = options
        for key in filter(None, where.split(".")):
            inner = inner.setdefault(key, {})
        inner["no_such_option"] = 1
        assert any("no_such_option" in fault for fault in table.TRAINING_FILE.faults("", options, registry)), where
        assert not schema.is_valid(options), where
        required = [option.name for option in section.options if option.default is REQUIRED]
        for name in required:
            options = load_yaml(path)
            inner = options
            for key in filter(None, where.split(".")):
                inner = inner.setdefault(key, {})
            inner.pop(name, None)
            assert any(f"{name}: is missing" in f for f in table.TRAINING_FILE.faults("", options, registry)), name
            assert not schema.is_valid(options), name
