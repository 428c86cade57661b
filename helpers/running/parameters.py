"""Checked parameters: names and types come from each notebook's own `parameters` cell.

papermill only warns of a misspelt name, and passes `-p fast true` as a string. Here both are errors: the
runner checks them before it starts the first notebook, and each notebook checks its own when it is opened.
"""

import ast
import difflib
import json
from pathlib import Path
from typing import Any

import yaml

from helpers.base.errors import SettingError, shorten
from helpers.base.files import ROOT

NOTEBOOKS = ROOT / "notebooks"
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}


def declared_parameters(notebook: str | Path) -> dict[str, str]:
    """Return parameter name -> annotation (such as "int" or "str | list") of a notebook's parameters cell."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    source = "".join("".join(cell["source"]) for cell in tagged[:1])
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(node.target): ast.unparse(node.annotation) for node in nodes}


def all_parameters() -> dict[str, str]:
    """Return the parameters of all notebooks of the course; a name means the same in each."""
    return {k: v for path in sorted(NOTEBOOKS.glob("*.ipynb")) for k, v in declared_parameters(path).items()}


def check_values(values: dict[str, Any], declared: dict[str, str], where: str) -> None:
    """Raise SettingError for the first value of an unknown name or a wrong type.

    >>> check_values({"epochs": "3"}, {"epochs": "int"}, "params.yaml")
    Traceback (most recent call last):
    helpers.base.errors.SettingError: params.yaml: epochs='3' is a str; the parameter is an int
    """
    for name, value in values.items():
        if name not in declared:
            close = difflib.get_close_matches(str(name), declared, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(declared)}"
            raise SettingError(f"{where}: unknown parameter {name!r}; {hint}")
        kinds = tuple(TYPES[kind.strip().split("[")[0]] for kind in declared[name].split("|"))
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            article = "an" if declared[name][0] in "aeiou" else "a"
            hint = "; in YAML write 1.0e-5, not 1e-5" if float in kinds and isinstance(value, str) else ""
            raise SettingError(
                f"{where}: {name}={shorten(value)} is a {type(value).__name__}; "
                f"the parameter is {article} {declared[name]}{hint}"
            )


def check_parameters(notebook: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Check a running notebook's parameters and return them by name.

    Parameters
    ----------
    notebook : its file name without `.ipynb`
    namespace : the notebook's `globals()`

    Raises
    ------
    SettingError : papermill injected a name that no notebook of the course knows, or a value of a wrong type
    """
    declared = declared_parameters(NOTEBOOKS / f"{notebook}.ipynb")
    injected = [cell for cell in namespace.get("In", ()) if cell.startswith("# Parameters")]
    targets = [t for cell in injected for node in ast.parse(cell).body for t in getattr(node, "targets", ())]
    given = {ast.unparse(target): namespace[ast.unparse(target)] for target in targets}
    check_values(given, all_parameters(), "parameters")
    values = {name: namespace[name] for name in declared}
    check_values(values, declared, "parameters")
    return values


def load_parameters(name: str | Path) -> dict[str, Any]:
    """Read a parameter file: a path, or the name of one in notebooks/params.

    Raises
    ------
    SettingError : there is no such file, it is not a mapping, or a name or type is wrong
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = NOTEBOOKS / "params" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (NOTEBOOKS / "params").glob("*.yaml")))
        raise SettingError(f"no parameter file {path}; give a path to a .yaml file, or one of: {known}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: not readable as YAML ({error})") from error
    values = {} if values is None else values  # an empty file
    if not isinstance(values, dict):
        raise SettingError(f"{path}: a list of `name: value` lines is needed, not {shorten(values)}")
    check_values(values, all_parameters(), str(path.name))
    return values
