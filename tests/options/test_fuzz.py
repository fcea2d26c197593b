"""Mutated option files: reading one quickly gives options or a UserError, whatever it contains."""

import os
import random
import time
from copy import deepcopy

import pytest
import torch
import yaml

import dlgsanet.plugin  # noqa: F401  # registers the networks
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError
from dlgsanet.options.parse import load_yaml
from dlgsanet.options.read import read_options
from tests.conftest import REPOSITORY
from tests.options.conftest import place

FILES = sorted(REPOSITORY.glob("options/*/*.yml"))
SLOWEST = 10.0  # seconds of this process for one file
MUTATIONS = 120
MINUTES = float(os.environ.get("DLGSANET_FUZZ_MINUTES", 5))  # of the long test

# YAML as it may stand in a file, most of it not what any option takes.
VALUES = [
    ".nan", ".inf", "-.inf", "1e400", "9" * 400, "9" * 5000, "-1", "0", "1", "2", "3", "0.5", "1e-320", "1.0e+308",
    "5e3", "!!float 5e3", "2026-11-25", "2026-99-99", "2026-11-25T10:00:00+99:99", "1:30", "0x1f", "0o7", "08", "+1",
    "1_000", "true", "no", "~", "''", "' '", "'{'", "'}'", "'{}{}'", "'{0.__class__}'", "'{:>999999999}'", "'{!r}'",
    "'%s'", "'{}'", '"\\ud800"', '"\\0"', '"\\U0001F600"', '"\\U00110000"', '"\\x07"', '"a\\nb"', "..", ".", "/",
    "/etc/passwd", "../up", "~nobody/x", "~", "con", "a" * 300, "'" + "a" * 5000 + "'", "é" * 150, "'a/b'", "-",
    "--help", "[]", "{}", "[[]]", "[1]", "[1, a]", "[.nan]", "[~, ~]", "{a: b}", "{type: ~}", "{type: []}",
    "{type: {}}", "{type: 1}", "{type: Adam}", "{type: L1Loss}", "{type: L1Loss, reduction: none}",
    "{type: DLGSANet}", "{1: 2}", "{~: 1}", "{[1]: 2}", "{.nan: 1}", "!!binary aGVsbG8=", "!!set {a, b}",
    "!!omap [a: 1]", "!!pairs [a: 1]", "!!int x", "!!bool x", "!!timestamp x", "!!float x", "!!null x",
    "!!python/object/apply:os.getpid []", "!unknown x", "&a [*a]", "*nobody", "<<", "=", "|", ">",
    "'" + "[" * 3000 + "'", "[" * 200 + "]" * 200, "{a: " * 200 + "1" + "}" * 200, "[" * 50000, "@", "`", "%",
    "a: b: c", "? a", "- a", "#", '"', "'", "\t", "\x00", "\ufeff", "\u2028", "DLGSANetModel", "SRModel",
    "ESRGANModel", "SwinIRModel", "PairedImageDataset", "SingleImageDataset", "REDSDataset", "lmdb", "Muon", "WSD",
    "OneCycleLR", "PerceptualLoss", "calculate_niqe", "calculate_fid", "[" + ", ".join(["0"] * 6000) + "]",
    "{" + ", ".join(f"k{i}: 0" for i in range(6000)) + "}",
]  # fmt: skip
KEYS = ("", "type", "name", "a.b", "1", "x" * 120, "best", "meta_info_file", "mean")
LETTERS = (":", "-", "[", "}", "&a ", "*a", "\n", "\t", "'", "!", "%", "\x01")


def leaves(node, where=()):
    """(keys, parent, key) of every value in nested dictionaries and lists."""
    for key, item in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield (*where, key), node, key
        if isinstance(item, (dict, list)):
            yield from leaves(item, (*where, key))


def mutated(options: dict, draw: random.Random) -> str:
    """The options as YAML with one to three values, keys or letters changed."""
    options = deepcopy(options)
    pieces = {}
    for number in range(draw.choice((1, 1, 1, 2, 3))):
        _, parent, key = draw.choice(list(leaves(options)))
        what = draw.random()
        if what < 0.7:
            pieces[f"PIECE{number}Z"] = draw.choice(VALUES)
            parent[key] = f"PIECE{number}Z"
        elif what < 0.8:
            del parent[key]
        elif what < 0.9 and isinstance(parent, dict):
            new = draw.choice((*KEYS, f"{key}s"))
            parent[new] = parent.pop(key)
        else:
            _, other, name = draw.choice(list(leaves(options)))
            parent[key] = deepcopy(other[name])
    text = yaml.safe_dump(options, sort_keys=False)
    for name, piece in pieces.items():
        text = text.replace(name, piece)
    if draw.random() < 0.15:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(LETTERS) + text[at + 1 :]
    return text


def read(text: str, is_train: bool) -> bool:
    """Read the text as an option file, and make its network without weights; whether it was accepted."""
    with open("file.yml", "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(text)
    started, message = time.process_time(), ""
    try:
        options = read_options("file.yml", is_train)
        with torch.device("meta"):
            DLGSANet(**{key: value for key, value in options["network_g"].items() if key != "type"})
    except UserError as error:
        message = str(error)
    assert time.process_time() - started < SLOWEST, text
    assert all(len(line) < 1500 for line in message.splitlines()), text
    return not message


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """(options, is_train) of every file, in a folder where the data sets and weights that they name are."""
    folder = tmp_path_factory.mktemp("options")
    found = [(load_yaml(path), path.parent.name == "train") for path in FILES]
    for options, _ in found:
        place(options, folder)
    return folder, found


@pytest.fixture
def fuzz(originals, monkeypatch):
    """Read one mutation, drawn by a number; whether it was accepted."""
    folder, found = originals
    monkeypatch.chdir(folder)

    def one(number: int) -> bool:
        draw = random.Random(number)
        options, is_train = draw.choice(found)
        text = mutated(options, draw)
        try:
            return read(text, is_train)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"mutation {number}: {type(error).__name__}: {error}\n{text[:5000]}") from error

    return one


def test_files_as_they_are_are_accepted(originals, monkeypatch):
    folder, found = originals
    monkeypatch.chdir(folder)
    assert all(read(yaml.safe_dump(options), is_train) for options, is_train in found)


def test_mutated_files_end_in_options_or_in_a_user_error(fuzz):
    accepted = sum(fuzz(number) for number in range(MUTATIONS))
    assert 0 < accepted < MUTATIONS / 2


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_mutated_files_for_minutes(fuzz):
    end = time.monotonic() + 60 * MINUTES
    number = MUTATIONS
    while time.monotonic() < end:
        fuzz(number)
        number += 1
    assert number > 2 * MUTATIONS
