"""The house stays one that people can live in: small files, short functions, and one home for every public name."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from helpers.base.files import ROOT

FILES = sorted((ROOT / "helpers").rglob("*.py"))
METHOD = sorted((ROOT / "helpers").glob("*.py"))
PATHS = [str(path.relative_to(ROOT)) for path in FILES]


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_the_method_is_read_in_an_hour():
    assert len(METHOD) <= 13
    assert sum(map(lines, METHOD)) <= 2600


@pytest.mark.parametrize("path", FILES, ids=PATHS)
def test_files_and_functions_are_short(path):
    assert lines(path) <= 300
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path)}
    assert {name: length for name, length in long.items() if length > 60} == {}


@pytest.mark.parametrize("path", FILES, ids=PATHS)
def test_no_catch_all_swallows_a_misspelt_name(path):
    catching = [node.name for node in functions(path) if node.args.kwarg and not node.args.kwarg.arg.startswith("_")]
    assert catching == []


def test_lines_are_laid_out_by_the_formatter():
    shielded = [str(path) for path in [*FILES, *(ROOT / "tests").rglob("*.py")] if "# fmt" + ": " in path.read_text()]
    assert shielded == []


def test_every_public_name_has_one_home():
    names: Counter[str] = Counter()
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                names[node.name] += 1
    names.pop("main", None)  # of each module that is also a command
    assert {name for name, count in names.items() if count > 1} == set()


def test_readme_names_every_file_of_the_house():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## What lies where", 1)[1].split("\n## ", 1)[0]
    missing = [path.stem for path in FILES if path.stem not in ("__init__", "__main__") and path.stem not in tree]
    assert missing == []
    assert len(tree.splitlines()) <= 50  # it fits on a screen
