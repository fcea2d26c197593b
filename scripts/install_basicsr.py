"""Install BasicSR 1.4.2, unchanged, on any Python from 3.10 on: `python scripts/install_basicsr.py`.

BasicSR's setup.py reads its version with ``exec(code)`` followed by ``locals()["__version__"]``. Since Python 3.13
(PEP 667) a bare `exec` in a function no longer writes to the function's variables, and the build ends with a KeyError.
While pip runs here, `exec` writes to them again. Nothing else of BasicSR is touched, and the wheel that comes of it is
``py3-none-any``: built once, it can be installed by any other Python without this script.

Needs pip, setuptools and wheel in this Python, and nothing of this repository. pip's environment variables work, such
as ``PIP_NO_CACHE_DIR=1``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BASICSR = "basicsr==1.4.2"

# Python imports a module of this name when it starts: pip's child processes, which run setup.py, do so too.
SITECUSTOMIZE = """\
import builtins, sys

plain_exec = builtins.exec

def exec(code, /, globals=None, locals=None, **closure):
    if globals is None:
        frame = sys._getframe(1)
        globals, locals = frame.f_globals, frame.f_locals if locals is None else locals
    plain_exec(code, globals, locals, **closure)

builtins.exec = exec
"""


def pip(*arguments: str) -> int:
    """Run ``pip ARGUMENTS`` for BasicSR with this Python, with `exec` as it was before 3.13; return its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        # Without isolation: BasicSR's build asks for torch, and pip would download another one for the build alone.
        call = [sys.executable, "-m", "pip", *arguments, "--no-build-isolation", BASICSR]
        return subprocess.run(call, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}).returncode


def main() -> int:
    """Install BasicSR or, with ``--wheel FOLDER``, build its wheel there; the exit code is pip's."""
    parser = argparse.ArgumentParser(description="Install BasicSR 1.4.2, unchanged, on any Python from 3.10 on.")
    parser.add_argument("--wheel", metavar="FOLDER", help="build the wheel into FOLDER, and install nothing")
    folder = parser.parse_args().wheel
    return pip("wheel", "--no-deps", "--wheel-dir", folder) if folder else pip("install")


if __name__ == "__main__":
    sys.exit(main())
