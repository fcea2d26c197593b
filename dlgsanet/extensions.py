"""Networks, losses and data sets of one's own: Python files that register classes in BasicSR's registries."""

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from itertools import accumulate
from pathlib import Path

from dlgsanet.errors import UserError
from dlgsanet.files import expanded

_imported: dict[str, str] = {}  # by this process, in their order: name, and that of the module


class Imported:
    """What this process has imported by `import_all`. A process that unpickles it imports the same."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[list[str]]]:
        return import_all, ([*_imported],)


def import_all(names: Iterable[str], near: Path | None = None, asked_by: str = "--import") -> list[str]:
    """Import files and modules; each only once in a process.

    Args:
        names: `FILE.py`, or a module as `import` takes it (the working folder is searched too).
        near: a folder in which a file is looked for that is not in the working folder, the option file's for example.
        asked_by: what names them, for the message.

    Returns:
        The names, files as absolute paths: what another process imports the same by.

    Raises:
        UserError: there is no such file or module, or it raises an error; the message names it.
    """
    import dlgsanet.plugin  # noqa: F401  # BasicSR does not import without it

    found = []
    for name in names:
        file = _find(Path(name), near, asked_by) if name.endswith(".py") else None
        try:
            module = _import_file(file) if file else _import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # it is the user's code: a SyntaxError, SystemExit, anything
            reason = " ".join(str(error).split()) or "no message"
            raise UserError(f"{asked_by} {name}: {type(error).__name__}: {reason}") from error
        found.append(str(file or name))
        _imported[found[-1]] = module
    return found


def imported_sources() -> list[Path]:
    """The files of what this process has imported by `import_all`, with what they import in turn (`sources_of`)."""
    return sorted({file for module in _imported.values() for file in sources_of(module)})


def names_in(value: object) -> list[str]:
    """The names in an option file's key `import`: one, or a list of them. The check reports what is not text."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return [name for name in several if isinstance(name, str)]


def sources_of(module: str) -> list[Path]:
    """The file of a module that was imported, and those of the modules that it imports in turn, also within functions,
    and not of an installed package other than its own."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        spec = None if name in found else _spec_of(name)
        file = spec and spec.origin
        if not spec or not file or not file.endswith(".py"):
            continue
        if _is_installed(file) and name.partition(".")[0] != module.partition(".")[0]:
            continue
        found[name] = Path(file)
        waiting += _imported_by(found[name], spec.parent or "")
    return sorted(set(found.values()))


def _spec_of(name: str) -> ModuleSpec | None:
    """What is known of a module, without importing anything; None: there is no such module."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__spec__", None)
    package = name.rpartition(".")[0]
    if not package:
        return PathFinder.find_spec(name)
    places = getattr(_spec_of(package), "submodule_search_locations", None)
    return PathFinder.find_spec(name, places) if places else None


def _is_installed(file: str) -> bool:
    paths = sysconfig.get_paths()
    return {"site-packages", "dist-packages"} & {*Path(file).parts} != set() or file.startswith(
        (paths["stdlib"] + os.sep, paths["platstdlib"] + os.sep)
    )


def _imported_by(file: Path, package: str) -> Iterator[str]:
    """Names of modules, with those of their packages and of what may be a module or not."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            start = ".".join([*parents, *([node.module] if node.module else [])])
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        for name in names:
            yield from accumulate(name.split("."), "{}.{}".format)


def _find(path: Path, near: Path | None, asked_by: str) -> Path:
    path = expanded(path)
    for file in (path, near / path) if near else (path,):
        if file.is_file():
            return file.resolve()
    raise UserError(f"{asked_by}: there is no file {path}")


def _import_module(name: str) -> str:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    importlib.import_module(name)
    return name


def _import_file(file: Path) -> str:
    # A name of its own: two files may be called `network.py`, and neither must hide an installed module. By content:
    # the classes of a copy are registered already.
    name = f"dlgsanet_import_{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}_{file.stem}"
    if name in sys.modules:
        return name
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))  # for what it imports from the files next to it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return name
