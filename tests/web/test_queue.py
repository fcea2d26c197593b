"""Pictures in the queue, their files, and the command's arguments; no browser is needed."""

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlgsanet.cli import main
from dlgsanet.pictures.picture import Picture
from dlgsanet.web.device_queue import Choices, DeviceQueue, previews
from dlgsanet.web.visits import Limits, Visits, plain_name
from tests.conftest import REPOSITORY
from tests.small_network import network, photo, weights

__all__ = ["network", "photo", "weights"]


@pytest.fixture
def visit(tmp_path):
    return Visits(tmp_path / "visits").of("a page")


def add(visit, tmp_path, image, name="a.png", limits=Limits()):  # noqa: B008
    upload = tmp_path / "upload"
    image.save(upload, Path(name).suffix[1:].replace("jpg", "jpeg"))
    visit.add(upload, name, limits)
    assert not upload.exists()


def finish(queue, visit, weights, **choices):
    queue.add(visit, Choices(str(weights), 2, **choices))
    while any(entry.unfinished for entry in visit.entries):
        time.sleep(0.05)
    return visit.entries


def test_sixteen_bits_and_options(visit, tmp_path, weights, photo, network):
    deep = photo[..., 0].astype(np.uint16) * 257
    add(visit, tmp_path, Image.fromarray(deep), "deep.png")
    (entry,) = finish(DeviceQueue(Limits()), visit, weights, extension=".tif", self_ensemble=True)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    target = tmp_path / "deep.tif"
    assert main(["upscale", str(tmp_path / "deep.png"), "-o", str(target), "-n", str(weights), "--self-ensemble"]) == 0
    assert entry.result.name == "deep_x2.tif"
    assert entry.result.read_bytes() == target.read_bytes()
    assert [Image.open(path).size for path in entry.shown] == [(84, 60), (168, 120)]


def test_a_file_that_is_no_picture_fails_at_once(visit, tmp_path, photo):
    upload = tmp_path / "upload"
    for name, content in {"a.txt": b"words", "b.mp4": b"\0\0\0\x20ftypisom", "c.png": b"\x89PNG cut off"}.items():
        upload.write_bytes(content)
        visit.add(upload, name, Limits())
    add(visit, tmp_path, Image.fromarray(photo), "good.tiff")
    assert [entry.state for entry in visit.entries] == ["failed", "failed", "failed", "added"]
    assert "not an image" in visit.entries[0].message
    assert "a video" in visit.entries[1].message


def test_a_picture_that_takes_too_long_is_stopped(visit, tmp_path, weights, photo):
    add(visit, tmp_path, Image.fromarray(photo), "slow.png")
    (entry,) = finish(DeviceQueue(Limits(seconds=0)), visit, weights)
    assert entry.state == "failed"
    assert entry.message.startswith("slow.png: ")
    assert entry.result is None


def test_a_closed_page_ends_its_work_and_leaves_no_file(visit, tmp_path, weights, photo):
    add(visit, tmp_path, Image.fromarray(photo).resize((1600, 1200)))
    queue = DeviceQueue(Limits())
    queue.add(visit, Choices(str(weights), 2))
    (entry,) = visit.entries
    while entry.state != "working":
        time.sleep(0.01)
    visit.close()
    while entry.unfinished:
        time.sleep(0.01)
    assert entry.state in ("stopped", "failed")  # failed: the file went before it was read
    assert not visit.folder.exists()


def test_a_full_disk_leaves_no_half_of_a_zip(visit, tmp_path, photo, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("a.png", "b.png"):
        add(visit, tmp_path, Image.fromarray(photo), name)
    for entry in visit.entries:
        entry.result = entry.source
    monkeypatch.setattr("zipfile.ZipFile.write", full)
    with pytest.raises(OSError, match="No space"):
        visit.pack()
    assert visit.archive is None
    assert list(visit.folder.rglob("*.zip")) == []


def test_the_server_can_end_while_it_works(tmp_path, weights, photo):
    visits, queue = Visits(tmp_path / "visits"), DeviceQueue(Limits())
    visit = visits.of("a page")
    for name in ("a.png", "b.png"):
        add(visit, tmp_path, Image.fromarray(photo).resize((1600, 1200)), name)
    queue.add(visit, Choices(str(weights), 2))
    while visit.entries[0].state != "working":
        time.sleep(0.01)
    visits.close_all()
    queue.close()
    assert [entry.state == "done" for entry in visit.entries] == [False, False]
    assert list(visits.root.iterdir()) == []


def test_too_large_and_too_many_files_are_deleted(visit, tmp_path, photo):
    from dlgsanet.errors import UserError

    image = Image.fromarray(photo)
    with pytest.raises(UserError, match=r"a\.png"):
        add(visit, tmp_path, Image.effect_noise((1200, 1200), 90), limits=Limits(megabytes=1))
    add(visit, tmp_path, image, limits=Limits(pictures=1))
    with pytest.raises(UserError, match=r"b\.png"):
        add(visit, tmp_path, image, "b.png", Limits(pictures=1))
    assert not (tmp_path / "upload").exists()
    assert len(list(visit.folder.rglob("source"))) == 1


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("a\n\x00b.png", "ab.png"),
        ("", "picture"),
        ("é" * 300 + ".jpeg", "é" * 87 + ".jpeg"),
    ],
)
def test_names(name, plain):
    assert plain_name(name) == plain


def test_names_that_are_equal_in_the_archive(visit, tmp_path, weights, photo):
    import zipfile

    for _ in range(2):
        add(visit, tmp_path, Image.fromarray(photo[:30, :30]))
    finish(DeviceQueue(Limits()), visit, weights)
    visit.pack()
    assert zipfile.ZipFile(visit.archive).namelist() == ["a_x2.png", "a_x2 (2).png"]


def test_a_picture_after_a_clear_has_addresses_of_its_own(visit, tmp_path, weights, photo):
    """A browser shows what it has kept of an address that it has seen."""
    add(visit, tmp_path, Image.fromarray(photo[:30, :30]))
    (first,) = finish(DeviceQueue(Limits()), visit, weights)
    visit.clear()
    add(visit, tmp_path, Image.fromarray(photo[30:, :30]))
    (second,) = finish(DeviceQueue(Limits()), visit, weights)
    assert not {first.result, *first.shown} & {second.result, *second.shown}
    assert first.number != second.number


def while_another_has_the_lock(visit, action, meanwhile):
    """Start `action` in a thread; do `meanwhile` before it gets the lock."""
    with visit._lock:
        thread = ThreadPoolExecutor(1).submit(action)
        time.sleep(0.2)
        meanwhile()
    return thread.result(60)


def test_what_waits_for_the_lock_looks_after_it(visit, tmp_path, weights, photo):
    for _ in range(2):
        add(visit, tmp_path, Image.fromarray(photo[:30, :30]))
    finish(DeviceQueue(Limits()), visit, weights)
    while_another_has_the_lock(visit, visit.pack, visit.clear)
    assert visit.archive is None

    def add_one():
        add(visit, tmp_path, Image.fromarray(photo[:30, :30]))

    def add_another():
        (tmp_path / "other").write_bytes(b"of another batch of uploads")
        visit.add(tmp_path / "other", "b.png", Limits())

    while_another_has_the_lock(visit, add_one, add_another)
    assert len({entry.source for entry in visit.entries}) == 2
    while_another_has_the_lock(visit, add_one, visit.close)
    assert not visit.folder.exists()


def environment(tmp_path):
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)}


def test_it_serves_this_computer_alone_and_leaves_nothing(tmp_path, weights):
    pytest.importorskip("gradio", reason="gradio is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dlgsanet", "web", "--weights", str(weights), "--port", str(port)]
    with subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line
        assert "only this computer" in line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/config") as answer:
            assert json.load(answer)["title"] == "Upscale pictures"
        busy = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
        assert busy.returncode == 2
        assert busy.stderr.splitlines()[-1].startswith("dlgsanet: error: --port: ")
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0
    assert list(tmp_path.glob("dlgsanet-web-*")) == []


def test_a_missing_package_and_bad_arguments_are_named(monkeypatch, capsys, tmp_path):
    assert main(["web", "--weights", "none.pth"]) == 2
    assert "none.pth" in capsys.readouterr().err
    assert main(["web", "--device", "abacus"]) == 2
    assert "--device" in capsys.readouterr().err
    assert main(["web", "--host", "no.such.host.invalid"]) == 2
    assert "--host" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["web"]) == 2
    assert "dlgsanet[web]" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        main(["web", "--max-pictures", "0"])
    assert "--max-pictures" in capsys.readouterr().err


def test_the_page_hints_at_weights_for_compressed_photographs(visit, tmp_path, weights, photo, monkeypatch):
    folder = tmp_path / "included"
    folder.mkdir()
    for name in ("DLGSANet_Tiny_x2", "DLGSANet_Tiny_x2_jpeg"):
        (folder / f"{name}.safetensors").write_bytes(weights.read_bytes())
    monkeypatch.setattr("dlgsanet.inference.weights.FOLDERS", (folder,))
    add(visit, tmp_path, Image.fromarray(photo), "coarse.jpg")
    add(visit, tmp_path, Image.fromarray(photo), "clean.png")
    coarse, clean = finish(DeviceQueue(Limits()), visit, "Tiny")
    assert "; Tiny_jpeg is made" in coarse.hint
    assert not clean.hint


def test_the_file_for_a_space_starts_the_page():
    from dlgsanet.commands.web import parser

    lines = (REPOSITORY / "docs/space/Dockerfile").read_text().splitlines()
    command = json.loads(next(line for line in lines if line.startswith("CMD"))[4:])
    assert command[:2] == ["dlgsanet", "web"]
    assert parser().parse_args(command[2:]).host == "0.0.0.0"
    assert any(".[web,heic]" in line for line in lines)


@pytest.mark.parametrize("kind", ["avif", "heic"])
def test_pictures_of_phones(visit, tmp_path, weights, photo, kind):
    """Other formats that are read: the result is a PNG, as the command's."""
    if kind == "heic":
        pytest.importorskip("pillow_heif", reason="pillow-heif is not installed").register_heif_opener()
    elif "AVIF" not in Image.registered_extensions().values():
        pytest.skip("this Pillow has no AVIF")
    file = tmp_path / f"phone.{kind}"
    Image.fromarray(photo).save(file)
    upload = tmp_path / "upload"
    upload.write_bytes(file.read_bytes())
    visit.add(upload, file.name, Limits())
    (entry,) = finish(DeviceQueue(Limits()), visit, weights)
    assert (entry.state, entry.result.name) == ("done", "phone_x2.png")
    assert main(["upscale", str(file), "-o", str(tmp_path / "out"), "--weights", str(weights)]) == 0
    assert entry.result.read_bytes() == (tmp_path / "out/phone.png").read_bytes()


@pytest.mark.parametrize("shape", [(3, 17000, 3), (17000, 3, 4), (1, 17000), (2, 17000, 2)])
def test_previews_of_long_pictures(shape):
    """WebP has at most 16383 pixels a side."""
    pixels = np.full(shape, 200, np.uint8)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    colors = 1 if pixels.shape[2] < 3 else 3
    alpha = pixels[..., -1] if pixels.shape[2] > colors else None
    picture = Picture(pixels[..., :colors], alpha)
    for kind, content in previews(picture, picture).values():
        image = Image.open(io.BytesIO(content))
        assert (kind, max(image.size)) == ("jpg" if alpha is None else "webp", 8500)
        assert np.abs(np.array(image.convert("RGB")).astype(int) - 200).max() < 4


def test_what_waits_can_be_stopped_and_started_with_other_choices(tmp_path, weights, photo):
    """While the picture of another page is worked on."""
    visits, queue = Visits(tmp_path / "visits"), DeviceQueue(Limits())
    other, ours = visits.of("another page"), visits.of("our page")
    add(other, tmp_path, Image.fromarray(photo).resize((1600, 1200)))
    add(ours, tmp_path, Image.fromarray(photo[:30, :30]))
    queue.add(other, Choices(str(weights), 2))
    queue.add(ours, Choices(str(weights), 2))
    queue.stop(ours)
    (entry,) = ours.entries
    assert entry.state == "stopped"
    queue.add(ours, Choices(str(weights), 2, extension=".tif"))
    assert queue.ahead(entry) == 1
    other.close()
    while entry.unfinished:
        time.sleep(0.05)
    assert (entry.state, entry.result.name) == ("done", "a_x2.tif")
