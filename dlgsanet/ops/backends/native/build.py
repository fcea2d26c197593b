"""Build the libraries of the native backend, one per instruction set, next to their sources.

Run ``python dlgsanet/ops/backends/native/build.py`` in a source checkout; setup.py calls `build`. It imports only
Python's standard library, so neither torch nor this package has to be installed.
"""

import functools
import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent

_FLAGS = (
    "-std=c++17 -O3 -fPIC -shared -pthread -fvisibility=hidden -fno-exceptions -fno-rtti -fno-math-errno "
    "-fno-trapping-math -ffp-contract=fast -Wall -Wextra -Wno-psabi"
)
if sys.platform == "linux":  # Apple's linker does not know the option
    _FLAGS += " -Wl,--as-needed"
# Python and the C++ sources share these numbers.
CONSTANTS = {name: n for name, n in runpy.run_path(str(HERE.parents[1] / "constants.py")).items() if name.isupper()}
_DEFINITIONS = [f"-DDLGSANET_{name}={value}" for name, value in CONSTANTS.items()]
_ASIDE = ".build-"  # folders in which libraries are made
_LONGEST_BUILD = 24 * 3600  # seconds
# Registers of 16, 8 and 4 floats, fastest first.
_PORTABLE = {"portable": "-DDLGSANET_LANES=4"}
_X86_64 = {
    "avx512": "-DDLGSANET_LANES=16 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma",
    "avx2": "-DDLGSANET_LANES=8 -mavx2 -mfma",
    **_PORTABLE,
}


@functools.cache
def instruction_sets() -> dict[str, str]:
    """Compiler flags for every instruction set that this type of machine may have, fastest first."""
    return _X86_64 if platform.machine().lower() in ("x86_64", "amd64") else _PORTABLE


@functools.cache
def _fingerprint() -> str:
    sources = b"".join(path.read_bytes() for path in sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h")]))
    return f"{zlib.crc32(sources + repr((_FLAGS, CONSTANTS, _X86_64)).encode()):08x}"


def library_name(instruction_set: str) -> str:
    """The library's file name. It contains a hash of sources and flags, so an outdated library is never loaded."""
    return f"_{instruction_set}.{_fingerprint()}.so"


def compiler() -> list[str] | None:
    """The command of the C++ compiler: ``CXX``, or the first of the usual ones that exists."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def build(folder: Path, extra_flags: str = "") -> str | None:
    """Compile the libraries that are missing in `folder`, and delete outdated ones.

    Returns:
        None, or one line with the reason why they are not built. No incomplete file is left.
    """
    if sys.platform == "win32":
        return "native CPU layers are not built: Windows is not supported"
    command = compiler()
    if command is None:
        return "native CPU layers are not built: no C++ compiler (set CXX, or install g++)"
    for left in Path(folder).glob(f"{_ASIDE}*"):  # by a build that was killed
        if time.time() - left.stat().st_mtime > _LONGEST_BUILD:
            shutil.rmtree(left, ignore_errors=True)
    sources = sorted(HERE.glob("*.cpp"))
    for name, flags in instruction_sets().items():
        library = Path(folder, library_name(name))
        if library.exists():
            continue
        options = [*_FLAGS.split(), *_DEFINITIONS, *flags.split(), *extra_flags.split()]
        try:
            # A folder of this call's own: another process, also of another host, may build the same library.
            with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=folder) as aside:
                made = Path(aside, library.name)
                call = [*command, *options, *map(str, sources), "-o", str(made)]
                subprocess.run(call, check=True, capture_output=True, text=True)
                os.replace(made, library)
            for old in set(Path(folder).glob(f"_{name}.*.so")) - {library}:
                old.unlink(missing_ok=True)
        except (OSError, subprocess.CalledProcessError) as error:
            last = [str(error), *(getattr(error, "stderr", None) or "").strip().splitlines()][-1]
            return f"native CPU layers are not built: {shlex.join(command)} failed: {last}"
    return None


if __name__ == "__main__":
    problem = build(HERE)
    print(problem or f"native CPU layers built: {', '.join(instruction_sets())}")
    sys.exit(problem is not None)
