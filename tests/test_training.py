"""The training loop: it learns, repeats itself, keeps the best model and stops on nonsense."""

import json
import math
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import helpers.batches
import helpers.training
from helpers.base.errors import DataError, SettingError, TrainingError
from helpers.batches import TrainingRows, make_batch
from helpers.encoder import load_encoder, save_memory
from helpers.gradients import Engine, make_engine, training_step
from helpers.loss import infonce
from helpers.training import Task, TrainingSettings, train
from tests.tiny_models import save_bert


@pytest.fixture
def passages(train_passages):
    return train_passages


@pytest.fixture
def rows(sample, passages):
    questions = sample.split_queries("train", limit=40)
    return TrainingRows(sample, passages, {qid: [] for qid in questions}, hard_negatives=0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, train_passages):
    """A function that loads a tiny model, of which every save and every step takes no time."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, train_passages.texts)
    return lambda: load_encoder(str(folder), max_length=32, device="cpu")


@pytest.fixture
def encoder(tiny):
    return tiny()


def weights(encoder):
    return {name: value.clone() for name, value in encoder.state_dict().items()}


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def flat(encoder):
    return 0.5


class Scripted:
    """A dev score that follows a script, and remembers the weights it was asked about."""

    def __init__(self, *scores):
        self.scores, self.seen = list(scores), []

    def __call__(self, encoder):
        self.seen.append(weights(encoder))
        return self.scores[len(self.seen) - 1]


def test_the_loss_falls_on_a_few_questions(own_bert, rows, tmp_path):
    settings = TrainingSettings(batch_size=8, max_steps=40, learning_rate=1e-3, epochs=8)
    history = train(own_bert, Task(rows, flat), settings, tmp_path / "model")
    losses = [entry["loss"] for entry in history[1:]]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 3


def test_history_has_one_entry_per_step(encoder, rows, tmp_path):
    settings = TrainingSettings(batch_size=16, epochs=3, eval_every=2)
    history = train(encoder, Task(rows, Scripted(0.1, 0.2, 0.3, 0.4)), settings, tmp_path / "model")
    assert history[0] == {"step": 0, "epoch": 0, "dev": 0.1}
    assert [entry["step"] for entry in history] == list(range(7))  # 40 rows: two whole batches of 16 per epoch
    assert [entry["epoch"] for entry in history[1:]] == [0, 0, 1, 1, 2, 2]
    assert {entry["step"]: entry["dev"] for entry in history if "dev" in entry} == {0: 0.1, 2: 0.2, 4: 0.3, 6: 0.4}
    measures = {"loss", "learning_rate", "gradient_norm", "micro_batch", "chance", "accuracy", "positive", "hardest"}
    for entry in history[1:]:
        assert entry.keys() - {"dev"} == {"step", "epoch"} | measures
        assert all(math.isfinite(value) for value in entry.values())
        assert entry["gradient_norm"] > 0


def test_several_scores_are_all_kept_and_dev_decides(encoder, rows, tmp_path):
    scores = iter([{"dev": 0.1, "other": 0.9}, {"dev": np.float32(0.25), "other": np.float64(0.3)}])
    settings = TrainingSettings(batch_size=8, max_steps=1)
    history = train(encoder, Task(rows, lambda _: next(scores)), settings, tmp_path / "model")
    assert [entry["other"] for entry in history] == [0.9, 0.3]
    saved = json.loads((tmp_path / "model" / "retriever.json").read_text())
    assert saved["scores"] == {"dev": 0.25, "other": 0.3} and saved["scores_before"] == {"dev": 0.1, "other": 0.9}


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({"epochs": 2}, [0, 2, 4]),  # at the end of every epoch
        ({"max_steps": 3}, [0, 2, 3]),  # and at the very end
        ({"max_steps": 3, "eval_every": 1}, [0, 1, 2, 3]),
        ({"epochs": 1, "max_steps": 9}, [0, 2]),
    ],
)
def test_when_dev_is_evaluated(encoder, rows, tmp_path, more, steps):
    history = train(encoder, Task(rows, flat), TrainingSettings(batch_size=16, **more), tmp_path / "model")
    assert [entry["step"] for entry in history if "dev" in entry] == steps
    assert history[-1]["step"] == steps[-1]


def shorter(sample, passages, **more):
    """Rows with one hard negative each, so that the order and the draw of an epoch show in the batches."""
    questions = sample.split_queries("train", limit=12)
    own = {qid: sample.qrels["train"][qid] for qid in questions}
    pool = {qid: [pid for pid in passages.ids if pid not in own[qid]][:40] for qid in questions}
    return TrainingRows(sample, passages, pool, 1, given_negative=False, **more)


@pytest.fixture
def batches_of(encoder, sample, passages, tmp_path, monkeypatch):
    """Return a function that trains for two epochs and returns the rows of every batch."""

    def run(name, seed=0, rows_seed=0):
        seen = []

        def spy(rows, *more):
            seen.append(list(rows))
            return make_batch(rows, *more)

        monkeypatch.setattr(helpers.batches, "make_batch", spy)
        rows = shorter(sample, passages, seed=rows_seed)
        settings = TrainingSettings(batch_size=4, epochs=2, seed=seed, learning_rate=1e-6)
        train(encoder, Task(rows, flat), settings, tmp_path / name)
        return seen

    return run


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(batches_of):
    seen = batches_of("one")
    assert len(seen) == 6
    first, second = ([row.qid for batch in epoch for row in batch] for epoch in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) and len(set(first)) == 12
    assert first != second


def test_hard_negatives_are_sampled_anew_in_every_epoch(batches_of):
    seen = batches_of("one")
    first, second = ({row.qid: row.pool for batch in epoch for row in batch} for epoch in (seen[:3], seen[3:]))
    assert sum(first[qid] == second[qid] for qid in first) < 4  # one of 40 is drawn


def test_seeds_decide_order_and_draw_each_on_its_own(batches_of):
    def orders(seen):
        return [[row.qid for row in batch] for batch in seen]

    def draws(seen):
        return {(row.qid, number // 3): row.pool for number, batch in enumerate(seen) for row in batch}

    one, again = batches_of("one", 1, 1), batches_of("again", 1, 1)
    order, draw = batches_of("order", 2, 1), batches_of("draw", 1, 2)
    assert one == again
    assert orders(one) == orders(draw) != orders(order)
    assert draws(one) == draws(order) != draws(draw)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tiny, rows, tmp_path):
    def trained(seed, name):
        encoder = tiny()
        settings = TrainingSettings(batch_size=8, max_steps=4, learning_rate=1e-3, seed=seed)
        history = train(encoder, Task(rows, Scripted(0, 1)), settings, tmp_path / name)
        return weights(encoder), [entry.get("loss") for entry in history]

    one, two, other = trained(1, "one"), trained(1, "two"), trained(2, "other")
    assert equal(one[0], two[0])
    assert one[1] == two[1]
    assert not equal(one[0], other[0])


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((0.5, 0.4, 0.9, 0.6), 2),
        ((0.5, 0.6, 0.7, 0.8), 3),
        ((0.5, 0.4, 0.3, 0.2), 0),  # training only made it worse
        ((0.5, 0.7, 0.7, 0.7), 1),  # the first of equals
    ],
)
def test_the_best_model_is_saved_and_returned(encoder, rows, tmp_path, scores, best):
    settings = TrainingSettings(batch_size=8, max_steps=3, learning_rate=1e-3, eval_every=1, warmup_ratio=0)
    evaluate, before = Scripted(*scores), weights(encoder)
    train(encoder, Task(rows, evaluate), settings, tmp_path / "model")
    saved = load_encoder(str(tmp_path / "model"), device="cpu")
    assert equal(weights(encoder), evaluate.seen[best])
    assert equal(weights(saved), evaluate.seen[best])
    assert equal(evaluate.seen[0], before)
    assert all(not equal(one, other) for one, other in zip(evaluate.seen, evaluate.seen[1:], strict=False))
    assert not encoder.training
    assert saved.profile == encoder.profile


def test_profile_settings_and_metadata_are_saved_with_the_model(encoder, rows, tmp_path):
    settings = TrainingSettings(batch_size=8, max_steps=1, learning_rate=3e-4)
    train(encoder, Task(rows, Scripted(0.1, 0.2), about={"note": "mine"}), settings, tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "retriever.json").read_text())
    assert saved["settings"]["learning_rate"] == 3e-4
    assert (saved["note"], saved["step"], saved["scores"]) == ("mine", 1, {"dev": 0.2})
    assert saved["profile"] == asdict(encoder.profile)


def test_a_misspelt_name_is_an_error(encoder, rows, tmp_path):
    with pytest.raises(TypeError, match="resum"):
        train(encoder, Task(rows, flat), TrainingSettings(batch_size=8), tmp_path / "model", resum=True)
    with pytest.raises(TypeError, match="resum"):
        TrainingSettings(resum=True)
    with pytest.raises(TypeError, match="refreshed"):
        Task(rows, flat, refreshed=flat)


@pytest.mark.parametrize(("ratio", "warm"), [(0.0, 0), (0.25, 3), (0.3, 3), (0.5, 5)])
def test_the_learning_rate_rises_and_falls_in_straight_lines(encoder, rows, tmp_path, monkeypatch, ratio, warm):
    used, step = [], torch.optim.AdamW.step

    def spy(optimizer, *arguments, **more):
        used.append([group["lr"] for group in optimizer.param_groups])
        return step(optimizer, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    settings = TrainingSettings(batch_size=4, max_steps=10, learning_rate=1e-4, warmup_ratio=ratio)
    history = train(encoder, Task(rows, flat), settings, tmp_path / "model")
    rates = [entry["learning_rate"] for entry in history[1:]]
    expected = [done / warm if done < warm else (10 - done) / (10 - warm) for done in range(10)]
    assert rates == pytest.approx([1e-4 * share for share in expected])
    assert used == [[rate, rate] for rate in rates]  # of weights with and without decay


def one_step(encoder, rows, clip_norm):
    """Take one step of plain gradient descent with rate 1; return the norm reported and how far it went."""
    before = [parameter.detach().clone() for parameter in encoder.parameters()]
    batch = make_batch([rows[number] for number in range(8)], rows, encoder)
    accelerator = Accelerator(cpu=True)
    encoder.model.config.hidden_dropout_prob = 0
    optimizer = accelerator.prepare(torch.optim.SGD(encoder.parameters(), lr=1.0))
    engine = Engine(encoder, infonce(), optimizer, accelerator, TrainingSettings(clip_norm=clip_norm))
    norm = training_step(engine, [batch])["gradient_norm"]
    moved = [(old - new).norm() for old, new in zip(before, encoder.parameters(), strict=True)]
    return norm, torch.stack(moved).norm().item()


def test_a_large_gradient_is_clipped_and_a_small_one_is_not(tiny, rows):
    norm, moved = one_step(tiny(), rows, clip_norm=0.01)
    assert norm > 0.1  # as it was before clipping
    assert moved == pytest.approx(0.01, rel=1e-3)
    norm, moved = one_step(tiny(), rows, clip_norm=1e6)
    assert moved == pytest.approx(norm, rel=1e-3)


def test_no_gradient_is_left_for_the_next_step(encoder, rows):
    one_step(encoder, rows, clip_norm=1.0)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in encoder.parameters())


def groups(encoder):
    return make_engine(encoder, infonce(), TrainingSettings(weight_decay=0.1)).optimizer.param_groups


def test_biases_and_norms_are_not_decayed(encoder):
    decayed, free = groups(encoder)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    plain = {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}
    assert {names[id(parameter)] for parameter in free["params"]} == plain
    assert {names[id(parameter)] for parameter in decayed["params"]} == set(names.values()) - plain


def test_frozen_weights_are_left_alone(encoder):
    encoder.model.embeddings.requires_grad_(False)
    frozen = {id(parameter) for parameter in encoder.model.embeddings.parameters()}
    assert not frozen & {id(parameter) for group in groups(encoder) for parameter in group["params"]}


def test_lora_training_twice_trains_adapters_only(encoder, rows, tmp_path):
    save_memory(encoder, lora_rank=2)
    settings = TrainingSettings(batch_size=8, max_steps=2, learning_rate=1e-2, warmup_ratio=0)
    before = encoder.encode(["a question"], "query")
    for name in ("one", "two"):
        trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        assert trained and all("lora" in name for name in trained)
        train(encoder, Task(rows, Scripted(0.1, 0.2)), settings, tmp_path / name)
        after = encoder.encode(["a question"], "query")
        assert np.abs(after - before).max() > 1e-3
        saved = load_encoder(str(tmp_path / name), device="cpu").encode(["a question"], "query")
        np.testing.assert_allclose(after, saved, atol=1e-5)
        before = after
    moments = load_file(tmp_path / "two.checkpoints" / "step-00000002" / "optimizer.safetensors")
    assert {name.split(".")[0] for name in moments} == {str(number) for number in range(len(trained))}


def poisoned(encoder):
    with torch.no_grad():
        encoder.model.encoder.layer[1].output.dense.weight[3, 3] = math.nan


def test_a_nan_loss_stops_and_names_the_step_and_its_questions(encoder, rows, tmp_path):
    settings = TrainingSettings(batch_size=4, max_steps=5)
    poisoned(encoder)
    with pytest.raises(TrainingError, match=r"step 1: loss nan.*lower learning_rate") as caught:
        train(encoder, Task(rows, flat), settings, tmp_path / "model")
    assert sum(repr(row.qid) in str(caught.value) for row in rows.rows) == 4


def test_a_loss_that_becomes_nan_leaves_the_best_model(encoder, rows, tmp_path):
    seen = []

    def evaluate(encoder):
        if seen:
            poisoned(encoder)  # after the second evaluation
        seen.append(weights(encoder))
        return -len(seen)

    settings = TrainingSettings(batch_size=4, max_steps=5, eval_every=1)
    with pytest.raises(TrainingError, match="best model so far is kept"):
        train(encoder, Task(rows, evaluate), settings, tmp_path / "model")
    assert equal(weights(load_encoder(str(tmp_path / "model"), device="cpu")), seen[0])


@pytest.mark.parametrize(
    ("score", "name"), [(math.nan, "dev"), (math.inf, "dev"), ({"dev": 0.5, "Hit@1": math.nan}, "Hit@1")]
)
def test_a_score_that_is_no_number_stops_at_once(encoder, rows, tmp_path, score, name):
    with pytest.raises(TrainingError, match=f"step 0: the {name} score is (nan|inf)"):
        train(encoder, Task(rows, lambda _: score), TrainingSettings(batch_size=4), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("batch_size", -4),
        ("batch_size", 2.5),
        ("batch_size", "8"),
        ("learning_rate", 0.0),
        ("learning_rate", None),
        ("clip_norm", -1.0),
        ("temperature", 0.0),
        ("max_steps", -1),
        ("weight_decay", -0.1),
        ("warmup_ratio", -0.1),
        ("warmup_ratio", 1.5),
        ("eval_every", -1),
        ("refresh_every", -1),
        ("precision", "int8"),
        ("masks", ("answer",)),
        ("masks", "answers"),
        ("masks", None),
        pytest.param("precision", "fp16", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")),
    ],
)
def test_bad_settings_are_errors_that_name_them(name, value):
    with pytest.raises(SettingError, match=name):
        TrainingSettings(**{name: value})


NUMBERS = [field.name for field in fields(TrainingSettings) if type(field.default) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_setting_is_a_finite_number(name):
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(SettingError, match=f"{name}={value}"):
            TrainingSettings(**{name: value})


def test_a_whole_number_may_stand_for_a_fraction():
    assert TrainingSettings(temperature=1, seed=-3, masks=[]).temperature == 1


def test_fewer_rows_than_a_batch_is_an_error(encoder, rows, tmp_path):
    with pytest.raises(SettingError, match=r"batch_size=64.*40 training rows"):
        train(encoder, Task(rows, flat), TrainingSettings(batch_size=64), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("what", ["file", "loop", "dangling"])
def test_something_else_in_place_of_a_folder_is_named_before_any_compute(encoder, rows, tmp_path, what):
    def never(encoder):
        raise AssertionError("evaluated")

    for number, name in enumerate(("runs", "runs/model", "runs/model.checkpoints", "runs/model.log")):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        if what == "file":
            path.write_text("precious")
        else:
            path.symlink_to(path if what == "loop" else tmp_path / "nowhere")
        for resume in (False, True):
            settings = TrainingSettings(batch_size=8, max_steps=1, resume=resume)
            with pytest.raises(DataError, match=str(path)):
                train(encoder, Task(rows, never), settings, tmp_path / str(number) / "runs" / "model")
        assert path.is_symlink() or path.read_text() == "precious"


def test_bf16_training_gives_back_a_plain_encoder(encoder, rows, passages, tmp_path):
    settings = TrainingSettings(batch_size=4, max_steps=2, precision="bf16", learning_rate=1e-3, warmup_ratio=0)
    history = train(encoder, Task(rows, Scripted(0.1, 0.2)), settings, tmp_path / "model")
    assert all(math.isfinite(entry["loss"]) for entry in history[1:])
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    saved = load_encoder(str(tmp_path / "model"), device="cpu")
    texts = passages.texts[:5]
    np.testing.assert_allclose(encoder.encode(texts, "passage"), saved.encode(texts, "passage"), atol=1e-6)


def test_auto_is_decided_and_saved_and_holds_while_it_trains(encoder, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.base.devices.bf16_gain", lambda: 2.0)
    seen = []
    task = Task(rows, lambda encoder: seen.append((encoder.precision, encoder.multiple)) or float(len(seen)))
    train(encoder, task, TrainingSettings(batch_size=4, max_steps=1, precision="auto"), tmp_path / "model")
    assert seen == [("bf16", 16)] * 2 and encoder.precision == "fp32"
    settings = json.loads((tmp_path / "model" / "retriever.json").read_text(encoding="utf-8"))["settings"]
    assert settings["precision"] == "bf16"
    monkeypatch.setattr("helpers.base.devices.bf16_gain", lambda: 0.5)  # as on another machine
    resumed = TrainingSettings(batch_size=4, max_steps=1, precision="auto", resume=True)
    with pytest.raises(SettingError, match="precision"):
        train(encoder, task, resumed, tmp_path / "model")


def test_the_model_card_says_over_what_dev_was_searched(encoder, tmp_path):
    scores = {"step": 1, "scores": {"dev": 0.5}, "scores_before": {"dev": 0.25}}
    for searched, part in ((384, "all 384 passages"), (100, "a sample of 100 of the 384 passages")):
        encoder.save(tmp_path / "model", {**scores, "dev_set": ["all", 10, searched, 384]})
        assert f"10 questions over {part} of eval_corpus='all'" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("masks", [(), ("positives", "text", "answers")])
@pytest.mark.parametrize("in_batch", [True, False])
def test_settings_reach_the_batches(encoder, sample, passages, tmp_path, monkeypatch, masks, in_batch):
    rows = TrainingRows(sample, passages, hard_negatives=0, given_negative=False)
    seen = []

    def spy(rows, source, encoder, in_batch, masks):
        seen.append((in_batch, masks))
        return make_batch(rows, source, encoder, in_batch, masks)

    monkeypatch.setattr(helpers.batches, "make_batch", spy)
    settings = TrainingSettings(batch_size=8, max_steps=2, masks=masks, in_batch=in_batch)
    history = train(encoder, Task(rows, flat), settings, tmp_path / "model")
    assert seen == [(in_batch, masks)] * 2
    assert (history[1]["loss"] > 0) is in_batch  # with no negative at all there is nothing to learn
    assert (history[1]["hardest"] is None) is not in_batch  # and nothing to measure
    state = json.loads((tmp_path / "model.checkpoints" / "step-00000002" / "state.json").read_text())
    assert (state["history"][1]["hardest"] is None) is not in_batch


def test_the_temperature_reaches_the_default_loss(encoder, rows, tmp_path):
    def first_loss(temperature, loss=None):
        settings = TrainingSettings(batch_size=8, max_steps=1, temperature=temperature)
        return train(encoder, Task(rows, flat, loss), settings, tmp_path / "model")[1]["loss"]

    expected = first_loss(0.05, infonce(0.2))  # the encoder stays what it is: dev does not get better
    assert first_loss(0.2) == expected != first_loss(0.05)


def test_a_refreshed_pool_reaches_the_workers(encoder, sample, passages, tmp_path, monkeypatch):
    questions = sample.split_queries("train", limit=12)
    gold = {pid for qid in questions for pid in sample.qrels["train"][qid]}
    spare = [passages.row[pid] for pid in passages.ids if pid not in gold]
    pools = [{qid: [passages.ids[row]] for qid in questions} for row in spare[:3]]
    rows = TrainingRows(sample, passages, pools[0], 1, given_negative=False)
    seen = []

    def spy(engine, batches, *arguments):
        seen.append([row in batches[0].columns for row in spare[:3]])
        return training_step(engine, batches, *arguments)

    def refresh(encoder):
        rows.set_pool(pools[(len(seen) + 1) // 2])
        return {}

    monkeypatch.setattr(helpers.training, "training_step", spy)
    settings = TrainingSettings(batch_size=2, max_steps=5, workers=2, refresh_every=2)
    history = train(encoder, Task(rows, flat, refresh=refresh), settings, tmp_path / "model")
    assert [entry["step"] for entry in history if "refresh" in entry] == [2, 4]
    first, second, third = ([number == one for number in range(3)] for one in range(3))
    assert seen == [first, first, second, second, third]


def test_patience_stops_after_evaluations_without_a_better_score(encoder, rows, tmp_path):
    scores = Scripted(0.1, 0.3, 0.2, 0.3, 0.1, 0.9)
    settings = TrainingSettings(batch_size=4, max_steps=10, eval_every=2, patience=3)
    history = train(encoder, Task(rows, scores), settings, tmp_path / "model")
    assert [entry["dev"] for entry in history if "dev" in entry] == [
        0.1,
        0.3,
        0.2,
        0.3,
        0.1,
    ]  # an equal one is no better
    assert history[-1]["step"] == 8
    assert equal(weights(encoder), scores.seen[1])


def test_without_patience_nothing_stops_early(encoder, rows, tmp_path):
    settings = TrainingSettings(batch_size=4, max_steps=6, eval_every=2)
    assert train(encoder, Task(rows, Scripted(0.4, 0.3, 0.2, 0.1)), settings, tmp_path / "model")[-1]["step"] == 6


def test_tensorboard_files_hold_the_history(encoder, rows, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = TrainingSettings(batch_size=4, max_steps=3, eval_every=3)
    history = train(encoder, Task(rows, Scripted(0.1, 0.2)), settings, tmp_path / "model")
    events = EventAccumulator(str(tmp_path / "model.log")).Reload()
    for name in ("loss", "learning_rate", "gradient_norm", "accuracy", "positive", "hardest"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(entry["step"], pytest.approx(entry[name])) for entry in history[1:]]
    assert [event.step for event in events.Scalars("dev")] == [3]


def test_a_collapsed_encoder_is_called_out_while_it_trains(own_bert, rows, tmp_path, capsys):
    """A learning rate that is far too high gives every text the same vector."""
    settings = TrainingSettings(batch_size=4, max_steps=40, epochs=9, eval_every=20, learning_rate=0.3, warmup_ratio=0)
    train(own_bert, Task(rows, Scripted(0.1, 0.2, 0.3)), settings, tmp_path / "model")
    said = [line for line in capsys.readouterr().out.splitlines() if "all texts get one vector" in line]
    assert len(said) == 2 and "step 20" in said[0] and "step 40" in said[1]
