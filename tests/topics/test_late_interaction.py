"""MaxSim against a plain triple loop and sentence-transformers, token vectors in three precisions, and training."""

import json
import os
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from sentence_transformers.util.similarity import maxsim as reference_maxsim

from helpers.base.errors import ModelError, SettingError
from helpers.batches import TrainingRows, make_batch
from helpers.dataset import PassageIndex
from helpers.encoder import load_encoder, pad_texts
from helpers.evaluation import hit_at_k, hit_ranks
from helpers.gradients import add_gradient, make_engine, training_step
from helpers.loss import infonce
from helpers.retrieval import Run
from helpers.topics.late_interaction import (
    MultiVectorEncoder,
    TokenVectors,
    encode_tokens,
    maxsim,
    maxsim_search,
    mean_maxsim,
)
from helpers.topics.m3 import M3Encoder
from helpers.training import Task, TrainingSettings, train


def load(name="bert-tiny", **settings):
    return load_encoder(name, device="cpu", encoder_class=MultiVectorEncoder, **settings)


@pytest.fixture(scope="module")
def multi():
    return load()


@pytest.fixture(scope="module")
def texts(sample, sample_passages):
    """Questions and passages of the sample."""
    return [query.text for query in list(sample.queries.values())[:40]], sample_passages.texts[:60]


def random_vectors(generator, lengths, size=5, longest=0):
    """Vectors of length 1, padded with zeros, [N, L, D]."""
    vectors = torch.randn(len(lengths), max(*lengths, longest), size, generator=generator)
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    return vectors * (torch.arange(vectors.shape[1]) < torch.tensor(lengths)[:, None])[:, :, None]


def triple_loop(questions, passages):
    """MaxSim as it is defined: texts are lists of vectors."""
    scores = np.zeros((len(questions), len(passages)), dtype=np.float32)
    for i, question in enumerate(questions):
        for j, passage in enumerate(passages):
            for q in question:
                scores[i, j] += max(np.dot(q, p) for p in passage)
    return scores


def rows_of(vectors):
    """The real rows of each padded text."""
    return [text[(text != 0).any(1)] for text in vectors.numpy()]


lengths = st.lists(st.integers(1, 6), min_size=2, max_size=5)


@given(lengths, lengths, st.integers(0, 1000))
def test_maxsim_equals_the_triple_loop(q_lengths, p_lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    q, p = random_vectors(generator, q_lengths), random_vectors(generator, p_lengths)
    np.testing.assert_allclose(maxsim(q, p), triple_loop(rows_of(q), rows_of(p)), atol=1e-5)


@given(lengths, lengths, st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_padding_never_changes_a_score(q_lengths, p_lengths, q_more, p_more, seed):
    generator = torch.Generator().manual_seed(seed)
    q, p = -random_vectors(generator, q_lengths).abs(), random_vectors(generator, p_lengths).abs()
    assert (maxsim(q, p) < 0).all()  # a padding row, whose dot products are 0, would win
    longer = (torch.nn.functional.pad(x, (0, 0, 0, more)) for x, more in ((q, q_more), (p, p_more)))
    torch.testing.assert_close(maxsim(*longer), maxsim(q, p))


def test_maxsim_equals_sentence_transformers(multi, texts):
    q, p = (torch.from_numpy(multi.encode(part, kind)) for part, kind in zip(texts, ("query", "passage"), strict=True))
    masks = [(x != 0).any(-1) for x in (q, p)]
    expected = reference_maxsim(q, p, a_mask=masks[0], b_mask=masks[1])
    torch.testing.assert_close(maxsim(q, p), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(mean_maxsim(q, p), expected / masks[0].sum(1, keepdim=True), atol=1e-5, rtol=0)


def test_in_bf16_padding_to_a_multiple_of_16_adds_no_vectors(multi, texts, monkeypatch):
    exact = multi.encode(texts[1], "passage")
    monkeypatch.setattr(multi, "precision", "bf16")
    found = multi.encode(texts[1], "passage")
    assert found.shape == exact.shape and ((found != 0).any(-1) == (exact != 0).any(-1)).all()
    assert (found * exact).sum(-1)[(exact != 0).any(-1)].min() > 0.99


def test_a_text_against_itself_is_1_and_nothing_is_above(multi, texts):
    vectors = torch.from_numpy(multi.encode(texts[0], "query"))
    scores = mean_maxsim(vectors, vectors)
    torch.testing.assert_close(scores.diagonal(), torch.ones(len(scores)))
    assert scores.max() <= 1 + 1e-5


def test_the_encoder_gives_a_vector_of_length_1_for_every_token_but_the_first(multi, texts):
    vectors = multi.encode(texts[1], "passage")
    counts = [len(ids) - 1 for ids in multi.tokenize(texts[1], "passage")]
    assert vectors.shape == (60, max(counts), 128) == (60, *multi.output_shape(max(counts) + 1))
    norms = np.linalg.norm(vectors, axis=-1)
    for norm, count in zip(norms, counts, strict=True):
        np.testing.assert_allclose(norm[:count], 1, atol=1e-5)
        assert not norm[count:].any()
    with torch.no_grad():
        inputs = multi.pad(multi.tokenize(texts[1][:1], "passage"), "passage")
        hidden = multi.model(**inputs).last_hidden_state[0, 1:]
    np.testing.assert_allclose(vectors[0, : counts[0]], hidden / hidden.norm(dim=1, keepdim=True), atol=1e-5)


def test_a_100_by_100_score_matrix_is_at_least_50_times_as_fast_as_the_loop(multi, sample):
    full = bool(os.environ.get("FULL_SIZE_TESTS"))  # whole passages take the loop more than a minute
    qids = list(sample.queries)[:100]
    q = encode_tokens(multi, [sample.queries[qid].text for qid in qids], "query", "fp32")
    passages = PassageIndex(sample.corpus).texts[:100]
    passages = passages if full else [" ".join(text.split()[:5]) for text in passages]
    p = encode_tokens(multi, passages, "passage", "fp32")
    begin = time.perf_counter()
    lists = [
        np.split(vectors.values.numpy(), vectors.lengths.cumsum(0)[:-1].numpy()) for vectors in (q, p)
    ]  # a list of [L, D] a text
    slow = triple_loop(*lists)
    loop = time.perf_counter() - begin
    q_vecs, p_vecs = (torch.nn.utils.rnn.pad_sequence(list(map(torch.from_numpy, part)), True) for part in lists)
    fast = []
    for _ in range(5):
        begin = time.perf_counter()
        scores = maxsim(q_vecs, p_vecs)
        fast.append(time.perf_counter() - begin)
    np.testing.assert_allclose(scores, slow, atol=1e-3)
    print(f"loop {loop:.2f} s, maxsim {min(fast):.4f} s, {loop / min(fast):.0f} times")
    assert loop / min(fast) >= 50


def test_search_ranks_by_maxsim_and_reranking_ranks_the_candidates(multi, texts, monkeypatch):
    q, p = (encode_tokens(multi, part, kind, "fp32") for part, kind in zip(texts, ("query", "passage"), strict=True))
    scores = mean_maxsim(
        *(torch.from_numpy(multi.encode(t, k)) for t, k in zip(texts, ("query", "passage"), strict=True))
    )
    expected = scores.argsort(1, descending=True).numpy()
    monkeypatch.setattr(
        "helpers.topics.late_interaction.QUESTIONS", 7
    )  # several groups of questions, and blocks of passages
    monkeypatch.setattr("helpers.topics.late_interaction.MAX_SCORES", 50_000)
    rows, values = maxsim_search(q, p, 10)
    for number in range(len(rows)):
        np.testing.assert_allclose(values[number], scores[number, rows[number]], atol=1e-5)
        np.testing.assert_allclose(values[number], scores[number, expected[number, :10]], atol=1e-5)
    candidates = [np.array([5, 50, 7, 23]), np.array([], dtype=int), *[np.array([1])] * 38]
    rows, values = maxsim_search(q, p, 3, candidates)
    assert rows[0].tolist() == sorted([5, 50, 7, 23], key=lambda row: -scores[0, row])[:3]
    assert [len(found) for found in rows] == [3, 0, *[1] * 38]
    np.testing.assert_allclose(values[0], scores[0, rows[0]], atol=1e-5)


def test_packed_vectors_are_the_real_rows_in_fewer_bytes(multi, texts):
    vectors = multi.encode(texts[1], "passage")
    real = vectors[(vectors != 0).any(-1)]
    packed = {precision: encode_tokens(multi, texts[1], "passage", precision) for precision in ("fp32", "fp16", "int8")}
    assert packed["fp32"].nbytes == real.nbytes + 8 * 60
    assert packed["fp16"].nbytes == real.nbytes / 2 + 8 * 60
    assert packed["int8"].nbytes == real.nbytes / 4 + 2 * len(real) + 8 * 60
    assert (packed["int8"].values.abs().amax(1) == 127).all()  # the largest of a row fills the eight bits
    for precision, error in (("fp32", 1e-6), ("fp16", 5e-4), ("int8", 5e-3)):
        values, lengths = packed[precision].take(range(60))
        assert values.dtype == torch.float32 and lengths.tolist() == (vectors != 0).any(-1).sum(1).tolist()
        assert np.abs(values - real).max() <= error
        some, lengths = packed[precision].take([7, 3])
        assert some.tolist() == torch.cat([values.split(packed["fp32"].lengths.tolist())[n] for n in (7, 3)]).tolist()
    with pytest.raises(SettingError, match=r"token_precision='int4'.*fp16"):
        encode_tokens(multi, texts[1][:2], "passage", "int4")


def test_eight_bits_cost_hardly_a_hit(multi, sample, sample_passages):
    qids = sample.split_queries("test", 60)
    q = encode_tokens(multi, [sample.queries[qid].text for qid in qids], "query", "fp32")
    hits = {}
    windows = list(multi.encode_windows(sample_passages.texts, "passage", 64))
    for precision in ("fp32", "int8"):
        found = maxsim_search(q, TokenVectors.pack(windows, precision), 10)
        hits[precision] = hit_at_k(hit_ranks(Run("r", qids, *found), sample, sample_passages, "test")[0], 10)
    assert abs(hits["int8"] - hits["fp32"]) <= 1 / 60
    assert hits["fp32"] > 0.7  # 0.57 for the same weights with one vector a text


@pytest.fixture
def rows(sample, train_passages):
    return TrainingRows(sample, train_passages, {qid: [] for qid in sample.split_queries("train", 24)}, 0, False)


def gradients(encoder):
    return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def test_gradcache_gives_a_multi_vector_encoder_the_same_gradient(rows):
    encoder = load(max_length=48)
    batch = make_batch([rows[n] for n in range(8)], rows, encoder)
    found = []
    for micro_batch in (0, 3):
        encoder.zero_grad()
        measures = add_gradient(make_engine(encoder, infonce(), TrainingSettings()), batch, micro_batch)
        found.append((gradients(encoder), measures["loss"].item()))
    encoder.zero_grad()
    q = encoder(**batch.queries)
    p = [text for group in batch.passages for text in encoder(**group)]
    scores = [(one[one.any(1)] @ other[other.any(1)].T).amax(1).mean() for one in q for other in p]
    scores = torch.stack(scores).view(len(q), len(p))
    scores = (scores / 0.05).masked_fill(~batch.allowed, float("-inf"))
    torch.nn.functional.cross_entropy(scores, batch.positive).backward()
    for gradient, _ in found:
        assert (gradient - gradients(encoder)).norm() < 1e-3 * gradient.norm()
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


class Padded(MultiVectorEncoder):
    """The same, but every text is padded to `max_length`, as it once was."""

    def output_shape(self, length):
        return super().output_shape(self.profile.max_length)

    def forward(self, input_ids, attention_mask):
        return pad_texts(super().forward(input_ids, attention_mask), self.profile.max_length - 1)


def test_a_forward_is_as_long_as_its_batch_and_trains_like_one_padded_to_max_length(rows):
    found = []
    for kind in (MultiVectorEncoder, Padded):
        encoder = load_encoder("bert-tiny", device="cpu", encoder_class=kind)
        engine = make_engine(encoder, infonce(), TrainingSettings(learning_rate=1e-4))
        lengths, batch = [], make_batch([rows[n] for n in range(8)], rows, encoder)
        encoder.register_forward_hook(lambda _, inputs, output, lengths=lengths: lengths.append(output.shape[1]))
        measures = training_step(engine, [batch])
        found.append((measures["loss"], torch.cat([p.detach().flatten() for p in encoder.parameters()]), lengths))
    longest = [inputs["input_ids"].shape[1] for inputs in (batch.queries, *batch.passages)]
    assert found[0][2] == [length - 1 for length in longest] and max(longest) < 256
    assert found[1][2] == [255] * len(longest)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=2e-6, rtol=0)  # a step moves a weight by up to 1e-4


def test_training_and_what_it_leaves_load_again_as_what_they_are(rows, tmp_path):
    encoder = load(max_length=48)
    before = encoder.fingerprint()
    folder, scores = tmp_path / "model", iter([0.1, 0.9])
    settings = TrainingSettings(epochs=1, max_steps=2, batch_size=8, learning_rate=1e-4, micro_batch=4)
    history = train(encoder, Task(rows, lambda _: next(scores)), settings, folder)
    assert len(history) == 3 and encoder.fingerprint() != before
    assert json.loads((folder / "retriever.json").read_text())["kind"] == "multi-vector"
    assert not (folder / "modules.json").exists()  # sentence-transformers would make one vector of a text
    again = load(str(folder))
    assert again.fingerprint() == encoder.fingerprint()
    text = ["Which moon has lakes?"]
    np.testing.assert_array_equal(again.encode(text, "query"), encoder.encode(text, "query"))
    with pytest.raises(ModelError, match=r"saved as a multi-vector encoder, but a single-vector one was asked for"):
        load_encoder(str(folder), device="cpu")


def test_a_single_vector_model_does_not_load_as_a_multi_vector_one(bert_tiny, tmp_path):
    bert_tiny.save(tmp_path / "single")
    with pytest.raises(ModelError, match=r"saved as a single-vector encoder, but a multi-vector one"):
        load(str(tmp_path / "single"))


def test_a_head_beside_the_weights_is_used_trained_and_saved(plain, tmp_path, texts):
    head = torch.nn.Linear(128, 16)
    save_file(head.state_dict(), plain / "colbert_linear.safetensors")
    encoder = load(str(plain))
    assert encoder.output_shape(9) == (8, 16) and any(name.startswith("head") for name, _ in encoder.named_parameters())
    vectors = encoder.encode(texts[0], "query")
    with torch.no_grad():
        hidden = encoder.model(**encoder.pad(encoder.tokenize(texts[0][:1], "query"), "query")).last_hidden_state[0, 1:]
        expected = torch.nn.functional.normalize(head(hidden), dim=-1)
    np.testing.assert_allclose(vectors[0, : len(expected)], expected, atol=1e-5)
    with torch.no_grad():
        encoder.head.bias += 1
    encoder.save(tmp_path / "saved")
    np.testing.assert_array_equal(
        load(str(tmp_path / "saved")).encode(texts[0], "query"), encoder.encode(texts[0], "query")
    )


@pytest.fixture
def plain(bert_tiny, tmp_path):
    """A folder of bert-tiny without a head."""
    bert_tiny.model.save_pretrained(tmp_path / "plain")
    bert_tiny.tokenizer.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "no tensors": lambda path: path.write_bytes(b"no tensors"),
    "a norm": lambda path: store(torch.nn.LayerNorm(128).state_dict(), path),
    "no weight": lambda path: store({"scale": torch.ones(2)}, path),
}


def store(state, path):
    """Write a head as its suffix says."""
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


@pytest.mark.parametrize("name", ["colbert_linear.safetensors", "colbert_linear.pt"])
@pytest.mark.parametrize("content", FOREIGN)
def test_a_broken_head_is_an_error_that_names_the_file(plain, name, content):
    FOREIGN[content](plain / name)
    with pytest.raises(ModelError, match=rf"{name}"):
        load(str(plain))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ["colbert", "sparse"])
@pytest.mark.parametrize("sizes", [(64, 1), (128, 200), (256, 128)])
def test_a_head_of_another_width_is_refused(plain, name, sizes, suffix):
    store(torch.nn.Linear(*sizes).state_dict(), plain / f"{name}_linear{suffix}")
    kind = M3Encoder if name == "sparse" else MultiVectorEncoder
    expected = rf"{name}_linear{suffix}: a layer from {sizes[0]} numbers to {sizes[1]}, but .* 128; .* another model's"
    with pytest.raises(ModelError, match=expected):
        load_encoder(str(plain), device="cpu", encoder_class=kind)


def test_a_head_of_nan_is_refused(plain):
    head = {name: tensor * float("nan") for name, tensor in torch.nn.Linear(128, 16).state_dict().items()}
    store(head, plain / "colbert_linear.safetensors")
    with pytest.raises(ModelError, match="not finite"):
        load(str(plain))


def test_a_pickle_that_would_run_code_is_refused(plain, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"weight": Evil()}, plain / "colbert_linear.pt")
    with pytest.raises(ModelError, match="colbert_linear"):
        load(str(plain))
    assert not (tmp_path / "owned").exists()


def test_token_vectors_keep_the_order_of_the_texts(multi, texts):
    mixed = [texts[1][0], "Sea.", texts[1][1], "A river."]
    packed = encode_tokens(multi, mixed, "passage", "fp32")
    windows = [multi.encode(mixed[start : start + 2], "passage") for start in (0, 2)]
    windows = [*windows, multi.encode(["Sea."], "passage")]  # each as long as its own longest text
    assert len({window.shape[1] for window in windows}) == 3
    together = TokenVectors.pack(windows, "fp32")
    torch.testing.assert_close(together.values[: len(packed.values)], packed.values, atol=1e-5, rtol=0)
    assert together.lengths.tolist() == [*packed.lengths.tolist(), packed.lengths[1].item()]
    for number, text in enumerate(mixed):
        alone, _ = encode_tokens(multi, [text], "passage", "fp32").take([0])
        torch.testing.assert_close(packed.take([number])[0], alone, atol=1e-5, rtol=0)
    assert isinstance(packed, TokenVectors)
