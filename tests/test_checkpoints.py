"""A training run that is killed, or runs into a full disk, is resumed and ends where it would have ended."""

import errno
import json
import os
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import helpers.base.checkpoints
import helpers.loss
import helpers.training
from helpers.base.checkpoints import read_state
from helpers.base.errors import DataError, SettingError, TrainingError
from helpers.base.files import ROOT
from helpers.batches import TrainingRows
from helpers.encoder import load_encoder, save_memory
from helpers.training import Task, TrainingSettings, train
from tests.tiny_models import save_bert

MODEL = ""  # a folder with a tiny one, of which a checkpoint is written in no time
SETTINGS = {
    "batch_size": 8,
    "epochs": 3,
    "max_steps": 12,
    "learning_rate": 1e-3,
    "eval_every": 4,
    "checkpoint_every": 2,
    "resume": True,
}


@pytest.fixture(scope="module", autouse=True)
def _tiny_model(tmp_path_factory, train_passages):
    global MODEL
    torch.manual_seed(0)
    MODEL = str(tmp_path_factory.mktemp("tiny"))
    save_bert(MODEL, train_passages.texts)


def fresh_encoder():
    return load_encoder(MODEL, max_length=32, device="cpu")


@pytest.fixture
def passages(train_passages):
    return train_passages


def make_rows(data, passages):
    return TrainingRows(data, passages, {qid: [] for qid in data.split_queries("train", limit=44)}, hard_negatives=0)


@pytest.fixture
def rows(sample, passages):
    return make_rows(sample, passages)


def score(encoder):
    """A dev score that moves with the weights, up and down."""
    return float(np.cos(1000 * encoder.encode(["a question", "another"], "query").sum()))


def run(rows, folder, evaluate=score, refresh=None, about=None, **changes):
    encoder = fresh_encoder()
    task = Task(rows, evaluate, refresh=refresh, about=about or {"data": "x"})
    history = train(encoder, task, TrainingSettings(**SETTINGS | changes), folder)
    last = sorted(folder.with_name(f"{folder.name}.checkpoints").glob("step-*"))[-1]
    return history, load_file(last / "model.safetensors"), load_file(folder / "model.safetensors")


def same(one, other):
    assert one[0] == other[0]
    for left, right in zip(one[1:], other[1:], strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


class Stop(Exception):
    pass


def stopping_at(step):
    """A dev score that breaks off the run at an evaluation."""
    seen = []

    def evaluate(encoder):
        seen.append(1)
        if len(seen) == step:
            raise Stop
        return score(encoder)

    return evaluate


def test_an_interrupted_run_ends_like_one_that_was_not(rows, tmp_path, capsys):
    whole = run(rows, tmp_path / "whole")
    assert [entry["step"] for entry in whole[0]] == list(range(13))
    with pytest.raises(Stop):
        run(rows, tmp_path / "model", evaluate=stopping_at(3))  # at step 8: the last checkpoint is of step 6
    same(run(rows, tmp_path / "model"), whole)
    assert "resumes after step 6" in capsys.readouterr().out


def test_two_runs_with_the_same_seed_are_the_same_and_another_seed_is_not(rows, tmp_path):
    one = run(rows, tmp_path / "one")
    same(run(rows, tmp_path / "two"), one)
    other = run(rows, tmp_path / "three", seed=1)
    assert any(not torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_workers_change_nothing(rows, tmp_path):
    same(
        run(rows, tmp_path / "two", max_steps=3, workers=1),
        run(rows, tmp_path / "one", max_steps=3),
    )


def test_what_does_not_change_the_result_may_change(rows, tmp_path):
    with pytest.raises(Stop):
        run(rows, tmp_path / "model", evaluate=stopping_at(3))
    run(rows, tmp_path / "model", workers=1, keep_checkpoints=1, checkpoint_every=1)
    assert [path.name for path in (tmp_path / "model.checkpoints").iterdir()] == ["step-00000012"]


def test_a_finished_run_is_not_repeated(rows, tmp_path, capsys):
    first = run(rows, tmp_path / "model")

    def never(encoder):
        raise AssertionError("evaluated")

    same(run(rows, tmp_path / "model", evaluate=never), first)
    assert "has ended already" in capsys.readouterr().out
    again = run(rows, tmp_path / "model", resume=False)
    same(again, first)


def test_the_end_of_another_run_is_not_overwritten(rows, tmp_path):
    run(rows, tmp_path / "model", max_steps=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(SettingError, match="max_steps was 2, is 4"):
        run(rows, tmp_path / "model", max_steps=4)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 2e-3}, "learning_rate was 0.001, is 0.002"),
        ({"seed": 3, "epochs": 4}, "epochs was 3, is 4; seed was 0, is 3"),
        ({"about": {"data": "y"}}, "data was 'x', is 'y'"),
        ({"masks": ("text",)}, "masks was"),
    ],
)
def test_another_run_is_refused_with_the_fields_that_differ(rows, tmp_path, changes, named):
    with pytest.raises(Stop):
        run(rows, tmp_path / "model", evaluate=stopping_at(3))
    before = sorted((tmp_path / "model.checkpoints").rglob("*"))
    with pytest.raises(SettingError, match="other settings") as caught:
        run(rows, tmp_path / "model", **changes)
    assert named in str(caught.value)
    assert sorted((tmp_path / "model.checkpoints").rglob("*")) == before


def test_other_rows_and_other_weights_are_refused(sample, rows, passages, tmp_path):
    with pytest.raises(Stop):
        run(rows, tmp_path / "model", evaluate=stopping_at(3))
    fewer = TrainingRows(sample, passages, {qid: [] for qid in sample.split_queries("train", limit=40)}, 0)
    with pytest.raises(SettingError, match="rows was"):
        run(fewer, tmp_path / "model")
    encoder = fresh_encoder()
    next(encoder.parameters()).data += 1e-3
    with pytest.raises(SettingError, match="first weights was"):
        task = Task(rows, score, about={"data": "x"})
        train(encoder, task, TrainingSettings(**SETTINGS), tmp_path / "model")


def test_the_pool_of_the_last_refresh_comes_back(sample, passages, tmp_path):
    """A run that mines anew resumes with the pool of its checkpoint, not with the one that it was started with."""

    questions = sample.split_queries("train", limit=44)

    def start():
        rows = TrainingRows(sample, passages, dict.fromkeys(questions, passages.ids[:1]), 1, given_negative=False)

        def refresh(encoder):
            place = int(1e6 * abs(encoder.encode(["where?"], "query").sum())) % len(passages)
            rows.set_pool(dict.fromkeys(questions, passages.ids[place : place + 1]))
            return {"place": place}

        return rows, refresh

    rows, refresh = start()
    whole = run(rows, tmp_path / "whole", refresh=refresh, refresh_every=3)
    assert [entry["step"] for entry in whole[0] if "refresh" in entry] == [3, 6, 9]
    rows, refresh = start()
    with pytest.raises(Stop):
        run(rows, tmp_path / "model", refresh=refresh, refresh_every=3, evaluate=stopping_at(3))
    rows, refresh = start()
    same(run(rows, tmp_path / "model", refresh=refresh, refresh_every=3), whole)


def test_how_often_to_refresh_counts_only_where_there_is_a_refresh(rows, tmp_path):
    for name, refresh in (("without", None), ("with", lambda encoder: {})):
        with pytest.raises(Stop):
            run(rows, tmp_path / name, refresh=refresh, refresh_every=3, evaluate=stopping_at(2))
    run(rows, tmp_path / "without", refresh_every=4)
    with pytest.raises(SettingError, match="refresh_every was 3, is 4"):
        run(rows, tmp_path / "with", refresh=refresh, refresh_every=4)


def test_a_refresh_that_loses_questions_is_refused(rows, tmp_path):
    def refresh(encoder):
        rows.set_pool(dict(list(rows.pool.items())[:9]))
        return {}

    with pytest.raises(SettingError, match="refresh left 9 training rows"):
        run(rows, tmp_path / "model", refresh=refresh, refresh_every=3)


def test_only_the_last_checkpoints_stay_and_nothing_is_pickled(rows, tmp_path):
    run(rows, tmp_path / "model", keep_checkpoints=3)
    folder = tmp_path / "model.checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000008", "step-00000010", "step-00000012"]
    assert {path.name for path in folder.rglob("*.*")} == {"model.safetensors", "optimizer.safetensors", "state.json"}


def test_lora_checkpoints_hold_the_adapters_alone(rows, tmp_path):
    def lora(folder, evaluate=score):
        encoder = save_memory(fresh_encoder(), lora_rank=2)
        train(encoder, Task(rows, evaluate), TrainingSettings(**SETTINGS), folder)
        return load_file(folder / "model.safetensors")

    whole = lora(tmp_path / "whole")
    with pytest.raises(Stop):
        lora(tmp_path / "model", stopping_at(3))
    found = lora(tmp_path / "model")
    assert all(torch.equal(whole[name], found[name]) for name in whole)
    adapters = load_file(tmp_path / "model.checkpoints" / "step-00000012" / "model.safetensors")
    assert adapters and all("lora" in name for name in adapters)


def test_nan_leaves_a_file_to_look_at_and_the_checkpoints(rows, tmp_path, monkeypatch):
    real, calls = helpers.loss.score_loss, []

    def broken(*arguments):
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) == 7 else 1)

    monkeypatch.setattr(helpers.loss, "score_loss", broken)
    with pytest.raises(TrainingError, match="step 7: loss nan"):
        run(rows, tmp_path / "model")
    report = json.loads((tmp_path / "model.failed.json").read_text())
    assert report["step"] == 7 and len(report["qids"]) == 8 and report["history"][-1]["step"] == 6
    monkeypatch.undo()
    same(run(rows, tmp_path / "model"), run(rows, tmp_path / "whole"))


KILLED = """
import os, random, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import helpers.base.files, helpers.training, safetensors.torch
from helpers.dataset import PassageIndex, load_data
import tests.test_checkpoints
from tests.test_checkpoints import make_rows, run

folder, deaths = Path(sys.argv[1]), 0
tests.test_checkpoints.MODEL = sys.argv[3]
data = load_data("data/sample")
passages = PassageIndex(data.training_corpus())
rows = make_rows(data, passages)
draw = random.Random(int(sys.argv[2]))


def arm(moment):
    "Die at one of these, counted together: a step, a rename, a file that is half written."
    left = [moment]

    def strike(half=lambda: None):
        left[0] -= 1
        if left[0] == 0:
            half()
            os.kill(os.getpid(), signal.SIGKILL)

    step, replace, save = helpers.training.training_step, os.replace, safetensors.torch.save_file

    def train_step(*arguments):
        strike()
        return step(*arguments)

    def rename(source, target):
        strike()
        replace(source, target)
        strike()

    def save_file(tensors, path, metadata=None):
        strike(lambda: Path(path).write_bytes(b"half"))
        save(tensors, path, metadata)

    helpers.training.training_step, os.replace, safetensors.torch.save_file = train_step, rename, save_file


while True:
    if not (child := os.fork()):
        if deaths < 10:
            arm(draw.randrange(1, 17))
        run(rows, folder)
        os._exit(0)
    draw.random()  # the child's draw is not ours
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    deaths += 1
print(deaths)
"""


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(rows, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model"), "5", MODEL]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == 10
    same(run(rows, tmp_path / "model"), run(rows, tmp_path / "whole"))
    rest = [path.name for path in tmp_path.rglob(".*")]
    assert rest == [], rest


def test_another_draw_of_negatives_is_refused(sample, passages, tmp_path):
    """The same pool, but other negatives would be sampled from it."""

    def start(**changes):
        questions = sample.split_queries("train", limit=44)
        pool = {qid: [pid for pid in passages.ids if pid not in sample.qrels["train"][qid]][:9] for qid in questions}
        return TrainingRows(sample, passages, pool, **{"hard_negatives": 2, "given_negative": False} | changes)

    with pytest.raises(Stop):
        run(start(), tmp_path / "model", evaluate=stopping_at(2))
    for changes, named in (({"hard_negatives": 3}, "hard_negatives was 2, is 3"), ({"seed": 1}, "rows was")):
        with pytest.raises(SettingError, match=named):
            run(start(**changes), tmp_path / "model")


def test_another_micro_batch_counts_from_there_on(rows, tmp_path):
    with pytest.raises(Stop):
        run(rows, tmp_path / "model", evaluate=stopping_at(3))
    history, *_ = run(rows, tmp_path / "model", micro_batch=4)
    assert [entry["micro_batch"] for entry in history[1:]] == [0] * 6 + [4] * 6


def test_training_leaves_the_callers_randomness_alone(rows, tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(rows, tmp_path / "model", max_steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_starting_over_clears_what_an_earlier_run_left(rows, tmp_path):
    (tmp_path / "model.failed.json").write_text("{}")
    half = tmp_path / ".model.checkpoints.123.tmp"  # of a process that was killed while it cleared up
    half.mkdir()
    run(rows, tmp_path / "model", max_steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.checkpoints", "model.log"]


def test_large_checkpoints_are_cut_into_files_and_read_back(rows, tmp_path, monkeypatch):
    whole = run(rows, tmp_path / "whole")
    save = helpers.base.checkpoints.save_torch_state_dict
    smaller = lambda *arguments, **more: save(*arguments, **more | {"max_shard_size": "50KB"})  # noqa: E731
    monkeypatch.setattr(helpers.base.checkpoints, "save_torch_state_dict", smaller)
    with pytest.raises(Stop):
        run(rows, tmp_path / "model", evaluate=stopping_at(3))
    for name in ("model", "optimizer"):
        assert len(list((tmp_path / "model.checkpoints" / "step-00000006").glob(f"{name}-*.safetensors"))) > 1
    monkeypatch.undo()
    same(run(rows, tmp_path / "model"), whole)


def test_a_damaged_checkpoint_is_named(rows, tmp_path):
    run(rows, tmp_path / "model", max_steps=2)
    last = tmp_path / "model.checkpoints" / "step-00000002"
    state = json.loads((last / "state.json").read_text())

    def cut(name, size):
        data = (last / name).read_bytes()
        (last / name).write_bytes(data[:size])
        return lambda: (last / name).write_bytes(data)

    def write(**changes):
        (last / "state.json").write_text(json.dumps(state | changes))
        return lambda: (last / "state.json").write_text(json.dumps(state))

    def take_away(name):
        data = (last / name).read_bytes()
        (last / name).unlink()
        return lambda: (last / name).write_bytes(data)

    damages = [
        lambda: cut("model.safetensors", 1000),
        lambda: cut("optimizer.safetensors", 0),
        lambda: cut("state.json", 40),
        lambda: take_away("model.safetensors"),
        lambda: take_away("state.json"),
        lambda: write(history=[]),
        lambda: write(more=1),
        lambda: write(schedule={}),
    ]
    for damage in damages:
        repair = damage()
        with pytest.raises(DataError, match=r"step-00000002: not a whole checkpoint .*delete this folder"):
            run(rows, tmp_path / "model", max_steps=2)
        repair()
    run(rows, tmp_path / "model", max_steps=2)


# a full disk


@pytest.mark.parametrize("fails", ["model", "checkpoint"])
def test_a_full_disk_leaves_the_best_model_and_the_last_checkpoint(rows, tmp_path, full_disk, fails):
    """At step 3 the disk is full: the best model is written there, or the checkpoint of step 4."""
    whole = run(rows, tmp_path / "whole", eval_every=3)
    seen = []

    def evaluate(encoder):
        seen.append(1)
        if len(seen) == 1:
            return score(encoder)
        disk.enter_context(full_disk(10**5))
        return 2.0 if fails == "model" else -2.0

    with ExitStack() as disk, pytest.raises(DataError, match="free some space"):
        run(rows, tmp_path / "model", evaluate, eval_every=3)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("model*") if path.is_dir())
    assert left == ["model", "model.checkpoints", "model.log"]
    assert not list(tmp_path.rglob(".*"))
    assert read_state(tmp_path / "model.checkpoints")[1].history[-1]["step"] == 2
    load_encoder(str(tmp_path / "model"), device="cpu")
    same(run(rows, tmp_path / "model", eval_every=3), whole)


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "close"])
def test_a_full_disk_for_tensorboard_is_a_data_error(rows, tmp_path, monkeypatch, method):
    def fail(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(helpers.training.SummaryWriter, method, fail)
    with pytest.raises(DataError, match=r"model.*No space left.*free some space"):
        run(rows, tmp_path / "model", max_steps=2)


def test_a_full_disk_for_the_report_of_a_failure_is_a_data_error(rows, tmp_path, monkeypatch, full_disk):
    def fails(*arguments):
        disk.enter_context(full_disk(100))
        raise TrainingError("loss nan")

    monkeypatch.setattr(helpers.training, "training_step", fails)
    with ExitStack() as disk, pytest.raises(DataError, match=r"model.failed.json.*free some space"):
        run(rows, tmp_path / "model", max_steps=2)
