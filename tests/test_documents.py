"""README and docs: Python examples run, commands are parsed by their own parsers, and what is named exists.

Code blocks are tagged: ``python`` is run, document by document, in a folder with a picture, weights and option files;
``sh`` is parsed without being run. Links, `make` targets and the options in `inline code` are checked too.
"""

import argparse
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlgsanet.cli import SUBCOMMANDS, main
from tests.conftest import REPOSITORY

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("weights/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A path in a command is in the repository, is written by a command, or is a placeholder: a NAME in capitals, or one of
# these names of a reader's own files.
WRITTEN = ("datasets/", "experiments/", "results/", "dist/", ".venv/")
READERS_OWN = re.compile(
    r"(~/)?(photos?|photo_x\d|upscaled|mine\w*|my_\w+|published|edsr_x4|butterflyx4|scans|big|enlarged|net_g_latest|tiny_x\d|comparison|meta)\b|(Set5|Set14|Urban100)/"
)
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)?")


class ParsedError(Exception):
    """Arguments were parsed; the command is not to be run."""


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    """(document, text) of every code block of a kind."""
    for document in DOCUMENTS:
        for tag, text in BLOCK.findall(document.read_text(encoding="utf-8")):
            if tag == kind:
                yield document.name, text


def commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(document, words) of every command of the sh blocks: continued lines joined, comments and variables removed."""
    for document, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = next((i for i, word in enumerate(words) if word in ("&&", "||", "|", ";")), len(words))
                command, words = words[:end], words[end + 1 :]
                while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                    del command[0]
                if command:
                    yield document, tuple(command)


def paths(words: tuple[str, ...]) -> Iterator[str]:
    """What a command names that looks like a file or folder."""
    for word in words[1:]:
        value = word.rpartition("=")[2]
        if re.search(r"/|\.(yml|py|sh|pth|safetensors|onnx|png|jpg)$", value) and "://" not in value:
            yield value


def parse(monkeypatch, call, arguments: tuple[str, ...]) -> argparse.ArgumentParser:
    """Let `call` parse `arguments` with its own parser, and go no further."""
    seen = []
    plain = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        seen.append(self)
        plain(self, args, namespace)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(ParsedError):
        call(list(arguments))
    return seen[0]


def run_file(path: Path, monkeypatch):
    def call(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
        runpy.run_path(str(path), run_name="__main__")

    return call


@pytest.mark.parametrize(("document", "words"), sorted(set(commands())), ids=lambda value: " ".join(value)[:80])
def test_commands(document, words, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    program, *rest = words
    if program == "torchrun":  # its own options, then our script
        start = next(i for i, word in enumerate(rest) if word.endswith(".py"))
        program, rest = "python", rest[start:]
    if program in ("sbatch", "sh"):
        script = next(i for i, word in enumerate(rest) if word.endswith(".sh"))
        assert Path(rest[script]).is_file() or PLACEHOLDER.fullmatch(Path(rest[script]).name), rest[script]
        if (after := rest[script + 1 :]) and Path(rest[script]).name == "job_array.sh":
            parse(monkeypatch, main, expanded(after))
        elif after:
            kind = "test" if Path(rest[script]).name.startswith("test") else "train"
            parse(monkeypatch, main, (kind, "-opt", "FILE", *after))
    elif program == "dlgsanet":
        parse(monkeypatch, main, expanded(rest))
    elif program in ("python", "python3") and rest[0] != "-m":
        path = Path(rest[0])
        assert path.is_file(), path
        parse(monkeypatch, run_file(path, monkeypatch), expanded(rest[1:]))
    elif program == "make":
        targets = set(re.findall(r"^([\w-]+):", Path("Makefile").read_text(), re.MULTILINE))
        assert {word for word in rest if "=" not in word} <= targets
    else:
        assert program in ("pip", "uv", "python3", "python", ".", "git", "apt-get", "cat", "cd"), (
            f"{program}: say here how it is checked"
        )
    for path in paths(words):
        known = path.startswith(WRITTEN) or READERS_OWN.match(path) or PLACEHOLDER.fullmatch(Path(path).name)
        assert known or list(REPOSITORY.glob(path)) or shutil.which(path), f"{document} names {path}"


def expanded(words: list[str]) -> tuple[str, ...]:
    """The words as the shell gives them to a command: globs become files where there are any, redirections go."""
    words = words[: words.index(">")] if ">" in words else words
    return tuple(
        found for word in words for found in (sorted(map(str, Path().glob(word))) or [word] if "*" in word else [word])
    )


SLOW = {"export.md": pytest.mark.long}  # it exports the network first


@pytest.mark.parametrize(
    "document",
    [pytest.param(name, marks=SLOW.get(name, [])) for name in sorted({name for name, _ in blocks("python")})],
)
def test_python_examples(document, tmp_path, monkeypatch, photograph):
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(photograph[100:148, 100:164])
    for name in ("photo.jpg", "photo.png"):
        picture.save(name)
    for name in ("options", "weights", "docs"):
        os.symlink(REPOSITORY / name, name)
    for weights in REPOSITORY.glob("weights/*.safetensors"):
        os.symlink(weights, weights.name)
    if document == "export.md":
        assert main(["export", "--weights", "Tiny", "--scale", "4", "-o", "tiny_x4.onnx"]) == 0
    names: dict[str, object] = {}
    for text in (text for name, text in blocks("python") if name == document):
        exec(compile(text, document, "exec"), names)


def parsers(name: str, monkeypatch) -> set[str]:
    """All options of a command and its subcommands."""
    options: set[str] = set()
    plain = argparse.ArgumentParser.add_argument

    def add_argument(self, *flags, **settings):
        options.update(flags)
        return plain(self, *flags, **settings)

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", add_argument)
    with pytest.raises(SystemExit):
        main([name, "--help"])
    return options


INLINE = sorted(
    {
        (document.name, code)
        for document in DOCUMENTS
        for code in re.findall(r"`(dlgsanet [^`\n]+)`", BLOCK.sub("", document.read_text(encoding="utf-8")))
    }
)


@pytest.mark.parametrize(("document", "code"), INLINE, ids=lambda value: value[:80])
def test_commands_in_the_text(document, code, monkeypatch, capsys):
    words = code.replace("[", " ").replace("]", " ").split()
    if words[1].startswith("-"):
        return
    assert words[1] in SUBCOMMANDS or PLACEHOLDER.fullmatch(words[1]), code
    if words[1] in SUBCOMMANDS:
        flags = {word for word in words[2:] if word.startswith("-")}
        assert flags <= parsers(words[1], monkeypatch)


def anchors(document: Path) -> set[str]:
    """The names by which links reach the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_names(document):
    text = document.read_text(encoding="utf-8")
    assert "=~" not in text, "bash puts the home folder there; write null"
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)", text):
        path, _, heading = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        assert not heading or heading in anchors(file), target
    for path in re.findall(r"`((?:dlgsanet|docs|tests|scripts|options|weights|demo_sbatch_file)/[\w./-]+)`", text):
        assert (REPOSITORY / path).exists(), path
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


def test_every_block_has_a_kind_that_is_checked_or_is_plain_output():
    for document, text in blocks(""):
        first = text.split()[0]
        assert first not in ("dlgsanet", "python", "pip", "torchrun", "sh", "make"), (
            f"{document}: tag the block sh: {text}"
        )
