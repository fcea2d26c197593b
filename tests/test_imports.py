"""Imports inside the package point one way and never in a circle. Imports inside functions count too."""

import ast
from graphlib import TopologicalSorter

from tests.conftest import REPOSITORY

# From the top to the bottom: a room (a folder or module of dlgsanet/) imports from itself and from lines below its own.
# Some modules of a room have a line of their own: every room below may read `options.table` or a picture file, too.
LAYERS = [
    "__main__ train test",
    "cli",
    "commands",
    "evaluation training web",
    "pictures",
    "inference",
    "options",
    "extensions",
    "plugin",
    "models",
    "data",
    "losses metrics",
    "archs",
    "ops",
    "basicsr_compat memory distributed allocator",
    "device",
    "pictures.bounds pictures.formats pictures.picture pictures.reading pictures.writing",
    "files folder_lock progress packages signals startup options.table",
    "errors",
]
LEVEL = {room: number for number, line in enumerate(LAYERS) for room in line.split()}


def modules() -> dict[str, ast.Module]:
    """The package's modules by name, without ``dlgsanet/__init__.py``: it has the version and the lazy public names."""
    files = {path.relative_to(REPOSITORY).with_suffix(""): path for path in (REPOSITORY / "dlgsanet").rglob("*.py")}
    trees = {".".join(name.parts): ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    return {name.removesuffix(".__init__"): tree for name, tree in trees.items() if name != "dlgsanet.__init__"}


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """The modules of the package that a module imports, at its top, in a function, or by name with importlib."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & known) or {str(node.module)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value.split(":")[0])
    return names & known


def graph() -> dict[str, set[str]]:
    trees = modules()
    return {name: imports(tree, set(trees)) - {name} for name, tree in trees.items()}


def room(module: str) -> str:
    parts = module.split(".")[1:]
    return next((name for name in (".".join(parts[:2]), parts[0]) if name in LEVEL), parts[0])


def test_every_room_has_a_layer():
    assert {room(module) for module in modules()} == set(LEVEL)


def test_imports_point_down():
    upwards = [
        f"{module} imports {imported}"
        for module, names in graph().items()
        for imported in names
        if imported.split(".")[1] != module.split(".")[1] and LEVEL[room(imported)] <= LEVEL[room(module)]
    ]
    assert not upwards


def test_no_circle_of_modules():
    TopologicalSorter(graph()).prepare()  # raises CycleError, which names the circle


def test_ops_knows_no_network_and_archs_know_no_basicsr():
    for name, tree in modules().items():
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        imported |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        basicsr = {i for i in imported if i and i.split(".")[0] == "basicsr"}
        assert room(name) not in ("ops", "archs") or not basicsr, f"{name} imports {basicsr}"
