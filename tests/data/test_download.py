"""Downloads from a local HTTP server that breaks off, changes its file, refuses or is gone."""

import hashlib
import http.server
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlgsanet.commands.data import main
from dlgsanet.data.download import download
from dlgsanet.data.known_sets import KNOWN_SETS
from dlgsanet.errors import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server:
    """Serves one file with ranges, `serves` bytes an answer at most, and counts what it sends."""

    def __init__(self) -> None:
        self.content, self.version, self.serves = CONTENT, '"one"', len(CONTENT)
        self.sent, self.answers = 0, 0
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/archive.zip"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler) -> None:
        self.answers += 1
        if "archive" not in handler.path:
            return handler.send_error(404)
        start, total = 0, len(self.content)
        if handler.headers["If-Range"] == self.version:
            start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= total:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{total}")
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(total - start))
        handler.send_header("ETag", self.version)
        handler.end_headers()
        piece = self.content[start : start + self.serves]
        handler.wfile.write(piece)
        self.sent += len(piece)
        return None


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_prints_the_checksum(server, tmp_path, capsys):
    download(server.address, tmp_path / "archives/a.zip")
    assert (tmp_path / "archives/a.zip").read_bytes() == CONTENT
    assert f"a.zip: sha256 {hashlib.sha256(CONTENT).hexdigest()}" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "archives").iterdir()] == ["a.zip"]


def test_goes_on_after_every_break_and_asks_for_no_byte_twice(server, tmp_path):
    server.serves = 1_000_000
    download(server.address, tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)
    assert server.answers == 3


def test_a_second_run_goes_on_where_the_first_gave_up(server, tmp_path):
    give_up(server, tmp_path / "a.zip", after=1_200_000)
    server.serves = len(CONTENT)
    download(server.address, tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def give_up(server: Server, target: Path, after: int) -> None:
    """Let a download break off for good."""
    whole, server.serves = server.answer, after

    def once_then_nothing(handler):
        whole(handler)
        server.serves = 0

    server.answer = once_then_nothing
    with pytest.raises(
        UserError, match=rf"broke off after {after} of 3000000 bytes; run again to go on from byte {after}"
    ):
        download(server.address, target, pause=0)
    assert not target.exists()
    server.answer = whole


def test_a_file_that_changed_in_between_is_taken_anew(server, tmp_path):
    give_up(server, tmp_path / "a.zip", after=1_200_000)
    server.content, server.version, server.serves = CONTENT[::-1], '"two"', len(CONTENT)
    download(server.address, tmp_path / "a.zip", pause=0)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("damaged", [b"", b"\xff\x00", "\u0416".encode(), b'"one"\r\nHost: elsewhere'])
def test_a_damaged_version_file_begins_again(server, tmp_path, damaged, capsys):
    (tmp_path / ".a.zip.part").write_bytes(b"something else")
    (tmp_path / ".a.zip.version").write_bytes(damaged)
    download(server.address, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert capsys.readouterr().err.count("a.zip.version: is damaged") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_killed_after_the_last_byte(server, tmp_path):
    (tmp_path / ".a.zip.part").write_bytes(CONTENT)
    (tmp_path / ".a.zip.version").write_text(server.version)
    download(server.address, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.sent == 0


def test_second_process_is_refused_and_disturbs_nothing(server, tmp_path):
    whole = server.answer

    def second_while_first_runs(handler):
        server.answer = whole
        with pytest.raises(UserError, match=r"a\.zip: another process"):
            download(server.address, tmp_path / "a.zip")
        whole(handler)

    server.answer = second_while_first_runs
    download(server.address, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_refused(server, tmp_path):
    with pytest.raises(UserError, match=r"HTTP Error 404: Not Found; run again .* or download it by hand"):
        download(server.address.replace("archive", "nothing"), tmp_path / "a.zip")
    assert server.answers == 1
    assert not list(tmp_path.iterdir())


def test_nobody_there(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError, match="Connection refused"):
        download(server.address, tmp_path / "a.zip", pause=0)


def test_a_known_set_from_its_address(server, originals, tmp_path, monkeypatch):
    """The whole way: an archive that comes in pieces becomes a data root; a second run downloads nothing."""
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for number in range(5):
            archive.write(originals / "coffee.png", f"benchmark/Set5/HR/{number}.png")
    server.content = (tmp_path / "archive.zip").read_bytes()
    server.serves = len(server.content) // 2
    monkeypatch.setitem(KNOWN_SETS, "set5", replace(KNOWN_SETS["set5"], addresses=(server.address,)))
    monkeypatch.setattr("time.sleep", lambda _: None)
    for _ in range(2):
        assert main(["set5", "--root", str(tmp_path / "datasets")]) == 0
    assert server.sent == len(server.content)
    assert len(list((tmp_path / "datasets/Set5").rglob("*.png"))) == 20
