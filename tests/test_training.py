"""The training loop: it learns, repeats itself, keeps the best checkpoint and stops on nonsense."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import helpers.training
from helpers.base.errors import SettingError, TrainingError
from helpers.batches import TrainingRows, make_batch
from helpers.dataset import PassageIndex
from helpers.encoder import load_encoder
from helpers.gradients import training_step
from helpers.loss import infonce
from helpers.reporting.diagnosis import diagnose
from helpers.training import TrainingSettings, _parameter_groups, train


@pytest.fixture(scope="module")
def passages(sample):
    return PassageIndex(sample.training_corpus())


@pytest.fixture
def rows(sample, passages):
    questions = sample.split_queries("train", limit=40)
    return TrainingRows(sample, passages, {qid: [] for qid in questions}, hard_negatives=0)


@pytest.fixture
def encoder():
    return load_encoder("bert-tiny", max_length=48, device="cpu")


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


def test_the_loss_falls_on_a_few_questions(encoder, rows, passages, tmp_path):
    settings = TrainingSettings(batch_size=8, max_steps=40, learning_rate=1e-3, epochs=8)
    history = train(encoder, rows, passages, settings, flat, tmp_path / "model")
    losses = [entry["loss"] for entry in history[1:]]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 3


def test_history_has_a_row_a_step(encoder, rows, passages, tmp_path):
    settings = TrainingSettings(batch_size=16, epochs=3, eval_every=2)
    history = train(encoder, rows, passages, settings, Scripted(0.1, 0.2, 0.3, 0.4), tmp_path / "model")
    assert history[0] == {"step": 0, "epoch": 0, "dev": 0.1}
    assert [entry["step"] for entry in history] == list(range(7))  # 40 rows: two whole batches of 16 an epoch
    assert [entry["epoch"] for entry in history[1:]] == [0, 0, 1, 1, 2, 2]
    assert {entry["step"]: entry["dev"] for entry in history if "dev" in entry} == {0: 0.1, 2: 0.2, 4: 0.3, 6: 0.4}
    for entry in history[1:]:
        assert entry.keys() - {"dev"} == {"step", "epoch", "loss", "learning_rate", "gradient_norm", "micro_batch",
                                          "chance", "accuracy", "positive", "hardest"}  # fmt: skip
        assert all(math.isfinite(value) for value in entry.values())
        assert entry["gradient_norm"] > 0


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({"epochs": 2}, [0, 2, 4]),  # at the end of every epoch
        ({"max_steps": 3}, [0, 2, 3]),  # and at the very end
        ({"max_steps": 3, "eval_every": 1}, [0, 1, 2, 3]),
        ({"epochs": 1, "max_steps": 9}, [0, 2]),
    ],
)
def test_when_dev_is_evaluated(encoder, rows, passages, tmp_path, more, steps):
    history = train(encoder, rows, passages, TrainingSettings(batch_size=16, **more), flat, tmp_path / "model")
    assert [entry["step"] for entry in history if "dev" in entry] == steps
    assert history[-1]["step"] == steps[-1]


def test_the_same_seed_gives_the_same_weights_bit_for_bit(rows, passages, tmp_path):
    def trained(seed, name):
        encoder = load_encoder("bert-tiny", max_length=32, device="cpu")
        settings = TrainingSettings(batch_size=8, max_steps=4, learning_rate=1e-3, seed=seed)
        history = train(encoder, rows, passages, settings, Scripted(0, 1), tmp_path / name)
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
def test_the_best_checkpoint_is_saved_and_returned(encoder, rows, passages, tmp_path, scores, best):
    settings = TrainingSettings(batch_size=8, max_steps=3, learning_rate=1e-3, eval_every=1, warmup_ratio=0)
    evaluate, before = Scripted(*scores), weights(encoder)
    train(encoder, rows, passages, settings, evaluate, tmp_path / "model", note="mine")
    saved = load_encoder(str(tmp_path / "model"), device="cpu")
    assert equal(weights(encoder), evaluate.seen[best])
    assert equal(weights(saved), evaluate.seen[best])
    assert equal(evaluate.seen[0], before)
    assert all(not equal(one, other) for one, other in zip(evaluate.seen, evaluate.seen[1:], strict=False))
    assert not encoder.training
    assert saved.profile == encoder.profile


def test_profile_settings_and_metadata_are_saved_with_the_model(encoder, rows, passages, tmp_path):
    settings = TrainingSettings(batch_size=8, max_steps=1, learning_rate=3e-4)
    train(encoder, rows, passages, settings, Scripted(0.1, 0.2), tmp_path / "model", note="mine")
    saved = json.loads((tmp_path / "model" / "retriever.json").read_text())
    assert saved["settings"]["learning_rate"] == 3e-4
    assert (saved["note"], saved["step"], saved["scores"]) == ("mine", 1, {"dev": 0.2})
    assert saved["profile"]["base_model"] == "bert-tiny"


@pytest.mark.parametrize(("ratio", "warm"), [(0.0, 0), (0.25, 3), (0.3, 3), (0.5, 5)])
def test_the_learning_rate_rises_and_falls_in_straight_lines(encoder, rows, passages, tmp_path, ratio, warm):
    settings = TrainingSettings(batch_size=4, max_steps=10, learning_rate=1e-4, warmup_ratio=ratio)
    history = train(encoder, rows, passages, settings, flat, tmp_path / "model")
    rates = [entry["learning_rate"] for entry in history[1:]]
    expected = [done / warm if done < warm else (10 - done) / (10 - warm) for done in range(10)]
    assert rates == pytest.approx([1e-4 * share for share in expected])


def one_step(encoder, rows, passages, clip_norm):
    """Take one step of plain gradient descent with rate 1; return the norm reported and how far it went."""
    before = [parameter.detach().clone() for parameter in encoder.parameters()]
    batch = make_batch([rows[number] for number in range(8)], rows, passages, encoder)
    accelerator = Accelerator(cpu=True)
    encoder.model.config.hidden_dropout_prob = 0
    optimizer = accelerator.prepare(torch.optim.SGD(encoder.parameters(), lr=1.0))
    settings = TrainingSettings(clip_norm=clip_norm)
    norm = training_step(encoder, [batch], infonce(), optimizer, settings, accelerator)["gradient_norm"]
    moved = [(old - new).norm() for old, new in zip(before, encoder.parameters(), strict=True)]
    return norm, torch.stack(moved).norm().item()


def test_a_large_gradient_is_clipped_and_a_small_one_is_not(rows, passages):
    def fresh():
        return load_encoder("bert-tiny", max_length=32, device="cpu")

    norm, moved = one_step(fresh(), rows, passages, clip_norm=0.01)
    assert norm > 0.1  # as it was before clipping
    assert moved == pytest.approx(0.01, rel=1e-3)
    norm, moved = one_step(fresh(), rows, passages, clip_norm=1e6)
    assert moved == pytest.approx(norm, rel=1e-3)


def test_no_gradient_is_left_for_the_next_step(encoder, rows, passages):
    one_step(encoder, rows, passages, clip_norm=1.0)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in encoder.parameters())


def test_biases_and_norms_are_not_decayed(encoder):
    decayed, free = _parameter_groups(encoder, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    plain = {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}
    assert {names[id(parameter)] for parameter in free["params"]} == plain
    assert {names[id(parameter)] for parameter in decayed["params"]} == set(names.values()) - plain


def test_frozen_weights_are_left_alone(encoder):
    encoder.model.embeddings.requires_grad_(False)
    frozen = {id(parameter) for parameter in encoder.model.embeddings.parameters()}
    groups = _parameter_groups(encoder, 0.1)
    assert not frozen & {id(parameter) for group in groups for parameter in group["params"]}


def poisoned(encoder):
    with torch.no_grad():
        encoder.model.encoder.layer[1].output.dense.weight[3, 3] = math.nan


def test_a_nan_loss_stops_and_names_the_questions(encoder, rows, passages, tmp_path):
    settings = TrainingSettings(batch_size=4, max_steps=5)
    poisoned(encoder)
    with pytest.raises(TrainingError, match=r"loss nan.*lower learning_rate") as caught:
        train(encoder, rows, passages, settings, flat, tmp_path / "model")
    assert sum(repr(row.qid) in str(caught.value) for row in rows.rows) == 4


def test_a_loss_that_becomes_nan_leaves_the_best_model(encoder, rows, passages, tmp_path):
    seen = []

    def evaluate(encoder):
        if seen:
            poisoned(encoder)  # after the second evaluation
        seen.append(weights(encoder))
        return -len(seen)

    settings = TrainingSettings(batch_size=4, max_steps=5, eval_every=1)
    with pytest.raises(TrainingError, match="best model so far is kept"):
        train(encoder, rows, passages, settings, evaluate, tmp_path / "model")
    assert equal(weights(load_encoder(str(tmp_path / "model"), device="cpu")), seen[0])


def test_a_nan_loss_names_the_step(encoder, rows, passages, tmp_path):
    poisoned(encoder)
    with pytest.raises(TrainingError, match="step 1"):
        train(encoder, rows, passages, TrainingSettings(batch_size=4), flat, tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("batch_size", -4),
        ("learning_rate", 0.0),
        ("clip_norm", -1.0),
        ("temperature", 0.0),
        ("max_steps", -1),
        ("weight_decay", -0.1),
        ("warmup_ratio", -0.1),
        ("eval_every", -1),
        ("precision", "int8"),
        pytest.param("precision", "fp16", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")),
    ],
)
def test_bad_settings_are_errors_that_name_them(name, value):
    with pytest.raises(SettingError, match=name):
        TrainingSettings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("masks", ("answer",)), ("masks", "answers"), ("learning_rate", math.nan), ("warmup_ratio", 1.5)],
)
def test_settings_that_cannot_be_meant_are_errors(name, value):
    with pytest.raises(SettingError, match=name):
        TrainingSettings(**{name: value})


def test_fewer_rows_than_a_batch_is_an_error(encoder, rows, passages, tmp_path):
    with pytest.raises(SettingError, match=r"batch_size=64.*40 training rows"):
        train(encoder, rows, passages, TrainingSettings(batch_size=64), flat, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_full_disk_leaves_the_old_model(encoder, rows, passages, tmp_path, monkeypatch):
    evaluate = Scripted(0.1, 0.2)
    save = encoder.model.save_pretrained

    def fails_the_second_time(folder, *args, **more):
        if len(evaluate.seen) == 1:
            return save(folder, *args, **more)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(encoder.model, "save_pretrained", fails_the_second_time)
    settings = TrainingSettings(batch_size=4, max_steps=1, warmup_ratio=0)
    with pytest.raises(OSError, match="No space"):
        train(encoder, rows, passages, settings, evaluate, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.log"]
    assert equal(weights(load_encoder(str(tmp_path / "model"), device="cpu")), evaluate.seen[0])


def test_bf16_training_gives_back_a_plain_encoder(encoder, rows, passages, tmp_path):
    settings = TrainingSettings(batch_size=4, max_steps=2, precision="bf16", learning_rate=1e-3, warmup_ratio=0)
    history = train(encoder, rows, passages, settings, Scripted(0.1, 0.2), tmp_path / "model")
    assert all(math.isfinite(entry["loss"]) for entry in history[1:])
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    saved = load_encoder(str(tmp_path / "model"), device="cpu")
    texts = passages.texts[:5]
    np.testing.assert_allclose(encoder.encode(texts, "passage"), saved.encode(texts, "passage"), atol=1e-6)


@pytest.mark.parametrize("masks", [(), ("positives", "text", "answers")])
@pytest.mark.parametrize("in_batch", [True, False])
def test_settings_reach_the_batches(encoder, sample, passages, tmp_path, monkeypatch, masks, in_batch):
    rows = TrainingRows(sample, passages, hard_negatives=0, given_negative=False)
    seen = []

    def spy(*args, **more):
        seen.append((more["in_batch"], more["masks"]))
        return make_batch(*args, **more)

    monkeypatch.setattr(helpers.training, "make_batch", spy)
    settings = TrainingSettings(batch_size=8, max_steps=2, masks=masks, in_batch=in_batch)
    history = train(encoder, rows, passages, settings, flat, tmp_path / "model")
    assert seen == [(in_batch, masks)] * 2
    assert (history[1]["loss"] > 0) is in_batch  # with no negative at all there is nothing to learn


def test_patience_stops_after_evaluations_without_a_better_score(encoder, rows, passages, tmp_path):
    scores = Scripted(0.1, 0.3, 0.2, 0.3, 0.1, 0.9)
    settings = TrainingSettings(batch_size=4, max_steps=10, eval_every=2, patience=3)
    history = train(encoder, rows, passages, settings, scores, tmp_path / "model")
    assert [entry["dev"] for entry in history if "dev" in entry] == [
        0.1,
        0.3,
        0.2,
        0.3,
        0.1,
    ]  # an equal score is no better
    assert history[-1]["step"] == 8
    assert equal(weights(encoder), scores.seen[1])


def test_without_patience_nothing_stops_early(encoder, rows, passages, tmp_path):
    settings = TrainingSettings(batch_size=4, max_steps=6, eval_every=2)
    assert train(encoder, rows, passages, settings, Scripted(0.4, 0.3, 0.2, 0.1), tmp_path / "model")[-1]["step"] == 6


def test_tensorboard_files_hold_the_history(encoder, rows, passages, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = TrainingSettings(batch_size=4, max_steps=3, eval_every=3)
    history = train(encoder, rows, passages, settings, Scripted(0.1, 0.2), tmp_path / "model")
    events = EventAccumulator(str(tmp_path / "model.log")).Reload()
    for name in ("loss", "learning_rate", "gradient_norm", "accuracy", "positive", "hardest"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(entry["step"], pytest.approx(entry[name])) for entry in history[1:]]
    assert [event.step for event in events.Scalars("dev")] == [3]


def made_up(loss, chance=4.0, dev=(0.1, 0.2), steps=30):
    entries = [{"step": step, "loss": loss, "chance": chance} for step in range(1, steps + 1)]
    return [{"step": 0, "dev": dev[0]}, *entries[:-1], entries[-1] | {"dev": dev[1]}]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (made_up(1.0), []),
        (made_up(4.01), ["guessing gives 4.00"]),
        (made_up(0.00001), ["can be told without reading"]),
        (made_up(1.0, dev=(0.3, 0.2)), ["made dev worse (0.300 before, at best 0.200 after)"]),
        (made_up(3.99, dev=(0.3, 0.2)), ["guessing gives 4.00", "made dev worse"]),
        (made_up(4.0, steps=5), []),  # too early to say
        ([{"step": 0, "dev": 0.5}], []),
    ],
)
def test_what_looks_wrong_is_said(history, expected):
    found = diagnose(history)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))


def test_only_a_contrastive_loss_is_compared_with_guessing():
    assert diagnose(made_up(4.01), contrastive=False) == diagnose(made_up(0.00001), contrastive=False) == []
    assert len(diagnose(made_up(4.01, dev=(0.3, 0.2)), ended=False)) == 1  # dev may still rise


def test_a_collapsed_encoder_is_called_out_while_it_trains(encoder, rows, passages, tmp_path, capsys):
    """A learning rate that is far too high gives every text the same vector."""
    settings = TrainingSettings(batch_size=4, max_steps=40, epochs=9, eval_every=20, learning_rate=0.3, warmup_ratio=0)
    train(encoder, rows, passages, settings, Scripted(0.1, 0.2, 0.3), tmp_path / "model")
    said = [line for line in capsys.readouterr().out.splitlines() if "all texts get one vector" in line]
    assert len(said) == 2 and "step 20" in said[0] and "step 40" in said[1]
