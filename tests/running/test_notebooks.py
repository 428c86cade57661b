"""The notebooks keep the house style, and their committed outputs are whole, current and ours."""

import json
import re
import statistics

import pytest

from helpers.base.files import ROOT
from helpers.running.parameters import NOTEBOOKS, all_parameters, declared_parameters

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def code(notebook):
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), cell) for cell in cells]


def test_opens_with_title_promise_and_needs(notebook):
    first = "".join(notebook["cells"][0]["source"])
    assert re.match(r"# \d\d · .+\n\n> .+\n\nIn this notebook, we will\n", first)
    assert "| needs | leaves behind | time |" in first


def test_closes_with_recap_and_exercises_that_check_themselves(notebook):
    text = "".join("".join(cell["source"]) for cell in notebook["cells"])
    assert text.index("## Recap") < text.index("## Exercises")
    assert text.count("<summary>Solution</summary>") >= 2 and "not answered yet" in text


def test_cells_are_small_and_prose_is_plenty(notebook):
    tagged = ["parameters" in cell["metadata"].get("tags", ()) for _, cell in code(notebook)]  # that one is a table
    cells = [source for (source, _), table in zip(code(notebook), tagged, strict=True) if not table]
    lengths = [len([line for line in source.splitlines() if line.strip()]) for source in cells]
    assert max(lengths) <= 30 and statistics.median(lengths) <= 6
    assert len(lengths) <= 0.65 * len(notebook["cells"])


def test_no_prose_is_a_placeholder(notebook):
    prose = ["".join(cell["source"]).strip() for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    assert not [text for text in prose if not text.startswith("#") and len(text) < 25]


def test_one_parameters_cell_typed_and_commented(notebook):
    tagged = [source for source, cell in code(notebook) if "parameters" in cell["metadata"].get("tags", ())]
    assert len(tagged) == 1
    for line in tagged[0].splitlines():
        assert re.match(r"\w+: [\w |]+ = .+  # \S", line), line


def test_every_cell_was_run_in_order_without_an_error(notebook):
    cells = [cell for source, cell in code(notebook) if source.strip()]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]


def test_outputs_hold_no_path_widget_or_squad_text(notebook):
    outputs = json.dumps([cell["outputs"] for _, cell in code(notebook)])
    assert not re.search(r"/(home|root|tmp|work|Users)/", outputs)
    assert "widget-view" not in outputs and "papermill" not in json.dumps(notebook["metadata"])
    assert "stderr" not in outputs
    assert "Super Bowl" not in outputs  # the first article of SQuAD's dev file


def test_a_parameter_means_the_same_in_every_notebook():
    known = all_parameters()
    for path in PATHS:
        for name, kind in declared_parameters(path).items():
            assert known[name] == kind, f"{path.name}: {name}"


def test_readme_shows_the_two_commands_first_and_links_every_notebook():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.match(r"# .+\n\n```bash\nmake run .*\nmake test .*\n```\n", readme)
    for path in PATHS:
        assert f"notebooks/{path.name}" in readme


def test_the_numbers_of_the_readme_are_those_of_the_committed_report():
    report = json.loads((ROOT / "data" / "results" / "cpu.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for system in report["systems"]:
        cells = [
            "{answer:.1f} [{low:.1f}, {high:.1f}]".format(**{n: 100 * hit[n] for n in ("answer", "low", "high")})
            for hit in (system["hits"][k] for k in ("1", "10", "100"))
        ]
        assert " | ".join(cells) in readme, system["name"]


def test_the_ladder_of_the_readme_is_the_committed_one():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in readme.splitlines() if re.search(r"\| [+-]\d+\.\d \[[+-]", line)]
    assert len(rows) == 5
    for model, _negatives, hit, gain in rows:
        name = {"| BERT-tiny": "bert-tiny", "| all-MiniLM-L6-v2": "all-MiniLM-L6-v2"}[model]
        ladder = json.loads((ROOT / "data" / "results" / f"ladder-{name}.json").read_text(encoding="utf-8"))
        found = [
            (f"{rung['hit@1']['mean']:.1f}", "{:+.1f} [{:+.1f}, {:+.1f}] |".format(*rung["hit@1"]["minus random"]))
            for rung in ladder["rungs"]
            if "minus random" in rung["hit@1"]
        ]
        assert (hit, gain) in found


def test_the_distillation_and_expansion_of_the_readme_are_the_committed_ones():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = ROOT / "data" / "results"
    rows = {row["name"]: row for row in json.loads((results / "distillation.json").read_text(encoding="utf-8"))["test"]}
    taught = rows["cut to 1, KL, T = 2"]
    assert "gains +{:.1f} points of Hit@10 [+{:.1f}, +{:.1f}]".format(*taught["hit@10"]["gain"]) in readme
    assert f"keeps {taught['kept']:.1%} of its teacher's Hit@10" in readme
    squad = json.loads((results / "expansion-squad.json").read_text(encoding="utf-8"))
    gain = "{:+.1f} points of Hit@10 [{:+.1f}, {:+.1f}]".format(*squad["differences"]["dense + HyDE, averaged"]["10"])
    assert gain.replace("-", "−") in readme
