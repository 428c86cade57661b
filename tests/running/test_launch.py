"""Training on several processes, started as notebook 03 starts it."""

import json

import pytest
from safetensors.torch import load_file

from helpers.base.errors import TrainingError
from helpers.dataset import PassageIndex
from helpers.negatives import mine_pool
from helpers.running.launch import launch
from helpers.running.parameters import NOTEBOOKS
from helpers.strategies import make_strategy
from helpers.training import TrainingSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def parameters(sample, tmp_path):
    """Notebook 03's own defaults, in a run folder with a pool."""
    cells = json.loads((NOTEBOOKS / "03_train.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ())]
    values: dict = {}
    exec(source, values)
    passages = PassageIndex(sample.training_corpus())
    rank = make_strategy("bm25", sample, passages)
    mine_pool(sample, passages, rank, sample.split_queries("train", 40)).save(tmp_path / "pool.jsonl")
    values = {name: value for name, value in values.items() if not name.startswith("__")}
    return values | {"run_dir": str(tmp_path), "device": "cpu", "max_length": 48, "dev_questions": 10}


def train_on(parameters, processes, batch_size, folder):
    settings = TrainingSettings(batch_size=batch_size, max_steps=3, learning_rate=1e-3)
    history = launch(parameters | {"processes": processes}, "hard-negatives", settings)
    last = folder / "models" / "hard-negatives.checkpoints" / "step-00000003" / "model.safetensors"
    return history, load_file(last)


def test_two_processes_train_like_one_with_the_double_batch(parameters, tmp_path):
    history, weights = train_on(parameters, 2, 4, tmp_path)
    expected_history, expected = train_on(parameters, 1, 8, tmp_path)
    assert [entry["step"] for entry in history] == [0, 1, 2, 3]
    for one, other in zip(history[1:], expected_history[1:], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    assert all((weights[name] - value).abs().max() < 1e-4 for name, value in expected.items())
    assert (tmp_path / "models" / "hard-negatives" / "model.safetensors").is_file()


def test_a_failing_process_is_reported(parameters, tmp_path):
    (tmp_path / "pool.jsonl").unlink()
    with pytest.raises(TrainingError, match="2 processes failed"):
        train_on(parameters, 2, 4, tmp_path)
    assert not (tmp_path / "models").exists()
