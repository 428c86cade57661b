"""Notebook 03's trainings: what they are made of, and several processes, started as the notebook starts them."""

import json
import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from helpers.base.errors import DataError, SettingError, TrainingError
from helpers.base.files import ROOT
from helpers.evaluation import hit_at_k, hit_ranks
from helpers.retrieval import dense_run
from helpers.running.launch import run_job, train_model, training_task, write_job
from helpers.running.parameters import NOTEBOOKS
from helpers.running.start import course_run, training_settings

PORT = 29_617  # for two launchers on this machine


@pytest.fixture
def parameters(tmp_path):
    """Notebook 03's own defaults, for a few questions in a run folder."""
    cells = json.loads((NOTEBOOKS / "03_train.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ())]
    values: dict = {}
    exec(source, values)
    values = {name: value for name, value in values.items() if not name.startswith("__")}
    few = {"max_length": 48, "dev_questions": 10, "train_questions": 40, "max_steps": 3, "learning_rate": 1e-3}
    return values | {"run_dir": str(tmp_path), "device": "cpu", **few}


def test_the_control_sees_neither_hard_nor_given_negatives(parameters):
    run = course_run(parameters)
    control, hard = (training_task(run, name).rows for name in ("in-batch", "hard-negatives"))
    assert all(row.given is None and row.pool == () for row in map(control.__getitem__, range(len(control))))
    assert all(row.given is not None and len(row.pool) == 2 for row in map(hard.__getitem__, range(len(hard))))
    assert {row.qid for row in control.rows} == {row.qid for row in hard.rows} and len(control) == 40
    with pytest.raises(SettingError, match="use 'in-batch' or 'hard-negatives'"):
        training_task(run, "hard_negatives")


def test_dev_is_scored_on_the_drawn_questions_over_the_evaluation_corpus(parameters, bert_tiny):
    scores = {}
    for corpus in ("all", "held-out"):
        run = course_run(parameters | {"eval_corpus": corpus, "max_length": 0})
        dev = run.questions("dev")
        assert list(dev) == run.data.split_queries("dev", 10, seed=0)
        task = training_task(run, "in-batch")
        ranks, _ = hit_ranks(dense_run("dev", bert_tiny, dev, run.passages), run.data, run.passages, "dev")
        assert task.evaluate(bert_tiny)["dev"] == hit_at_k(ranks, 10)
        assert task.about["dev_set"] == [corpus, 10, len(run.passages), len(run.passages)]
        scores[corpus] = (len(run.passages), hit_at_k(ranks, 1))
    assert scores["all"][0] == 384 and scores["held-out"][0] == 144
    assert scores["all"][1] <= scores["held-out"][1]


def test_what_the_model_was_made_from_is_told(parameters):
    run = course_run(parameters | {"strict_dpr": True})
    about = training_task(run, "hard-negatives").about
    assert about["data"] == run.data.fingerprint and about["pool"]["strategy"] == "bm25"
    assert about["answer_match"] == {"match_title": False, "strict_dpr": True}
    assert run.training.strict_dpr and run.passages.strict_dpr


def test_settings_are_the_parameters_of_the_same_name(parameters):
    settings = training_settings(parameters | {"resume": True, "patience": 2, "temperature": 0.1})
    assert (settings.resume, settings.patience, settings.temperature, settings.max_steps) == (True, 2, 0.1, 3)


def test_matryoshka_is_trained_where_it_is_asked_for(parameters):
    plain = train_model(course_run(parameters), "hard-negatives")
    run = course_run(parameters | {"matryoshka": [16, 64]})
    history = train_model(run, "hard-negatives")
    assert history[1]["loss"] > 2 * plain[1]["loss"]  # three losses instead of one
    saved = json.loads((run.models / "hard-negatives" / "retriever.json").read_text(encoding="utf-8"))
    assert saved["matryoshka"] == [16, 64] and saved["kind"] == "single-vector"
    small = course_run(parameters | {"dimensions": 16}).encoder()
    assert small.encode(["a"], "query").shape == (1, 16)


def test_a_job_file_is_checked(tmp_path):
    for text in ("{", "[]", '{"parameters": {}}', '{"name": 3, "parameters": {}}'):
        (tmp_path / "job.json").write_text(text)
        with pytest.raises((SettingError, DataError), match=r"job\.json"):
            run_job(tmp_path / "job.json")


def train_on(parameters, processes, batch_size):
    run = course_run(parameters | {"processes": processes, "batch_size": batch_size})
    history = train_model(run, "hard-negatives")
    last = run.models / "hard-negatives.checkpoints" / "step-00000003" / "model.safetensors"
    return history, load_file(last)


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_double_batch(parameters, tmp_path):
    history, weights = train_on(parameters, 2, 4)
    expected_history, expected = train_on(parameters, 1, 8)
    assert [entry["step"] for entry in history] == [0, 1, 2, 3]
    for one, other in zip(history[1:], expected_history[1:], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    assert all((weights[name] - value).abs().max() < 1e-4 for name, value in expected.items())
    assert (tmp_path / "models" / "hard-negatives" / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_machines_of_one_process_each_train_like_one_with_the_double_batch(parameters, tmp_path):
    _, expected = train_on(parameters | {"run_dir": str(tmp_path / "one")}, 1, 8)
    job = write_job(course_run(parameters | {"batch_size": 4}), "hard-negatives")
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(PORT)]
    command = [sys.executable, "-m", "torch.distributed.run", *where]
    rest = ["-m", "helpers.running.launch", str(job)]
    machines = [
        subprocess.Popen([*command, "--node-rank", rank, *rest], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    weights = load_file(tmp_path / "models" / "hard-negatives.checkpoints" / "step-00000003" / "model.safetensors")
    assert all((weights[name] - value).abs().max() < 1e-4 for name, value in expected.items())
    assert not list(tmp_path.glob(".shared-*"))


@pytest.mark.parametrize(("name", "machines", "processes"), [("one_node", 1, 8), ("two_nodes", 2, 16)])
def test_accelerate_reads_its_config_files(name, machines, processes):
    config = load_config_from_file(str(ROOT / "helpers" / "running" / f"{name}.yaml"))
    assert (config.num_machines, config.num_processes, config.machine_rank) == (machines, processes, 0)
    assert config.distributed_type == "MULTI_GPU" and config.mixed_precision == "no" and not config.use_cpu


NOT_SHARED = """
import sys
from pathlib import Path
from accelerate import PartialState
from helpers.base.errors import SettingError
from helpers.base.processes import check_shared

state = PartialState(cpu=True)
check_shared(Path(sys.argv[1]), state)
try:
    check_shared(Path(sys.argv[1]) / str(state.process_index), state)
except SettingError as error:
    print(error, flush=True)
state.destroy_process_group()
"""


def test_a_folder_that_is_not_shared_is_an_error_on_every_process(tmp_path):
    folders = [tmp_path / "run", tmp_path / "run" / "0", tmp_path / "run" / "1"]
    for folder in folders:
        folder.mkdir()
    (tmp_path / "both.py").write_text(NOT_SHARED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, tmp_path / "both.py", folders[0]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("is another folder for 1 of 2 processes") == 2
    assert sorted(tmp_path.glob("run/**/*")) == folders[1:]  # no mark is left


@pytest.mark.slow
def test_a_failing_process_is_reported(parameters, tmp_path):
    with pytest.raises(TrainingError, match="2 processes failed"):
        train_on(parameters | {"model_name": str(tmp_path / "no model")}, 2, 4)
    assert not (tmp_path / "models").exists()
