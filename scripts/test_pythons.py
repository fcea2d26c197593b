"""`make test-pythons`: install the wheel on several Pythons, each in a fresh virtual environment, and run it there.

For each Python: torch, then BasicSR's own source package without pip's cache (a wheel from there would hide a failing
build), then ``dist/*.whl``, as README's "Install" says. Then `scripts/demo.py --quick` makes data from photographs,
tests, trains and draws with the installed package, in a folder without this repository's.
A Python that is not on this machine, or for which torch cannot be downloaded, is listed as not run. The exit code is 1
if one failed.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NEEDED_GB = 12  # PyPI's torch for Linux brings CUDA's libraries: 5 GB, which the environments share, and 2 GB for each

TORCH_SECONDS = 900  # for torch to be downloaded


def interpreter(version: str) -> str | None:
    """The command of Python `version`, such as ``3.12``: from PATH, or from pyenv."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for command in (shutil.which(f"python{version}"), *map(str, reversed(pyenv))):
        # pyenv's own commands on PATH exist, and fail, for versions that are not selected.
        if command and subprocess.run([command, "-c", ""], capture_output=True).returncode == 0:
            return command
    return None


def run(*command: object, **settings) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, **settings)


class NoTorchError(Exception):
    """torch cannot be installed: the network, or no build for this Python."""


def check(python: str, torch: list[str], folder: Path) -> str:
    """Install and run everything in `folder` with the interpreter `python`; returns the versions that were run.

    Raises:
        NoTorchError: torch cannot be installed.
        CalledProcessError: another step has failed.
    """
    # uv links files from its cache into every environment, so that torch's libraries are kept once.
    environment = os.environ | {
        "UV_CACHE_DIR": str(folder.parent / "cache"),
        "PIP_NO_CACHE_DIR": "1",
        "UV_LINK_MODE": "hardlink",
    }
    environment.pop("PYTHONPATH", None)
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--seed", "--python", python, folder / "venv", env=environment)
    here = folder / "venv/bin/python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", here]
    try:
        run(*install, *torch, "setuptools>=77,<81", "wheel", env=environment, timeout=TORCH_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise NoTorchError from error
    run(
        here,
        REPOSITORY / "scripts/install_basicsr.py",
        "--wheel",
        folder / "needs",
        env=environment | {"PIP_QUIET": "1"},
    )
    wheels = sorted(REPOSITORY.glob("dist/*.whl"))
    run(*install, "--find-links", folder / "needs", *wheels, "matplotlib", env=environment)
    for part in ("options", "weights", "scripts"):
        shutil.copytree(REPOSITORY / part, folder / part)
    run(here, "scripts/demo.py", "--quick", cwd=folder, env=environment)
    code = (
        "import platform, dlgsanet.plugin, basicsr, torch, numpy\n"
        "print('Python', platform.python_version(), 'torch', torch.__version__, 'numpy', numpy.__version__)"
    )
    done = subprocess.run([here, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="+", metavar="VERSION", help="such as 3.12")
    parser.add_argument("--torch", default="torch torchvision", help="what to install for torch, as for pip")
    args = parser.parse_args()
    results, failed = [], False
    with tempfile.TemporaryDirectory(prefix="pythons.", dir=os.environ.get("TMPDIR")) as scratch:
        free = shutil.disk_usage(scratch).free / 1e9
        for version in args.pythons:
            python = interpreter(version)
            if python is None:
                results.append(f"{version}: not run, there is no such interpreter here")
            elif free < NEEDED_GB:
                results.append(f"{version}: not run, {free:.0f} GB are free in {scratch} and {NEEDED_GB} GB are needed")
            else:
                print(f"\n== Python {version}", flush=True)
                folder = Path(scratch, version)
                folder.mkdir()
                try:
                    results.append(f"{version}: passed ({check(python, shlex.split(args.torch), folder)})")
                except NoTorchError:
                    results.append(f"{version}: not run, {args.torch} cannot be installed")
                except subprocess.CalledProcessError as error:
                    failed = True
                    results.append(f"{version}: FAILED in {shlex.join(map(str, error.cmd))}")
                shutil.rmtree(folder)
    print("", *results, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
