"""Losses and gradients against plain formulas, teachers and their files, students that are cut, a real training."""

import json
import math
import shutil
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.base.assets import fetch
from helpers.base.errors import DataError, ModelError, SettingError
from helpers.batches import TrainingRows, make_batch
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import load_encoder
from helpers.loss import infonce
from helpers.retrieval import BM25, Run, dense_run
from helpers.topics.cross_encoder import load_cross_encoder
from helpers.topics.distillation import (
    bm25_teacher,
    dense_teacher,
    distillation_loss,
    ensemble,
    first_layers,
    given_teacher,
    kl_divergence,
    listed_teacher,
    margin_mse,
    match_vectors,
    teacher_vectors,
)
from helpers.training import Task, TrainingSettings, train

NAN = math.nan


def softmax(values):
    exps = [math.exp(value - max(values)) for value in values]
    return [value / sum(exps) for value in exps]


def plain_kl(student, teacher, softness):
    """T² Σ p (ln p − ln q), mean over questions, with loops; and its gradient, T (q − p) / B."""
    total, gradient = 0.0, []
    for s_row, t_row in zip(student, teacher, strict=True):
        known = [n for n, value in enumerate(t_row) if not math.isnan(value)]
        p = softmax([t_row[n] / softness for n in known])
        q = softmax([s_row[n] / softness for n in known])
        total += softness**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        row = [0.0] * len(s_row)
        for n, a, b in zip(known, p, q, strict=True):
            row[n] = softness * (b - a) / len(student)
        gradient.append(row)
    return total / len(student), gradient


@pytest.mark.parametrize("softness", [1.0, 2.5])
@pytest.mark.parametrize("holes", [False, True])
def test_kl_and_its_gradient_equal_the_plain_formula(softness, holes):
    student = torch.randn(4, 6, dtype=torch.float64) * 3
    teacher = torch.randn(4, 6, dtype=torch.float64) * 3
    if holes:
        teacher[0, 2] = teacher[1, :3] = teacher[3, 5] = NAN
    student.requires_grad_()
    value = kl_divergence(student, teacher, softness)
    value.backward()
    expected, gradient = plain_kl(student.tolist(), teacher.tolist(), softness)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert student.grad.numpy() == pytest.approx(np.array(gradient), abs=1e-9)


def test_kl_is_cross_entropy_with_the_label_when_the_teacher_is_certain():
    student, label = torch.randn(3, 5), torch.tensor([0, 4, 2])
    teacher = torch.nn.functional.one_hot(label, 5) * 200.0
    expected = torch.nn.functional.cross_entropy(student, label)
    assert kl_divergence(student, teacher).item() == pytest.approx(expected.item(), rel=1e-5)


def test_kl_at_a_high_temperature_matches_logits():
    """Hinton et al. 2015: for T far above the logits, the gradient is that of half the mean square between them."""
    student = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 4, dtype=torch.float64)
    kl_divergence(student, teacher, 1e4).backward()
    centred = [x.detach() - x.detach().mean(1, keepdim=True) for x in (student, teacher)]
    assert student.grad.numpy() == pytest.approx(((centred[0] - centred[1]) / 4 / 2).numpy(), rel=1e-3)


@pytest.mark.parametrize("holes", [False, True])
def test_margin_mse_and_its_gradient_equal_the_plain_formula(holes):
    student = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64) + 7
    positive = torch.tensor([1, 0, 4])
    if holes:
        teacher[0, 3] = teacher[2, 0] = NAN
        teacher[1, 0] = NAN  # of this question's positive: nothing to compare with
    value = margin_mse(student, teacher, positive)
    value.backward()
    errors, gradient = [], np.zeros((3, 5))
    for row, right in enumerate(positive.tolist()):
        for column in set(range(5)) - {right}:
            t_margin = teacher[row, right].item() - teacher[row, column].item()
            if not math.isnan(t_margin):
                error = student[row, right].item() - student[row, column].item() - t_margin
                errors.append(error)
                gradient[row, right] += 2 * error
                gradient[row, column] -= 2 * error
    assert value.item() == pytest.approx(sum(e * e for e in errors) / len(errors), rel=1e-9)
    assert student.grad.numpy() == pytest.approx(gradient / len(errors), abs=1e-9)


def test_nothing_known_teaches_nothing():
    student = torch.randn(2, 3, requires_grad=True)
    unknown = torch.full((2, 3), NAN)
    for value in (kl_divergence(student, unknown, 2.0), margin_mse(student, unknown, torch.tensor([0, 1]))):
        (gradient,) = torch.autograd.grad(value, student)
        assert value.item() == 0 and not gradient.any()


def test_the_training_loss_adds_up():
    scores, positive = torch.rand(2, 3), torch.tensor([0, 2])
    allowed = torch.tensor([[True, True, False], [True, True, True]])
    batch = SimpleNamespace(qids=["a", "b"], columns=[7, 8, 9], positive=positive, allowed=allowed)
    logits = torch.randn(2, 3)
    asked = []

    def teacher(qids, columns):
        asked.append((qids, columns))
        return logits

    kl = distillation_loss(teacher, "kl", 2.0, contrastive=0.3, temperature=0.1)(scores, batch)
    assert kl.item() == pytest.approx(
        (kl_divergence(scores / 0.1, logits, 2.0) + 0.3 * infonce(0.1)(scores, batch)).item(), rel=1e-6
    )
    margin = distillation_loss(teacher, "margin")(scores, batch)
    assert margin.item() == pytest.approx(margin_mse(scores / 0.05, logits, positive).item(), rel=1e-6)
    assert asked == [(["a", "b"], [7, 8, 9])] * 2


WRONG = [("kind", "mse"), ("softness", 0.0), ("softness", NAN), ("softness", math.inf)]
WRONG += [("contrastive", -1.0), ("contrastive", NAN)]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_settings_are_named(name, value):
    with pytest.raises(SettingError, match=f"{name}="):
        distillation_loss(lambda qids, columns: None, **{name: value})


def test_dense_teacher_scores_like_search_and_keeps_its_vectors(
    sample, sample_passages, short_bert, tmp_path, monkeypatch
):
    qids, rows = sample.split_queries("train")[:6], [3, 5, 9, 40]
    texts = {"query": [sample.queries[q].text for q in qids], "passage": [sample_passages.texts[r] for r in rows]}
    path = tmp_path / "vectors.safetensors"
    teacher = dense_teacher(teacher_vectors(short_bert, texts, path), qids, rows, temperature=0.1)
    logits = teacher(qids[2:4], [9, 3, 77])
    queries = {q: sample.queries[q].text for q in qids[2:4]}
    run = dense_run("all", short_bert, queries, sample_passages, k=len(sample_passages), progress=False)
    for number in range(2):
        found = dict(zip(run.rankings[number].tolist(), run.scores[number].tolist(), strict=True))
        assert logits[number, :2].numpy() == pytest.approx([found[9] / 0.1, found[3] / 0.1], abs=1e-4)
    assert logits[:, 2].isnan().all()  # never asked about passage 77

    calls = []
    monkeypatch.setattr(
        type(short_bert), "encode", lambda self, texts, *rest, **more: calls.append(texts) or np.ones((len(texts), 4))
    )
    teacher_vectors(short_bert, texts, path)
    assert not calls  # from the file
    teacher_vectors(short_bert, {**texts, "query": texts["query"][:5]}, path)
    assert len(calls) == 2  # other texts: both kinds anew


def test_listed_teacher_asks_once(tmp_path):
    asked = []

    def score(qid, rows):
        asked.append(qid)
        return [row / 10 for row in rows]

    lists = {"a": [4, 2], "b": [2, 7, 9]}
    for name in ("first", "first", "second"):
        teacher = listed_teacher(score, lists, tmp_path / "scores.safetensors", name)
        logits = teacher(["b", "a"], [2, 9, 4])
        assert logits.numpy() == pytest.approx(np.array([[0.2, 0.9, NAN], [0.2, NAN, 0.4]]), nan_ok=True)
    assert asked == ["a", "b", "a", "b"]  # the second time from the file, the third anew


def test_scores_that_came_with_the_data_are_a_teacher(sample, sample_passages):
    one, other = sample.split_queries("train", 2)
    given = {one: {"p01-1": 3.0, "p01-2": NAN, "gone": 1.0}, other: {"p01-2": -0.5}}
    teacher = given_teacher(replace(sample, candidates=given), sample_passages)
    rows = [sample_passages.row[pid] for pid in ("p01-2", "p01-1", "p01-3")]
    logits = teacher([other, one, "never asked"], rows)
    expected = np.array([[-0.5, NAN, NAN], [NAN, 3.0, NAN], [NAN, NAN, NAN]])
    assert logits.numpy() == pytest.approx(expected, nan_ok=True)
    for nothing in ({}, {one: {"p01-2": NAN}}):
        with pytest.raises(SettingError, match="no scores came with the data set"):
            given_teacher(replace(sample, candidates=nothing), sample_passages)


def test_bm25_and_ensemble(sample, sample_passages):
    queries = {qid: sample.queries[qid].text for qid in sample.split_queries("dev")[:3]}
    lexical, columns = bm25_teacher(queries, sample_passages), [0, 10, 200, 383]
    logits = lexical(list(queries), columns)
    rows, scores = BM25(sample_passages.texts).search(list(queries.values()), len(sample_passages))
    for number in range(3):
        found = dict(zip(rows[number].tolist(), scores[number].tolist(), strict=True))
        assert logits[number].numpy() == pytest.approx([found.get(c, 0.0) for c in columns], rel=1e-5)
    half = torch.full((3, 4), 2.0)
    half[0, 0] = NAN
    both = ensemble([lexical, lambda qids, columns: half], [0.5, 3.0])(list(queries), columns)
    assert both[0, 0].isnan() and both[1:].numpy() == pytest.approx((0.5 * logits + 6)[1:].numpy())


def test_cut_student_is_an_ordinary_encoder(bert_tiny, tmp_path):
    before, texts = bert_tiny.fingerprint(), ["Titan has lakes.", "Rome"]
    student = first_layers(bert_tiny, 1)
    assert bert_tiny.fingerprint() == before and len(bert_tiny.model.encoder.layer) == 2
    student.save(tmp_path / "cut")
    loaded = load_encoder(str(tmp_path / "cut"), device="cpu")
    assert loaded.model.config.num_hidden_layers == 1 and len(loaded.model.encoder.layer) == 1
    assert loaded.profile == bert_tiny.profile
    assert loaded.encode(texts, "passage") == pytest.approx(student.encode(texts, "passage"))
    inputs = bert_tiny.pad(bert_tiny.tokenize(texts, "passage"), "passage")
    hidden = bert_tiny.model(**inputs, output_hidden_states=True).hidden_states[1]  # what the first layer gives
    mask = inputs["attention_mask"][:, :, None]
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).detach().numpy()
    assert student.encode(texts, "passage") == pytest.approx(mean, abs=1e-5)
    assert first_layers(bert_tiny, 2).encode(texts, "query") == pytest.approx(bert_tiny.encode(texts, "query"))
    for count in (0, 3):
        with pytest.raises(SettingError, match="layers 1 to 2"):
            first_layers(bert_tiny, count)


def test_matching_brings_a_cut_student_to_its_teacher(sample, bert_tiny, tmp_path):
    texts = {"query": [q.text for q in list(sample.queries.values())[:64]], "passage": sample.corpus["text"][:64]}
    vectors = teacher_vectors(bert_tiny, texts, tmp_path / "v.safetensors")
    student = first_layers(bert_tiny, 1)
    before = np.mean(np.sum(student.encode(texts["query"], "query") * vectors["query"], axis=1))
    losses = match_vectors(student, vectors, texts, 8)
    after = np.mean(np.sum(student.encode(texts["query"], "query") * vectors["query"], axis=1))
    assert len(losses) == 8 and after > before + 0.05 and not student.training


def test_matching_follows_from_its_seed_and_leaves_the_callers_random_numbers_alone(short_bert):
    texts = {kind: [f"{kind} number {n}" for n in range(40)] for kind in ("query", "passage")}
    vectors = {kind: short_bert.encode(own, kind) for kind, own in texts.items()}
    state = torch.random.get_rng_state()
    one, again, other = (match_vectors(first_layers(short_bert, 1), vectors, texts, 2, seed=s) for s in (0, 0, 1))
    assert one == again != other
    student = first_layers(short_bert, 1)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # now only the texts that are drawn can differ
    first, second = (match_vectors(deepcopy(student), vectors, texts, 1, seed=seed)[0] for seed in (0, 1))
    assert first != second
    assert torch.equal(state, torch.random.get_rng_state())


def test_student_trained_by_the_loop_comes_nearer_to_its_teacher(tiny_folder, bert_tiny, tmp_path):
    data = load_data(tiny_folder)
    passages = PassageIndex(data.training_corpus())
    rows = TrainingRows(data, passages, {"q0": ["p1", "p4"]}, 1)
    wanted = torch.tensor([[3.0, 1.0, 2.0]])
    teacher = lambda qids, columns: wanted[:, columns].expand(len(qids), -1)  # noqa: E731
    student = first_layers(bert_tiny, 2)
    loss = distillation_loss(teacher, "kl", 2.0)

    def distance(encoder):
        batch = make_batch([rows[0]], rows, encoder)
        vectors = torch.cat([encoder(**group) for group in batch.passages])
        return loss(encoder(**batch.queries) @ vectors.T, batch).item()

    before = distance(student.eval())
    settings = TrainingSettings(epochs=20, batch_size=1, learning_rate=5e-4, eval_every=10)
    task = Task(rows, lambda encoder: -distance(encoder.eval()), loss)
    history = train(student, task, settings, tmp_path / "m")
    assert distance(student) < 0.5 * before and len(history) == 21


def test_cross_encoder_learns_saves_and_reranks(sample, sample_passages, bert_tiny, tmp_path):
    cross = load_cross_encoder("bert-tiny", "cpu")
    torch.manual_seed(7)  # the head follows from its own seed
    assert load_cross_encoder("bert-tiny", "cpu").score("Who?", ["He."]) == cross.score("Who?", ["He."])
    assert load_cross_encoder("bert-tiny", "cpu", seed=1).score("Who?", ["He."]) != cross.score("Who?", ["He."])
    question, texts = "Which moon has geysers?", [sample_passages.texts[row] for row in (5, 80, 3)]
    optimizer = torch.optim.AdamW(cross.parameters(), lr=1e-3)
    for _ in range(12):
        torch.nn.functional.cross_entropy(cross([question] * 3, texts)[None], torch.tensor([1])).backward()
        optimizer.step()
        optimizer.zero_grad()
    scores = cross.score(question, texts)
    assert scores.argmax() == 1
    assert cross([question] * 3, texts).tolist() == pytest.approx(scores.tolist(), abs=1e-5)  # in any order of length
    cross.save(tmp_path / "cross")
    assert load_cross_encoder(str(tmp_path / "cross"), "cpu").score(question, texts) == pytest.approx(scores)
    run = dense_run("first", bert_tiny, {"a": question}, sample_passages, 6, progress=False)
    again = cross.rerank(run, {"a": question}, sample_passages, 4, "second")
    best = cross.score(question, [sample_passages.texts[row] for row in run.rankings[0][:4]])
    assert again.rankings[0][:4].tolist() == run.rankings[0][:4][np.argsort(-best)].tolist()
    assert again.rankings[0][4:].tolist() == run.rankings[0][4:].tolist()
    assert (np.diff(again.scores[0]) < 0).all() and len(again.scores[0]) == 6


def test_a_rerun_of_nan_logits_is_an_error(sample_passages, bert_tiny):
    cross = load_cross_encoder("bert-tiny", "cpu")
    torch.nn.init.constant_(cross.model.classifier.bias, NAN)
    run = Run("first", ["a"], [np.array([1, 2])], [np.array([2.0, 1.0])])
    with pytest.raises(DataError, match="second: question 'a' has a score that is NaN or infinite"):
        cross.rerank(run, {"a": "Who?"}, sample_passages, 2, "second")


@pytest.fixture
def plain(tmp_path):
    """A copy of bert-tiny to damage."""
    return shutil.copytree(fetch("bert-tiny"), tmp_path / "plain")


def altered(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


DAMAGED = {
    "no folder": shutil.rmtree,
    "no layer": lambda folder: altered(folder, num_hidden_layers=0),
    "more layers than weights": lambda folder: altered(folder, num_hidden_layers=5),
    "no attention head": lambda folder: altered(folder, num_attention_heads=0),
    "another width": lambda folder: altered(folder, hidden_size=64),
    "an unknown activation": lambda folder: altered(folder, hidden_act="none such"),
    "no number": lambda folder: altered(folder, layer_norm_eps=NAN),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "an empty torch file": lambda folder: [
        (folder / "model.safetensors").unlink(),
        (folder / "pytorch_model.bin").write_bytes(b""),
    ],
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_cross_encoder_is_refused_in_one_sentence(plain, damage):
    DAMAGED[damage](plain)
    with pytest.raises(ModelError, match="plain could not be loaded") as caught:
        load_cross_encoder(str(plain), "cpu")
    assert "\n" not in str(caught.value)


def test_files_of_a_teacher_that_cannot_be_used_are_named(short_bert, tmp_path, full_disk):
    texts, path = {"query": ["Who?"], "passage": ["He."]}, tmp_path / "vectors.safetensors"
    path.write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for wrong in (path, tmp_path / "folder"):
        with pytest.raises(DataError, match=rf"{wrong.name} cannot be read .*delete it"):
            teacher_vectors(short_bert, texts, wrong)
    path.unlink()
    with full_disk(), pytest.raises(DataError, match=r"vectors\.safetensors"):
        teacher_vectors(short_bert, texts, path)
    path.symlink_to(path)  # a circle: replaced by the file
    teacher_vectors(short_bert, texts, path)
    assert path.is_file() and not path.is_symlink()


def test_a_teacher_that_has_diverged_is_refused(tmp_path):
    path = tmp_path / "scores.safetensors"
    with pytest.raises(DataError, match=r"scores\.safetensors: the teacher's numbers are NaN or infinite"):
        listed_teacher(lambda qid, rows: [NAN] * len(rows), {"a": [1]}, path, "teacher")
    assert not path.exists()
