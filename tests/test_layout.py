"""The house: who may import whom, and how long things may get."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import vqlib
from vqlib.training import fit

tomllib = pytest.importorskip("tomllib")  # Python 3.11
ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "vqlib").rglob("*.py"))
FLOW = ["data", "vqvae", "tokens", "transformer", "sampling"]  # data flows this way


def name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path):
    """The full names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(names, package):
    return {n for n in names if n == package or n.startswith(f"{package}.")}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_room_reaches_into_one_that_comes_later(path):
    names, room = imported(path), name(path).split(".")[1]
    if room != "notebook":
        assert not within(names, "vqlib.notebook")
        if room not in ("training", "scorecard"):
            assert not within(names, "vqlib.training")
    if room in FLOW:
        assert not any(within(names, f"vqlib.{later}") for later in FLOW[FLOW.index(room) + 1 :])
    if "panels" not in path.parts:
        assert not within(names, "ipywidgets")


def test_each_package_is_shipped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {name(path.parent) for path in MODULES} == set(project["tool"]["setuptools"]["packages"])
    assert project["project"]["scripts"]["vqlib"] == "vqlib.__main__:main"


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"(?m)^version: (.+)$", citation)[1] == vqlib.__version__
    assert re.search(r"(?m)^## ([0-9.]+),", changes)[1] == vqlib.__version__


def test_requirements_bound_what_the_package_needs_alike():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = set((ROOT / "requirements.txt").read_text().split())
    assert set(project["dependencies"]) | set(project["optional-dependencies"]["test"]) == lines - {"-e", "."}


def test_the_loop_can_be_shown():
    """`fit` at most 45 lines; no function takes more than nine parameters."""
    assert len(inspect.getsource(fit).splitlines()) <= 45
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                a = node.args
                assert len(a.posonlyargs + a.args + a.kwonlyargs) <= 9, f"{path}:{node.lineno} {node.name}"
