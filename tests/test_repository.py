"""What holds for the repository as a whole: how BasicSR is installed, the time limits of tests, versions, dates."""

import ast
import os
import re
import runpy
import subprocess
import sys

from tests.conftest import REPOSITORY

INSTALL = REPOSITORY / "scripts/install_basicsr.py"


def test_exec_writes_to_a_functions_variables_while_basicsr_is_built(tmp_path):
    """As BasicSR's setup.py expects. Python 3.13 and later fail this without sitecustomize."""
    (tmp_path / "sitecustomize.py").write_text(runpy.run_path(str(INSTALL))["SITECUSTOMIZE"])
    code = """
def version():
    exec(compile("__version__ = '1.4.2'", "version.py", "exec"))
    return locals()["__version__"]
assert version() == "1.4.2"
exec("at_module_level = 1")
assert at_module_level == 1
names = {}
exec("kept_apart = 1", names)
assert names["kept_apart"] == 1 and "kept_apart" not in globals()
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_version_of_basicsr_is_the_same_everywhere():
    pinned = runpy.run_path(str(INSTALL))["BASICSR"]
    assert pinned in (REPOSITORY / "requirements.txt").read_text().splitlines()


def test_the_packages_for_tests_leave_the_triton_of_a_torch_for_gpus():
    """With another Triton pip would replace such a torch. The Makefile asks for one only next to other builds."""
    for_tests = re.search(r"^test = \[.*?^\]", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert "triton" not in for_tests[0]


def test_no_test_has_a_short_time_limit():
    """A busy machine must not fail a test: limits are there to end what hangs, from 600 s up."""
    short = [
        f"{path.name}:{node.value.lineno}: {node.value.value}"
        for path in REPOSITORY.glob("tests/**/*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword)
        and node.arg in ("timeout", "deadline")
        and isinstance(node.value, ast.Constant)
        if node.value.value is not None and node.value.value < 600
    ]
    assert not short


def test_every_version_of_the_changelog_has_a_date():
    headings = re.findall(r"^## .*$", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings
    assert all(re.fullmatch(r"## \d+\.\d+\.\d+ \((unreleased|\d{4}-\d\d-\d\d).*\)", heading) for heading in headings)


def test_the_checks_of_pull_requests_are_those_of_ci():
    assert "bash .ci/run" in (REPOSITORY / ".github/workflows/ci.yml").read_text()
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text()
    for command in re.findall(r"\$\(bin\)/(ruff \w+|mypy)", lint[1]):
        assert f".venv/bin/{command}" in hooks


def test_a_long_step_of_make_shows_that_it_goes_on():
    """It prints a line every BEAT seconds, keeps the exit code of the command, and ends with it."""
    call = ["make", "--no-print-directory", "BEAT=1", "--eval=step: ; @$(call patiently,waiting,sleep 2.5; exit 3)"]
    done = subprocess.run([*call, "step"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.startswith("waiting\n  waiting: 1 s\n")
    assert "Error 3" in done.stderr


def test_lines_of_compiled_code_are_as_long_as_pythons():
    """Ruff checks Python's alone."""
    limit = int(re.findall(r"^line-length = (\d+)", (REPOSITORY / "pyproject.toml").read_text(), re.M)[0])
    sources = [file for kind in ("cpp", "h", "cu") for file in (REPOSITORY / "dlgsanet").rglob(f"*.{kind}")]
    lines = [(file.name, line) for file in sources for line in file.read_text().splitlines()]
    assert lines
    assert [place for place in lines if len(place[1]) > limit] == []


def test_prose_of_documents_is_as_wide_as_code():
    """Tables, pictures and what is in code blocks may be wider."""
    for document in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")]:
        text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        prose = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "!["))]
        assert [(document.name, line) for line in prose if len(line) > 120] == []
