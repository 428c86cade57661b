"""Parameter names and types, from small notebooks made here."""

import nbformat
import pytest
import yaml

from helpers.base.errors import SettingError
from helpers.running import parameters
from helpers.running.parameters import (
    all_parameters,
    check_parameters,
    check_values,
    declared_parameters,
    load_parameters,
)

CELL = '''"""Comments and other statements are no parameters."""
# what is trained
epochs: int = 3
lr: float = 5e-4  # a comment
data: str = "data/sample"
fast: bool = False
prefixes: str | list = "auto"
cut_offs: list[int] = [1, 5]
helper = 3
'''
DECLARED = {
    "epochs": "int",
    "lr": "float",
    "data": "str",
    "fast": "bool",
    "prefixes": "str | list",
    "cut_offs": "list[int]",
}


def notebook(path, *cells, tags=("parameters",)):
    """Write a notebook whose first cell is tagged."""
    new = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")])
    new.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    new.cells[1].metadata["tags"] = list(tags)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new, path)
    return path


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "NOTEBOOKS", tmp_path)
    notebook(tmp_path / "01_a.ipynb", CELL, "later: int = 3")
    notebook(tmp_path / "02_b.ipynb", "epochs: int = 3\nk: int = 10\n")
    (tmp_path / "params").mkdir()
    return tmp_path


def test_declared_parameters_of_a_notebook(notebooks):
    assert declared_parameters(notebooks / "01_a.ipynb") == DECLARED
    assert declared_parameters(str(notebooks / "02_b.ipynb")) == {"epochs": "int", "k": "int"}
    assert declared_parameters(notebook(notebooks / "03_c.ipynb", CELL, tags=["other"])) == {}
    assert all_parameters() == {**DECLARED, "k": "int"}


RIGHT = [
    ("epochs", 0),
    ("epochs", -3),
    ("lr", 1e-5),
    ("lr", 1),
    ("data", ""),
    ("fast", True),
    ("fast", False),
    ("prefixes", "none"),
    ("prefixes", ["q: ", "p: "]),
    ("cut_offs", []),
    ("cut_offs", [1]),
]
WRONG = [  # name, value, the type that the message gives it
    ("epochs", "3", "str"),
    ("epochs", 3.0, "float"),
    ("epochs", True, "bool"),
    ("epochs", None, "NoneType"),
    ("epochs", [3], "list"),
    ("lr", "1e-5", "str"),
    ("lr", False, "bool"),
    ("lr", None, "NoneType"),
    ("data", 3, "int"),
    ("data", True, "bool"),
    ("data", ["x"], "list"),
    ("fast", "true", "str"),
    ("fast", 1, "int"),
    ("fast", 0, "int"),
    ("prefixes", True, "bool"),
    ("prefixes", 1, "int"),
    ("prefixes", {"q": "p"}, "dict"),
    ("cut_offs", "1, 5", "str"),
    ("cut_offs", 5, "int"),
]


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_right_value_passes(name, value):
    check_values({name: value}, DECLARED, "here")


@pytest.mark.parametrize(("name", "value", "kind"), WRONG)
def test_wrong_type_is_named(name, value, kind):
    with pytest.raises(SettingError) as caught:
        check_values({"epochs": 1, name: value}, DECLARED, "here.yaml")
    message = str(caught.value)
    assert message.startswith(f"here.yaml: {name}={value!r} is a {kind};") and DECLARED[name] in message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("epoch", "did you mean 'epochs'?"),
        ("LR", "known are epochs, lr, data"),
        ("zzzz", "known are"),
        (3, "known are"),
    ],
)
def test_unknown_name_gets_a_suggestion(name, hint):
    with pytest.raises(SettingError) as caught:
        check_values({name: 3}, DECLARED, "here.yaml")
    assert f"here.yaml: unknown parameter {name!r}; {hint}" in str(caught.value)


VALUES = {"epochs": 3, "lr": 5e-4, "data": "data/sample", "fast": False, "prefixes": "auto", "cut_offs": [1, 5]}


def test_notebook_run_by_hand_is_checked_too(notebooks):
    assert check_parameters("01_a", {"In": ["", CELL], "helper": 3, **VALUES}) == VALUES
    assert check_parameters("01_a", VALUES) == VALUES  # no IPython at all
    with pytest.raises(SettingError, match=r"epochs='3' is a str"):
        check_parameters("01_a", {"In": ["", CELL], **VALUES, "epochs": "3"})


def test_injected_parameters_are_checked(notebooks):
    def run(cell, **values):
        return check_parameters("01_a", {"In": ["", CELL, cell], **VALUES, **values})

    assert run("# Parameters\nepochs = 5\nk = 3\n", epochs=5, k=3) == {**VALUES, "epochs": 5}  # k: of another notebook
    with pytest.raises(SettingError, match="unknown parameter 'epoch'; did you mean 'epochs'"):
        run("# Parameters\nepoch = 5\n", epoch=5)
    with pytest.raises(SettingError, match="fast='true' is a str"):
        run('# Parameters\nfast = "true"\n', fast="true")
    with pytest.raises(SettingError, match="k='3' is a str"):
        run('# Parameters\nk = "3"\n', k="3")


def test_parameter_file_by_name_and_by_path(notebooks, tmp_path):
    (notebooks / "params" / "small.yaml").write_text("epochs: 1\nlr: 1.0e-5\nk: 3\nprefixes: ['q: ', '']\n")
    expected = {"epochs": 1, "lr": 1e-5, "k": 3, "prefixes": ["q: ", ""]}
    assert load_parameters("small") == load_parameters(notebooks / "params" / "small.yaml") == expected
    (tmp_path / "own.yml").write_text("# nothing changed\n")
    assert load_parameters(tmp_path / "own.yml") == {}


def test_missing_parameter_file_lists_those_there_are(notebooks):
    for name in ("cpu", "cuda"):
        (notebooks / "params" / f"{name}.yaml").write_text("epochs: 1")
    for wrong in ("gpu", "gpu.yaml"):
        with pytest.raises(SettingError, match=r"gpu\.yaml.*cpu, cuda"):
            load_parameters(wrong)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b"epochs: [1", ["YAML"]),
        (b"data: \xff\xfe", ["YAML"]),
        (b"- epochs\n- 3", ["name: value", "['epochs', 3]"]),
        (b"just text", ["name: value", "'just text'"]),
        (b"epochz: 3", ["unknown parameter 'epochz'", "'epochs'"]),
        (b"epochs: many", ["epochs='many'", "int"]),
        (b"lr: 1e-5", ["lr='1e-5' is a str", "float"]),  # YAML 1.1 wants 1.0e-5
        (b"fast: 'yes'", ["fast='yes'", "bool"]),
    ],
)
def test_bad_parameter_file_is_named(notebooks, text, parts):
    (notebooks / "params" / "bad.yaml").write_bytes(text)
    with pytest.raises(SettingError) as caught:
        load_parameters("bad")
    for part in ("bad.yaml", *parts):
        assert part in str(caught.value)


def test_the_reason_for_that_last_but_one_case():
    assert yaml.safe_load("1e-5") == "1e-5" and yaml.safe_load("1.0e-5") == 1e-5
