"""The gradient of a batch: whole, in pieces, on several processes, and after memory ran out."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import helpers.gradients
from helpers.base.errors import TrainingError
from helpers.base.files import ROOT
from helpers.batches import TrainingRows, make_batch
from helpers.encoder import Encoder, load_encoder
from helpers.gradients import Engine, add_gradient, derive_seed, split, training_step
from helpers.loss import in_batch_loss, infonce
from helpers.negatives import mine_pool
from helpers.strategies import make_strategy
from helpers.training import TrainingSettings

TEMPERATURE = 0.05


@pytest.fixture(scope="module")
def rows(sample, train_passages):
    qids = sample.split_queries("train", limit=24)
    pool = mine_pool(sample, train_passages, make_strategy("bm25", sample, train_passages), qids)
    return TrainingRows(sample, train_passages, pool.ids())


@pytest.fixture
def encoder():
    return load_encoder("bert-tiny", max_length=64, device="cpu")


@pytest.fixture
def batch(rows, encoder):
    return make_batch([rows[number] for number in range(6)], rows, encoder, group_tokens=300)


def gradients(encoder):
    return torch.cat([parameter.grad.flatten() for parameter in encoder.parameters() if parameter.grad is not None])


def bare(encoder, temperature=TEMPERATURE):
    """An engine that only adds gradients."""
    return Engine(encoder, infonce(temperature), None, Accelerator(cpu=True), TrainingSettings())


def gradient(encoder, batch, temperature=TEMPERATURE, **arguments):
    encoder.zero_grad()
    measures = add_gradient(bare(encoder, temperature), batch, **arguments)
    return gradients(encoder), measures


def by_hand(encoder, batch, pieces, seed):
    """One graph through all pieces, each with its dropout: what GradCache must equal."""
    encoder.zero_grad()
    vectors = []
    for number, piece in enumerate(pieces):
        torch.manual_seed(derive_seed(*seed, number))
        vectors.append(encoder(**piece))
    vectors = torch.cat(vectors)
    questions = len(batch.qids)
    loss = in_batch_loss(vectors[:questions], vectors[questions:], batch.positive, batch.allowed, TEMPERATURE)
    loss.backward()
    return gradients(encoder), loss.item()


def all_pieces(batch, micro_batch):
    questions, passages = split(batch, micro_batch)
    return [*questions, *passages]


def close(one, other):
    """Equal to 1e-5 of the gradient's size."""
    return (one - other).norm() <= 1e-5 * other.norm() and other.norm() > 0


@pytest.mark.parametrize("micro_batch", [0, 1, 2, 3, 5, 100])
@pytest.mark.parametrize("dropout", [False, True])
def test_gradcache_is_the_gradient_of_the_whole_batch(encoder, batch, micro_batch, dropout):
    encoder.train(dropout)
    expected, loss = by_hand(encoder, batch, all_pieces(batch, micro_batch), (1, 2))
    found, measures = gradient(encoder, batch, micro_batch=micro_batch, seed=(1, 2))
    assert close(found, expected)
    assert measures["loss"] == pytest.approx(loss, abs=1e-5)


def test_pieces_of_any_size_agree_without_dropout(encoder, batch):
    encoder.eval()
    whole, _ = gradient(encoder, batch)
    assert all(close(gradient(encoder, batch, micro_batch=size)[0], whole) for size in (1, 2, 4, 7))


def test_the_two_encodings_of_a_piece_drop_the_same(encoder, batch, monkeypatch):
    """Without the replay the gradient is off: the test above would not see a dropout that is too weak to matter."""
    encoder.train()
    expected, _ = by_hand(encoder, batch, all_pieces(batch, 2), (1, 2))
    draws = iter(range(10**6))
    monkeypatch.setattr(helpers.gradients, "derive_seed", lambda *numbers: next(draws))
    found, _ = gradient(encoder, batch, micro_batch=2, seed=(1, 2))
    assert not close(found, expected)


def test_the_temperature_reaches_the_gradient(encoder, batch):
    encoder.eval()
    one, other = (gradient(encoder, batch, temperature, micro_batch=2)[0] for temperature in (TEMPERATURE, 0.5))
    assert not close(other, one)


def test_pieces_keep_order_and_drop_padding(batch):
    whole, pieces = all_pieces(batch, 0), all_pieces(batch, 2)
    assert [len(side) for side in split(batch, 0)] == [1, len(batch.passages)]
    assert [len(piece["input_ids"]) for piece in split(batch, 4)[0]] == [4, 2]  # six questions
    assert all(len(piece["input_ids"]) <= 2 for piece in pieces)
    assert all(piece["attention_mask"].any(0).all() for piece in pieces)  # no column of padding alone

    def texts(parts):
        tokens = [(part["input_ids"].tolist(), part["attention_mask"].tolist()) for part in parts]
        return [ids[: sum(mask)] for rows, masks in tokens for ids, mask in zip(rows, masks, strict=True)]

    assert texts(whole) == texts(pieces)
    for rounded, piece in zip(split(batch, 2, 4)[1], split(batch, 2)[1], strict=True):
        longest, width = piece["input_ids"].shape[1], rounded["input_ids"].shape[1]
        assert longest <= width <= longest + 3 and (width % 4 == 0 or width == max(map(len, whole[-1]["input_ids"])))


def test_gradcache_keeps_only_one_piece_in_memory(encoder, batch, monkeypatch):
    """The first encoding builds no graph; the second releases each piece's before the next."""
    alive, most = [0], [0]
    forward = encoder.forward

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx, vectors):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            return vectors.clone()

        @staticmethod
        def backward(ctx, gradient):
            alive[0] -= 1
            return gradient

    def counted(**inputs):
        vectors = forward(**inputs)
        return Count.apply(vectors) if vectors.requires_grad else vectors

    monkeypatch.setattr(encoder, "forward", counted)
    gradient(encoder, batch, micro_batch=3)
    assert (most[0], alive[0]) == (1, 0)
    gradient(encoder, batch)
    assert most[0] == len(all_pieces(batch, 0))


def test_measures_by_hand(encoder, batch):
    encoder.eval()
    _, measures = gradient(encoder, batch)
    with torch.no_grad():
        q_vec = encoder(**batch.queries)
        passages = torch.cat([encoder(**group) for group in batch.passages])
    right, best, accuracy, chance = [], [], [], []
    for i, column in enumerate(batch.positive.tolist()):
        scores = {j: float(q_vec[i] @ passages[j]) for j in range(len(passages)) if batch.allowed[i, j]}
        right.append(scores.pop(column))
        best.append(max(scores.values()))
        accuracy.append(right[-1] > best[-1])
        chance.append(torch.tensor(len(scores) + 1.0).log().item())
    expected = {"positive": right, "hardest": best, "accuracy": accuracy, "chance": chance}
    for name, values in expected.items():
        assert measures[name] == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_a_batch_without_negatives_has_no_hardest_one(rows, encoder):
    """And in the mean over several batches only those count that have one."""
    alone = make_batch([rows[0]], rows, encoder, in_batch=False)
    alone.allowed = torch.nn.functional.one_hot(alone.positive, len(alone.columns)).bool()
    assert gradient(encoder, alone)[1]["hardest"].isnan()
    _, measures = step_of(encoder, [alone])
    assert measures["hardest"] is None and measures["loss"] == 0
    whole = make_batch([rows[n] for n in range(4)], rows, encoder)
    encoder.eval()
    expected = {name: value.item() for name, value in gradient(encoder, whole)[1].items()}
    _, measures = step_of(encoder, [alone, whole])
    assert measures["hardest"] == pytest.approx(expected["hardest"], abs=1e-5)
    assert measures["loss"] == pytest.approx(expected["loss"] / 2, abs=1e-5)


class OneVectorPerToken(Encoder):
    """A stand-in for an encoder whose outputs are as long as the texts of their piece."""

    def output_shape(self, length):
        return (length, self.dimension)

    def forward(self, input_ids, attention_mask):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return torch.nn.functional.normalize(hidden, dim=-1) * attention_mask[:, :, None]

    def similarity(self, q_vec, passage_vecs):
        self.seen = q_vec.shape, passage_vecs.shape
        return torch.einsum("qld,ptd->qp", q_vec, passage_vecs) / 1000


def test_texts_are_padded_to_the_longest_of_the_batch_alone(rows):
    encoder = load_encoder("bert-tiny", max_length=200, device="cpu", encoder_class=OneVectorPerToken)
    batch = make_batch([rows[number] for number in range(6)], rows, encoder, group_tokens=300)
    lengths = [group["input_ids"].shape[1] for group in batch.passages]
    longest = batch.queries["input_ids"].shape[1]
    assert longest < max(lengths) and len(set(lengths)) > 1
    whole, _ = gradient(encoder, batch)
    assert encoder.seen == ((6, longest, 128), (len(batch.columns), max(lengths), 128))
    for micro_batch in (1, 4):
        found, _ = gradient(encoder, batch, micro_batch=micro_batch)
        assert encoder.seen == ((6, longest, 128), (len(batch.columns), max(lengths), 128))
        assert close(found, whole)


def step_of(encoder, batches, **settings):
    """Plain gradient descent, so that the weights show the gradient."""
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD(encoder.parameters(), lr=0.1))
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    measures = training_step(Engine(encoder, infonce(), optimizer, accelerator, TrainingSettings(**settings)), batches)
    return torch.cat([parameter.detach().flatten() for parameter in encoder.parameters()]), measures


def running_out(encoder, largest, when):
    """Make `encoder` fail as CUDA does on more than `largest` texts, in forward or in backward."""
    forward = encoder.forward
    message = "CUDA out of memory. Tried to allocate 2.00 GiB."

    def limited(input_ids, attention_mask):
        vectors = forward(input_ids, attention_mask)
        if len(input_ids) > largest:
            if when == "forward":
                raise torch.OutOfMemoryError(message)
            if vectors.requires_grad:
                vectors.register_hook(fail)
        return vectors

    def fail(gradient):
        raise torch.OutOfMemoryError(message)

    encoder.forward = limited


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_out_of_memory_repeats_the_step_in_smaller_pieces(rows, batch, encoder, when, accumulate, capsys):
    batches = [batch, make_batch([rows[n] for n in range(6, 12)], rows, encoder)][:accumulate]
    expected, _ = step_of(load_encoder("bert-tiny", max_length=64), batches)
    running_out(encoder, 2, when)
    found, measures = step_of(encoder, batches)
    assert torch.allclose(found, expected, atol=1e-6)
    assert measures["micro_batch"] in (1, 2)
    assert f"micro_batch={measures['micro_batch']}" in capsys.readouterr().out


@pytest.mark.parametrize(("questions", "group_tokens"), [(6, 300), (1, 1)])
def test_pieces_that_fit_one_at_a_time_are_not_made_smaller(rows, encoder, questions, group_tokens, capsys):
    """Memory for the graph of the largest piece alone, even if that is a single text."""
    batch = make_batch([rows[n] for n in range(questions)], rows, encoder, group_tokens=group_tokens)
    largest = max(len(piece["input_ids"]) for piece in all_pieces(batch, 0))
    expected, _ = step_of(load_encoder("bert-tiny", max_length=64), [batch])
    forward, held = encoder.forward, [0]

    def limited(**inputs):
        vectors = forward(**inputs)
        if vectors.requires_grad:
            held[0] += len(vectors)
            if held[0] > largest:
                held[0] = 0
                raise torch.OutOfMemoryError("CUDA out of memory")
            vectors.register_hook(lambda _gradient: held.__setitem__(0, held[0] - len(vectors)))
        return vectors

    encoder.forward = limited
    found, measures = step_of(encoder, [batch])
    assert torch.allclose(found, expected, atol=1e-6) and measures["micro_batch"] == largest
    assert capsys.readouterr().out.count("out of memory") == 1


def test_nothing_is_left_of_a_try_that_ran_out_of_memory(rows, batch, encoder):
    """The first batch has added its gradient when memory runs out on the second."""
    batches = [make_batch([rows[0], rows[1]], rows, encoder, group_tokens=1), batch]
    expected, _ = step_of(load_encoder("bert-tiny", max_length=64), batches)
    running_out(encoder, 2, "forward")
    found, _ = step_of(encoder, batches)
    assert torch.allclose(found, expected, atol=1e-6)


def test_one_text_that_does_not_fit_stops_training(batch, encoder):
    running_out(encoder, 0, "forward")
    with pytest.raises(TrainingError, match=r"one text of 64 tokens.*max_length"):
        step_of(encoder, [batch])


def test_averages_that_do_not_fit_stop_training(batch, encoder, monkeypatch):
    def fail(*_arguments, **_more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.SGD, "step", fail)
    with pytest.raises(TrainingError, match=r"AdamW's two averages.*lora_rank"):
        step_of(encoder, [batch])


def test_other_errors_are_not_taken_for_a_lack_of_memory(batch, encoder):
    def broken(**inputs):
        raise RuntimeError("the size of tensor a must match the size of tensor b")

    encoder.forward = broken
    with pytest.raises(RuntimeError, match="must match"):
        step_of(encoder, [batch])


def test_out_of_memory_in_evaluation_halves_the_batch(encoder):
    texts = [f"text number {number} " * (number % 5 + 1) for number in range(40)]
    expected = encoder.encode(texts, "passage")
    running_out(encoder, 3, "forward")
    assert abs(encoder.encode(texts, "passage") - expected).max() < 1e-6
    running_out(encoder, 0, "forward")
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(texts, "passage")


def test_dropout_follows_from_seed_step_and_batch(batch, encoder):
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD(encoder.parameters(), lr=0.0))

    def loss(seed=3, step=1, batches=(batch,)):
        engine = Engine(encoder, infonce(), optimizer, accelerator, TrainingSettings(seed=seed))
        return training_step(engine, batches, step)["loss"]

    once = loss()
    assert loss() == once
    assert len({once, loss(seed=4), loss(step=2), loss(batches=(batch, batch))}) == 4


class Scaler:
    """What fp16 scales its loss by, on a device that has none."""

    def __init__(self, factor):
        self.factor = factor

    def scale(self, loss):
        return loss

    def get_scale(self):
        return self.factor


def test_an_overflow_of_fp16_skips_a_step_and_has_no_norm(batch, encoder, monkeypatch):
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD(encoder.parameters(), lr=0.0))
    engine = Engine(encoder, infonce(), optimizer, accelerator, TrainingSettings())
    monkeypatch.setattr(accelerator, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(TrainingError, match="gradient norm inf"):
        training_step(engine, [batch])
    monkeypatch.setattr(accelerator, "scaler", Scaler(1024.0))
    assert training_step(engine, [batch])["gradient_norm"] is None
    monkeypatch.setattr(accelerator, "scaler", Scaler(0.5))  # it has shrunk too often: this is no overflow
    with pytest.raises(TrainingError, match="gradient norm inf"):
        training_step(engine, [batch])


def test_accumulation_averages_batches_that_share_no_negatives(rows, encoder):
    batches = [make_batch([rows[n] for n in part], rows, encoder) for part in ([0, 1, 2], [7, 8, 9])]
    encoder.eval()
    parts = [gradient(encoder, batch)[0] for batch in batches]
    encoder.zero_grad()
    for batch in batches:
        add_gradient(bare(encoder), batch, share=0.5)
    assert close(gradients(encoder), (parts[0] + parts[1]) / 2)


WORKER = """
import json, sys
import torch
import tests.test_gradients as t
from accelerate import Accelerator
from helpers.batches import TrainingRows, make_batch
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import load_encoder
from helpers.gradients import Engine, add_gradient, sum_gradients, training_step
from helpers.loss import infonce
from helpers.base.processes import shared_encoding, work_together
from helpers.topics.late_interaction import MultiVectorEncoder
from helpers.training import TrainingSettings

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
data = load_data("data/sample")
passages = PassageIndex(data.training_corpus())
rows = TrainingRows(data, passages, {q: [] for q in data.split_queries("train", 24)}, 0)
encoder = load_encoder("bert-tiny", max_length=64, device="cpu").train()
batch = make_batch([rows[n] for n in range(8)], rows, encoder, group_tokens=200)
report = {"processes": accelerator.num_processes}
optimizer = accelerator.prepare(torch.optim.SGD(encoder.parameters(), lr=0.1))
engine = Engine(encoder, infonce(), optimizer, accelerator, TrainingSettings())
for micro_batch in (0, 2):
    encoder.zero_grad()
    measures = add_gradient(engine, batch, micro_batch, (5,))
    sum_gradients(engine)
    report[str(micro_batch)] = [measures["loss"].item(), *t.gradients(encoder)[:: 1009].tolist()]
asked, encode = [], encoder.encode
encoder.encode = lambda texts, *more: asked.append(len(texts)) or encode(texts, *more)
texts = passages.texts[:7]
with shared_encoding(encoder, accelerator):
    report["shared"] = [float(number) for number in encoder.encode(texts, "passage")[:, 0]]
    report["lone"] = encoder.encode(texts[:1], "passage").shape
report["asked"] = asked
late = load_encoder("bert-tiny", max_length=64, device="cpu", encoder_class=MultiVectorEncoder)
with shared_encoding(late, accelerator):
    report["late"] = late.encode(texts, "passage").sum(2).tolist()
report["found"] = work_together(lambda _: accelerator.process_index, late, accelerator)
if accelerator.process_index == 1:  # memory runs out on one process only
    t.running_out(encoder, 2, "backward")
measures = training_step(engine, [batch])
report["micro_batch"] = measures["micro_batch"]
json.dump(report, open(f"{sys.argv[1]}/{accelerator.num_processes}.{accelerator.process_index}.json", "w"))
"""


def run_processes(folder, count):
    port = 20_000 + os.getpid() % 20_000 + count
    start = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        start | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)} if count > 1 else start
        for rank in range(count)
    ]
    processes = [subprocess.Popen([sys.executable, "-c", WORKER, str(folder)], env=env, cwd=ROOT) for env in ranks]
    assert [process.wait(timeout=200) for process in processes] == [0] * count
    return [json.loads((folder / f"{count}.{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_batch(tmp_path):
    """Dropout included; and when memory runs out on one of them, both repeat the step."""
    (alone,), pair = run_processes(tmp_path, 1), run_processes(tmp_path, 2)
    assert (alone["processes"], [found["processes"] for found in pair]) == (1, [2, 2])
    for found in pair:
        for micro_batch in ("0", "2"):
            assert found[micro_batch] == pytest.approx(alone[micro_batch], abs=1e-6)
            assert max(map(abs, found[micro_batch][1:])) > 1e-3
        assert found["micro_batch"] in (1, 2)
        np.testing.assert_allclose(found["shared"], alone["shared"], atol=1e-5)
        assert found["found"] == 0 and found["lone"] == alone["lone"]
        np.testing.assert_allclose(found["late"], alone["late"], atol=1e-4)
    assert pair[0]["shared"] == pair[1]["shared"] and pair[0]["late"] == pair[1]["late"]
    assert (alone["asked"], [found["asked"] for found in pair]) == ([7, 1], [[4, 1], [3, 0]])
