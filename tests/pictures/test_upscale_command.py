"""`dlgsanet upscale`: files, folders, globs, pipes, options and faults."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlgsanet import upscale
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.cli import main
from dlgsanet.data.sources import images_by_folder
from dlgsanet.errors import UserError
from dlgsanet.pictures import tile_sizes
from dlgsanet.pictures.find_files import find_files
from tests.conftest import REPOSITORY


@pytest.fixture
def folder(tmp_path, photo):
    for name in ("a.png", "sub/b.jpg", "sub/deep/c.webp"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    (tmp_path / "in" / ".hidden.png").write_text("hidden")
    return tmp_path


def run(weights, *arguments):
    return main(["upscale", *map(str, arguments), "--weights", str(weights)])


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_file(folder, weights, network, photo):
    assert run(weights, folder / "in/a.png", "-o", folder / "out.png") == 0
    assert np.array_equal(np.array(Image.open(folder / "out.png")), upscale(photo, network))


def test_a_folder_keeps_its_structure(folder, weights):
    assert run(weights, folder / "in", "-o", folder / "out") == 0
    assert files(folder / "out") == ["a.png", "sub/b.jpg", "sub/deep/c.webp"]
    assert all(Image.open(folder / "out" / f).size == (168, 120) for f in files(folder / "out"))


def test_names_and_formats_of_results(folder, weights):
    assert run(weights, folder / "in", "-o", folder / "out", "--ext", "bmp", "--suffix", "_x2") == 0
    assert files(folder / "out") == ["a_x2.bmp", "sub/b_x2.bmp", "sub/deep/c_x2.bmp"]


def test_globs(folder, weights):
    assert run(weights, folder / "in/**/*.[jw]*", "-o", folder / "out") == 0
    assert files(folder / "out") == ["b.jpg", "c.webp"]


def test_a_file_that_several_inputs_name_is_upscaled_once(folder):
    (folder / "in/notes.txt").unlink()
    found = find_files([f"{folder}/in/**", f"{folder}/in/sub", f"{folder}/in/sub/../a.png"], folder / "out")
    assert not found.faults
    targets = [str(job.target.relative_to(folder / "out")) for job in found.jobs]
    assert targets == ["a.png", "sub/b.jpg", "sub/deep/c.webp"]


@pytest.mark.parametrize(
    ("given", "results"),
    [
        ("in", ["a.png", "sub/b.jpg", "sub/deep/c.webp"]),
        ("in/**/*.*[gp]", ["a.png", "b.jpg", "c.webp"]),
        ("in/[!n]*", ["a.png", "b.jpg", "deep/c.webp"]),
        ("i*", ["a.png", "sub/b.jpg", "sub/deep/c.webp"]),
    ],
)
def test_results_inside_the_input_folder_are_no_input(folder, weights, given, results, capsys):
    for _ in range(2):
        assert run(weights, folder / given, "-o", folder / "in/out") == 0
    assert files(folder / "in/out") == results
    assert "3 results are there already, skipped" in capsys.readouterr().err


def test_a_glob_through_links_to_folders_finds_each_file_once(folder):
    (folder / "in/sub/back").symlink_to(folder / "in")
    found = find_files([f"{folder}/in/**/*.webp"], folder / "out")
    assert not found.faults
    assert [job.name for job in found.jobs] == [f"{folder}/in/sub/deep/c.webp"]


def test_a_name_after_two_dashes_is_no_option(folder, weights, monkeypatch):
    monkeypatch.chdir(folder)
    os.rename("in/a.png", "--my_photo.png")
    assert main(["upscale", "--weights", str(weights), "-o", "out.png", "--", "--my_photo.png"]) == 0
    assert Path("out.png").is_file()


def test_existing_results_are_kept_or_overwritten(folder, weights, capsys):
    arguments = (weights, folder / "in/a.png", "-o", folder / "out")
    (folder / "out").mkdir()
    (folder / "out/a.png").write_text("mine")
    assert run(*arguments) == 0
    assert (folder / "out/a.png").read_text() == "mine"
    assert "out/a.png is there already" in capsys.readouterr().err
    assert run(*arguments, "--overwrite") == 0
    assert Image.open(folder / "out/a.png").size == (168, 120)


def test_no_result_replaces_a_picture_that_is_given(folder, weights, photo, capsys):
    given = [folder / "in/a.png", folder / "other/a.png"]
    given[1].parent.mkdir()
    Image.fromarray(photo[::-1]).save(given[1])
    before = [path.read_bytes() for path in given]
    assert run(weights, *given, "-o", folder / "in", "--overwrite") == 2
    assert [path.read_bytes() for path in given] == before
    assert "a.png, given too; give --suffix or another folder" in capsys.readouterr().err
    assert run(weights, *given, "-o", folder / "in", "--suffix", "_x2") == 2
    assert "other/a.png: its result would be" in capsys.readouterr().err  # that of in/a.png
    assert Image.open(folder / "in/a_x2.png").size == (168, 120)


@pytest.mark.parametrize("ignored", [False, True])
def test_names_that_differ_only_in_case(folder, monkeypatch, ignored):
    """On disks that ignore case (macOS, memory cards) one result would replace the other."""
    monkeypatch.setattr("dlgsanet.pictures.find_files.ignores_case", lambda folder: ignored)
    (folder / "cases").mkdir()
    for name in ("b.gif", "B.png"):
        (folder / "cases" / name).touch()
    (folder / "A.png").touch()
    found = find_files([str(folder / name) for name in ("cases", "A.png", "in/a.png")], folder / "out")
    names = [job.target.name for job in found.jobs]
    assert names == (["B.png", "b.gif.png", "A.png"] if ignored else ["B.png", "b.png", "A.png", "a.png"])
    assert ["A.png; use another folder" in fault for fault in found.faults] == [True] * ignored


def test_pictures_of_one_name_in_several_formats_have_a_result_each(folder, weights, photo):
    for name in ("a.jpg", "a.gif"):
        Image.fromarray(photo).save(folder / "in" / name)
    assert run(weights, folder / "in", "-o", folder / "out") == 0
    assert files(folder / "out") == ["a.gif.png", "a.jpg", "a.png", "sub/b.jpg", "sub/deep/c.webp"]
    again = (folder / "in", "-o", folder / "in", "--ext", "png", "--suffix", "_x2")
    assert run(weights, *again) == 0
    results = {"a.gif_x2.png", "a.jpg_x2.png", "a_x2.png", "sub/b_x2.png", "sub/deep/c_x2.png"}
    assert {name for name in files(folder / "in") if "_x2" in name} == results
    found = find_files([str(folder / "in")], folder / "in", ".png", "_x2")  # as the next run does
    assert {str(path.relative_to(folder / "in")) for path in found.results} == results
    assert {str(job.target.relative_to(folder / "in")) for job in found.jobs} == results


def test_a_dry_run_reports_and_writes_nothing(folder, weights, capsys):
    (folder / "in/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before = files(folder)
    assert run(weights, folder / "in", "-o", folder / "out", "--dry-run") == 2
    assert files(folder) == before
    printed = capsys.readouterr().err
    assert "sub/b.jpg, 168x120" in printed
    assert "broken.png" in printed.splitlines()[-1]


def test_one_bad_picture_does_not_stop_the_others(folder, weights, capsys):
    (folder / "in/a2.png").write_bytes(b"no picture")
    (folder / "in/clip.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    assert run(weights, folder / "in", "nowhere.png", "-o", folder / "out") == 2
    assert files(folder / "out") == ["a.png", "sub/b.jpg", "sub/deep/c.webp"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dlgsanet: error: ")]
    assert len(errors) == 3
    assert "nowhere.png: there is no such file" in errors[0]
    assert "a2.png: not an image" in errors[1]
    assert "clip.mp4: a video" in errors[2]


def test_a_result_named_without_o_is_explained(folder, weights, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert run(weights, "in/a.png", "a_x2.png") == 2
    assert "a_x2.png: there is no such file or folder; -o names the result" in capsys.readouterr().err
    assert run(weights, "in/a.png", "a_x2.png", "-o", "out") == 2
    assert capsys.readouterr().err.endswith("a_x2.png: there is no such file or folder\n")


def test_pipes(folder, weights, monkeypatch):
    def pipe(content, *arguments):
        stdin, stdout = io.TextIOWrapper(io.BytesIO(content)), io.TextIOWrapper(io.BytesIO())
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run(weights, *arguments) == 0
        return stdout.buffer.getvalue()

    content = (folder / "in/sub/b.jpg").read_bytes()
    same = Image.open(io.BytesIO(pipe(content, "-", "-o", "-")))
    assert (same.format, same.size) == ("JPEG", (168, 120))
    other = Image.open(io.BytesIO(pipe(content, "-", "-o", "-", "--ext", "webp", "-s", "1.5")))
    assert (other.format, other.size) == ("WEBP", (126, 90))
    pipe(content, "-", "-o", folder / "out.png")
    assert Image.open(folder / "out.png").size == (168, 120)
    monkeypatch.chdir(folder)
    Path("-").write_text("a file of this name is no result")
    assert Image.open(io.BytesIO(pipe(b"", "in/a.png", "-o", "-", "--device", "cpu,cpu"))).size == (168, 120)


def test_standard_output_on_a_full_disk(folder, weights, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(weights, folder / "in/a.png", "-o", "-") == 2
    assert "a.png: cannot write standard output: No space left on device" in capsys.readouterr().err.splitlines()[0]


def test_options_change_what_they_say(folder, weights, network, photo, capsys):
    def result(*options):
        assert run(weights, folder / "in/a.png", "-o", folder / "o.png", "--overwrite", *options) == 0
        return np.array(Image.open(folder / "o.png"))

    assert np.array_equal(result("--tile", "exact"), upscale(photo, network, tile="exact"))
    assert np.array_equal(result("-t", "30"), upscale(photo, network, tile=30))
    assert np.array_equal(result("--self-ensemble"), upscale(photo, network, self_ensemble=True))
    assert result("--outscale", "3").shape == (180, 252, 3)
    assert "--precision" not in capsys.readouterr().err
    near = result("--precision", "bf16").astype(int) - upscale(photo, network)
    assert 0 < np.abs(near).max() < 8
    assert "--precision: on a CPU fp32 is many times faster" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in/a.png", "in/sub/b.jpg", "-o", "one.png"], "one.png is one file, but there are 2 pictures"),
        (["in", "-o", "one.png"], "one.png is the name of a file, but in is a folder"),
        (["in/a.png", "-o", "a.gif"], "cannot write .gif files"),
        (["in/a.png", "-o", "film.mp4"], "cannot write .mp4 files"),
        (["in", "-o", "in"], "its result would replace it"),
        (["in/a.png", "-o", "in/a.png", "--overwrite"], "its result would replace it"),
        (["nothing/*.png", "-o", "out"], "no file matches"),
        (["empty", "-o", "out"], "no pictures in this folder"),
        (["in/a.png", "-o", "in/notes.txt/x.png"], "cannot write"),
        (["in/a.png", "-o", "out", "--scale", "4"], "x2, not x4"),
        (["in/a.png", "-o", "out", "--device", "abacus"], "--device"),
        (["in/a.png", "-o", "out", "--weights", "in/a.png"], "damaged or not a checkpoint"),
        (["in/a.png", "-o", "out", "--weights", "none.pth"], "there is no file none.pth"),
        (["in/a.png", "-o", "one.png", "--suffix", "_x2"], "--suffix"),
        (["in/a.png", "-o", "-", "--suffix", "_x2"], "--suffix"),
        (["in/a.png", "-o", "one.png", "--ext", "jpg"], "--ext"),
    ],
)
def test_the_last_line_names_what_is_wrong(folder, weights, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    before = files(folder)
    assert main(["upscale", "--weights", str(weights), *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dlgsanet: error: ")
    assert message in last
    assert [f for f in files(folder) if f not in before] in ([], ["out/a.png"])


@pytest.mark.parametrize(
    "option",
    [
        "--suffix=/x",
        "--suffix=a/b",
        "--tile=-3",
        "--tile=big",
        "--outscale=0",
        "--outscale=nan",
        "--quality=101",
        "--quality=0",
        "--gpu-id=-1",
    ],
)
def test_impossible_values_are_named(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["upscale", "a.png", "-o", "b.png", option])
    assert caught.value.code == 2
    assert option.split("=")[0] in capsys.readouterr().err.splitlines()[-1]


def test_ctrl_c_leaves_nothing_half_written(folder, weights):
    image = Image.new("RGB", (3000, 3000), "teal")
    image.save(folder / "in/z.png")
    # Long enough on any machine for the estimate to be printed.
    arguments = ["upscale", "in/z.png", "-o", "out", "--weights", str(weights), "--self-ensemble"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dlgsanet", *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True,
        # A suite that runs in the background of a shell has inherited that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    with contextlib.closing(process.stderr):
        assert "left" in process.stderr.readline()  # the estimate: the work goes on
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert "interrupted" in process.stderr.read().splitlines()[-1]
        assert process.wait(60) == 130
    assert not (folder / "out").exists()


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_a_second_run_in_place_finds_its_results(folder, weights, extension, capsys):
    arguments = (weights, folder / "in", "-o", folder / "in", "--suffix", "_x2", "--ext", extension[1:])
    assert run(*arguments) == 0
    first = files(folder)
    assert f"in/sub/b_x2{extension}" in first
    capsys.readouterr()
    for inputs in (
        [folder / "in"],
        [folder / "in/**/*.*"],
        [*(folder / "in").glob("[!.]*.*")],
    ):
        run(weights, *inputs, "-o", folder / "in", "--suffix", "_x2", "--ext", extension[1:], "--dry-run")
        assert not [f for f in files(folder) if "_x2_x2" in f]
        assert "_x2_x2" not in capsys.readouterr().err
    assert run(*arguments) == 0
    assert files(folder) == first
    error = capsys.readouterr().err
    assert "_x2 in the name: 3" in error
    assert "3 results are there already" in error


def test_other_files_in_a_folder_are_counted_by_type(folder, weights, capsys):
    for name in ("b.txt", "sub/c.TXT", "d.psd", "README"):
        (folder / "in" / name).write_text("")
    assert run(weights, folder / "in", "-o", folder / "out") == 0
    assert "1 .psd, 3 .txt, 1 no extension" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.heic", "out.avif", "out.gif", "out.psd", "out.HEIC", "out.mp4"])
def test_a_file_name_that_cannot_be_written_is_no_folder(folder, weights, name, capsys):
    assert run(weights, folder / "in/a.png", "-o", folder / name) == 2
    assert name[3:] in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / name).exists()


def test_arguments_of_real_esrgan(folder, weights, network, photo, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["upscale", "-n", str(weights), "-i", "in/a.png", "in/sub/b.jpg", "--fp32", "-t", "0", "-s", "2"]) == 0
    assert files(folder / "results") == ["a.png", "b.jpg"]
    assert np.array_equal(np.array(Image.open("results/a.png")), upscale(photo, network))
    assert main(["upscale", "-n", str(weights), "-i", "in/a.png", "--precision", "bf16", "--fp32", "--overwrite"]) == 0
    assert np.array_equal(np.array(Image.open("results/a.png")), upscale(photo, network))
    assert main(["upscale", "-n", str(weights), "-i", "in/a.png", "-o", "b.png", "-g", "77"]) == 2
    assert "cuda:77" in capsys.readouterr().err.splitlines()[-1]
    assert main(["upscale", "-n", str(weights)]) == 2
    assert "no input" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["", "-o", "out"], ["in", "-o", ""], ["in", "--weights", ""]])
def test_an_empty_argument_is_not_the_working_folder(folder, arguments, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = files(folder)
    with pytest.raises(SystemExit) as caught:
        main(["upscale", *arguments])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert files(folder) == before


def test_only_files_in_a_folder_are_read(folder, weights, monkeypatch, capsys):
    """A pipe in it would be waited for, and a link to a folder may lead back."""
    monkeypatch.chdir(folder)
    os.mkfifo("in/pipe.png")
    Path("in/linked").symlink_to("sub")
    assert main(["upscale", "in", "-o", "out", "--weights", str(weights), "--dry-run"]) == 0
    left_out = capsys.readouterr().err.splitlines()[-1]
    assert "1 pipe" in left_out
    assert "1 link" in left_out


def test_a_name_with_control_characters_stays_in_its_line(folder, weights, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    name = "in/two\nlines\x1b[2J\u2028.png"
    os.rename("in/a.png", name)
    Path("in/bad\n.png").write_text("no picture")
    assert main(["upscale", name, "in/bad\n.png", "-o", "out", "--weights", str(weights)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert Path("out", Path(name).name).is_file()


LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        [f"{LONG}.png"],
        ["in/a.png", "-o", f"{LONG}.png"],
        ["in/a.png", "-o", LONG],
        ["in/a.png", "-o", f"{LONG}/x/a.png"],
        ["in/a.png", "-o", f"new/folder/{LONG}.png"],
        ["in/a.png", "-o", f"new/{LONG}/a.png"],
        ["in/a.png", "--suffix", LONG],
        ["in", "-o", "in", "--suffix", LONG],
        [f"in/{LONG}*.png"],
        ["in/a\0b.png"],
    ],
)
def test_names_that_are_too_long(folder, weights, arguments, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert run(weights, *arguments) == 2
    assert sorted(folder.rglob("*")) == before  # no empty folder either
    assert LONG[:9] in (last := capsys.readouterr().err.splitlines()[-1]) or "null" in last
    assert last.startswith("dlgsanet: error: ")
    assert "Error:" not in last


@pytest.mark.parametrize("output", ["in/notes.txt/a.png", f"{LONG}.png", "out"])
def test_output_that_cannot_be_written_is_found_before_weights_are_read(folder, output, monkeypatch, capsys):
    """Also where a folder has the name of a result, which is not a result that is there already."""
    monkeypatch.chdir(folder)
    (folder / "out/a.png").mkdir(parents=True)
    assert run("none.pth", "in/a.png", "-o", output, *(["--dry-run"] if output == "out" else [])) == 2
    assert output in (last := capsys.readouterr().err.splitlines()[-1])
    assert "none.pth" not in last


def in_shell(folder, weights, line, before="true"):
    """`dlgsanet upscale` as a shell runs it."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = f"{before}; exec {sys.executable} -m dlgsanet upscale --weights {weights} {line}"
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, check=False)


def test_closed_streams(folder, weights):
    for number, closed in enumerate(("<&-", ">&-", "2>&-")):
        assert in_shell(folder, weights, f"in/a.png -o {number}.png {closed}").returncode == 0
        assert Image.open(folder / f"{number}.png").size == (168, 120)
    assert in_shell(folder, weights, "in/a.png in/sub --device cpu,cpu -o two <&- >&- 2>&-").returncode == 0
    assert files(folder / "two") == ["a.png", "b.jpg", "deep/c.webp"]
    for line in ("- -o 5.png <&-", "in/a.png -o - >&-"):
        done = in_shell(folder, weights, line)
        assert done.returncode == 2
        assert b"closed" in done.stderr.splitlines()[-1]


def test_a_picture_on_standard_output_is_whole_or_an_error(folder, weights):
    """Without a buffer the first call writes what fits, and says so."""
    done = in_shell(folder, weights, "in/a.png -o - > out.png", "ulimit -f 1; export PYTHONUNBUFFERED=1")
    assert done.returncode == 2
    assert b"a.png: cannot write standard output: File too large" in done.stderr


def test_few_open_files(folder, weights):
    done = in_shell(folder, weights, "in/a.png -o a.png", "ulimit -n 10")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="changes to another user")
def test_folders_without_access(folder, weights):
    (folder / "closed").mkdir(mode=0o700)
    (folder / "closed/a.png").write_bytes((folder / "in/a.png").read_bytes())
    for parent in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            parent.chmod(parent.stat().st_mode | 0o055)
    (folder / "closed").chmod(0o700)
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            os.setuid(65534)
            found = find_files([str(folder / "closed/a.png")], folder / "out")
            assert "Permission denied" in found.faults[0]
            found = find_files([str(folder / "in/a.png")], folder / "closed/out")
            assert len(found.jobs) == 1
            found = find_files([str(folder)], folder / "out")
            assert found.faults == [f"{folder}/closed: Permission denied"]
            assert len(found.jobs) == 3
            assert find_files([str(folder / "closed")], folder / "out").faults == found.faults
            with pytest.raises(UserError, match="closed: Permission denied"):
                images_by_folder(folder)
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("extension", ["jpg", "bmp"])
def test_transparency_that_is_opaque_everywhere_is_none(folder, weights, photo, extension):
    """Screenshots have it. Formats without transparency hold them."""
    Image.fromarray(photo).convert("RGBA").save(folder / "screenshot.png")
    assert run(weights, folder / "screenshot.png", "-o", folder / "out", "--ext", extension) == 0
    assert run(weights, folder / "in/a.png", "-o", folder / "plain", "--ext", extension) == 0
    assert (folder / f"out/screenshot.{extension}").read_bytes() == (folder / f"plain/a.{extension}").read_bytes()


def test_a_result_beyond_the_free_memory_is_refused(folder, weights, monkeypatch, capsys):
    """Linux would end the process when the result is written to the memory that it has given out."""
    Image.new("L", (3000, 3000)).save(folder / "large.png")
    monkeypatch.setattr(DLGSANet, "by_rows", None)  # a call would be a TypeError
    monkeypatch.chdir(folder)
    assert run(weights, "large.png", "-o", "out.png", "--outscale", 64) == 2
    assert "large.png: 192000x192000 pixels of the result need 68.7 GiB of memory" in capsys.readouterr().err
    free = 168 * 120 * 3 * 2  # to be encoded, the pixels are copied
    monkeypatch.setattr(tile_sizes, "free_memory", lambda device: free)
    assert run(weights, "in/a.png", "-o", "out.png", "--dry-run") == 0
    monkeypatch.setattr(tile_sizes, "free_memory", lambda device: free - 1)
    assert run(weights, "in/a.png", "-o", "out.png", "--dry-run") == 2
    assert "in/a.png: 168x120 pixels of the result need" in capsys.readouterr().err
