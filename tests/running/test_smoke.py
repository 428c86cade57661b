"""The main job as a user starts it, with the parameters that take seconds, and papermill by hand."""

import json
import shutil
import subprocess
import sys

import papermill
import pytest

from helpers.base.files import resolve
from helpers.running.parameters import NOTEBOOKS
from helpers.running.run import main

RUN = "test-smoke"


@pytest.fixture(scope="module")
def smoke_run():
    shutil.rmtree(resolve(f"runs/{RUN}"), ignore_errors=True)
    assert main(["--params", "smoke", "--name", RUN]) == 0
    yield resolve(f"runs/{RUN}")
    shutil.rmtree(resolve(f"runs/{RUN}"))


def test_smoke_run_ends_in_a_report(smoke_run):
    report = json.loads((smoke_run / "report.json").read_text(encoding="utf-8"))
    names = [system["name"] for system in report["systems"]]
    assert names == ["BM25", "zero-shot", "fine-tuned, in-batch only", "fine-tuned, hard negatives"]
    assert report["questions"] == 20 and report["passages"] == 384
    assert report["settings"]["training"]["max_steps"] == 4
    for system in report["systems"]:
        hits = [system["hits"][k] for k in ("1", "10", "100")]
        assert all(0 <= hit["low"] <= hit["answer"] <= hit["high"] <= 1 for hit in hits)
        assert hits[0]["answer"] <= hits[1]["answer"] <= hits[2]["answer"]
        assert 0 < hits[2]["answer"]
    for name in ("report.md", "report.html", "hit_at_k.png", "pool.jsonl", "history.json", "data_summary.json"):
        assert (smoke_run / name).stat().st_size > 0
    assert len(list((smoke_run / "runs").glob("*.trec"))) == 4
    assert not list(smoke_run.rglob("*.tmp"))


def test_papermill_by_hand_in_jupyterlabs_folder(tmp_path):
    command = [sys.executable, "-m", "papermill", "-k", "python3", "03_train.ipynb", str(tmp_path / "out.ipynb")]
    command += ["-p", "run_dir", str(tmp_path / "run"), "-p", "max_steps", "2", "-p", "train_control", "False"]
    command += ["-p", "dev_questions", "10"]
    done = subprocess.run(command, cwd=NOTEBOOKS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "models" / "hard-negatives" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"modle_name": "bert-tiny"}, "unknown parameter 'modle_name'; did you mean 'model_name'"),
        ({"strategy": "psychic"}, "strategy='psychic': use one of random, given, bm25, dense, resa2, mixed"),
    ],
)
def test_a_wrong_parameter_fails_a_notebook_run_by_hand(parameters, message, tmp_path):
    parameters = {"run_dir": str(tmp_path / "run"), **parameters}
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            NOTEBOOKS / "02_hard_negatives.ipynb",
            tmp_path / "out.ipynb",
            parameters,
            kernel_name="python3",
            progress_bar=False,
        )
    assert caught.value.ename == "SettingError" and message in caught.value.evalue


def test_evaluating_before_training_says_what_to_run(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            NOTEBOOKS / "04_evaluate.ipynb",
            tmp_path / "out.ipynb",
            {"run_dir": str(tmp_path / "run"), "test_questions": 5},
            kernel_name="python3",
            progress_bar=False,
        )
    assert "run notebook 03 with the same run_dir first" in caught.value.evalue


@pytest.mark.parametrize("name", ["smoke", "cpu", "minilm", "cuda"])
def test_parameter_files_hold_known_names_and_types(name):
    from helpers.running.parameters import load_parameters

    assert load_parameters(name)["data"]
