"""BGE-M3's three outputs and its joint loss against FlagEmbedding, with the same random weights on disk."""

import importlib

import numpy as np
import pytest
import torch

from helpers.base.errors import ModelError
from helpers.batches import TrainingRows, make_batch
from helpers.encoder import load_encoder, pad_texts
from helpers.gradients import add_gradient, make_engine
from helpers.topics.late_interaction import MultiVectorEncoder, maxsim_search
from helpers.topics.m3 import M3Encoder, encode_m3, m3_loss
from helpers.training import Task, TrainingSettings, train
from tests.tiny_models import save_xlm

SENTENCES = [
    "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.",
    "Москва стоит на реке Москве.",
    "北京是中国的首都,人口超过两千万。",
    "東京は日本の首都です。",
    "서울은 대한민국의 수도이다.",
    "القاهرة هي عاصمة مصر",
    "ירושלים היא עיר עתיקה",
    "दिल्ली भारत की राजधानी है।",
    "กรุงเทพเป็นเมืองหลวงของประเทศไทย",
    "Zażółć gęślą jaźń.",
    "¿Dónde está la biblioteca?",
    "O coração da cidade 🏙️ é a praça.",
    "E = mc², 3 × 10⁸ m/s; 12,5 %.",
]


@pytest.fixture(scope="module")
def texts(sample_passages):
    """200 texts of one to hundreds of words, in a dozen scripts."""
    english = [" ".join(text.split()[: 1 + 7 * number % 90]) for number, text in enumerate(sample_passages.texts[:120])]
    others = [" ".join(SENTENCES[(number + step) % 13] for step in range(1 + number % 6)) for number in range(80)]
    return english + others


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    """An XLM-RoBERTa of random weights with both heads, as BGE-M3's repository has them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "bge-m3-random"
    save_xlm(folder, texts)
    for name, outputs in (("sparse_linear.pt", 1), ("colbert_linear.pt", 32)):
        head = torch.nn.Linear(32, outputs)
        torch.nn.init.constant_(head.bias, 0.2)  # or most words would get no weight
        torch.save(head.state_dict(), folder / name)
    return folder


@pytest.fixture(scope="module")
def m3(folder):
    return load_encoder(str(folder), "none", device="cpu", encoder_class=M3Encoder)


@pytest.fixture(scope="module")
def reference(folder):
    module = importlib.import_module("FlagEmbedding")
    return module.BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu", query_max_length=64, passage_max_length=64)


def test_all_three_outputs_equal_flagembeddings_on_200_texts(m3, reference, texts):
    lengths = [len(ids) for ids in m3.tokenize(texts, "passage")]
    assert len(texts) == 200 and min(lengths) <= 4 and max(lengths) == 64 and len(set(lengths)) > 20
    dense, words, tokens = encode_m3(m3, texts, "passage", "fp32")
    expected = reference.encode(texts, batch_size=16, max_length=64, return_sparse=True, return_colbert_vecs=True)
    np.testing.assert_allclose(dense, expected["dense_vecs"], atol=1e-4)
    assert sum(map(len, expected["lexical_weights"])) > 1000  # the heads are not mute
    for number, (weights, vectors) in enumerate(
        zip(expected["lexical_weights"], expected["colbert_vecs"], strict=True)
    ):
        row = words[[number]].tocoo()
        assert dict(zip(map(str, row.coords[1].tolist()), row.data.tolist(), strict=True)) == pytest.approx(
            dict(weights), abs=1e-4
        )
        np.testing.assert_allclose(tokens.take([number])[0], vectors, atol=1e-4)


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.4, 0.2, 0.4)])
def test_the_scores_and_their_weighted_mean_equal_flagembeddings(m3, reference, texts, weights):
    queries, passages = texts[::-1][:100], texts[:100]
    expected = reference.compute_score(
        list(zip(queries, passages, strict=True)), weights_for_different_modes=list(weights)
    )
    with torch.no_grad():
        vectors = [
            torch.from_numpy(m3.encode(part, kind)) for part, kind in ((queries, "query"), (passages, "passage"))
        ]
        scores = m3.similarity(*vectors)  # [3, 100, 100]
    for name, found in zip(("dense", "sparse", "colbert"), scores.diagonal(dim1=1, dim2=2), strict=True):
        np.testing.assert_allclose(found, expected[name], atol=1e-4)
    mean = torch.tensordot(torch.tensor(weights, dtype=torch.float32), scores, 1).diagonal() / sum(weights)
    np.testing.assert_allclose(mean, expected["colbert+sparse+dense"], atol=1e-4)


def test_each_output_searches_with_the_search_of_its_kind(m3, texts):
    dense, words, tokens = encode_m3(m3, texts[:50], "passage", "fp32")
    packed = torch.from_numpy(m3.encode(texts[:50], "passage"))
    scores = m3.similarity(packed[:5], packed)
    np.testing.assert_allclose(dense[:5] @ dense.T, scores[0], atol=1e-4)
    np.testing.assert_allclose((words[:5] @ words.T).toarray(), scores[1], atol=1e-4)
    rows, values = maxsim_search(tokens, tokens, 50)
    for number in range(5):
        np.testing.assert_allclose(values[number], scores[2, number, rows[number]], atol=1e-4)


def test_a_multi_vector_encoder_takes_the_colbert_head(folder, m3, texts):
    multi = load_encoder(str(folder), "none", device="cpu", encoder_class=MultiVectorEncoder)
    tokens = encode_m3(m3, texts[:20], "passage", "fp32")[2]
    vectors = multi.encode(texts[:20], "passage")
    np.testing.assert_allclose(vectors[(vectors != 0).any(-1)], tokens.values, atol=1e-5)


@pytest.fixture
def rows(sample, train_passages):
    return TrainingRows(sample, train_passages, {qid: [] for qid in sample.split_queries("train", 24)}, 0, False)


@pytest.fixture
def doubled(m3, reference):
    """Both in float64: in float32 two tokens of almost one similarity may change places, and so the gradient."""
    heads = [getattr(reference.model, name) for name in ("model", "colbert_linear", "sparse_linear")]
    for module in (m3, *heads):
        module.double()
    yield m3, reference
    for module in (m3, *heads):
        module.float()


@pytest.mark.parametrize("self_distillation", [True, False])
def test_the_joint_loss_equals_flagembeddings(doubled, rows, self_distillation):
    m3, reference = doubled
    batch = make_batch(list({rows[n].positive: rows[n] for n in range(24)}.values())[:6], rows, m3)
    order = batch.positive  # FlagEmbedding wants passage i to answer question i
    assert sorted(order.tolist()) == list(range(6))
    module = importlib.import_module("FlagEmbedding.finetune.embedder.encoder_only.m3.modeling")
    heads = {name: getattr(reference.model, name) for name in ("model", "colbert_linear", "sparse_linear")}
    settings = {"temperature": 0.05, "normalize_embeddings": True, "use_self_distill": self_distillation}
    model = module.EncoderOnlyEmbedderM3Model(heads, m3.tokenizer, **settings)
    tokens = [
        ids[mask > 0].tolist()
        for group in batch.passages
        for ids, mask in zip(group["input_ids"], group["attention_mask"], strict=True)
    ]
    model.train()
    model.model.eval()  # no dropout
    inputs = m3.pad([tokens[column] for column in order], "passage")
    expected = model(batch.queries, inputs).loss
    scores = m3.similarity(m3(**batch.queries), m3(**inputs))
    assert scores.dtype == torch.float64
    whole = type("Everything", (), {"allowed": torch.ones(6, 6, dtype=torch.bool), "positive": torch.arange(6)})
    loss = m3_loss(0.05, self_distillation)(scores, whole)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for name in ("colbert_linear", "sparse_linear"):  # so the ensemble that teaches is not taught itself
        found, wanted = (
            torch.autograd.grad(value, head.weight, retain_graph=True)[0]
            for value, head in ((loss, getattr(m3, name)), (expected, heads[name]))
        )
        assert (found - wanted).norm() < 1e-9 * wanted.norm(), name


def test_masked_passages_have_no_part_in_the_joint_loss():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 2, 4, generator=generator)
    allowed = torch.tensor([[True, True, False, True], [True, True, True, False]])
    batch = type("Batch", (), {"allowed": allowed, "positive": torch.tensor([0, 1])})
    values = []
    for noise in (0.0, 5.0):
        varied = (scores + noise * ~allowed).requires_grad_()
        loss = m3_loss()(varied, batch)
        loss.backward()
        assert not varied.grad[:, ~allowed].any() and varied.grad.isfinite().all()
        values.append(loss.item())
    assert values[0] == values[1]


def test_joint_training_moves_all_heads_and_loads_again(rows, tmp_path):
    encoder = load_encoder("bert-tiny", max_length=48, device="cpu", encoder_class=M3Encoder)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    batch = make_batch([rows[n] for n in range(8)], rows, encoder)
    found = []
    for micro_batch in (0, 3):
        encoder.zero_grad()
        add_gradient(make_engine(encoder, m3_loss(), TrainingSettings()), batch, micro_batch)
        found.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()
    encoder.zero_grad()

    settings, scores = TrainingSettings(epochs=1, max_steps=3, batch_size=8, learning_rate=1e-3), iter([0.1, 0.9])
    task = Task(rows, lambda _: next(scores), m3_loss(), about={"joint": True})
    history = train(encoder, task, settings, tmp_path / "m3")
    assert all(np.isfinite(entry["loss"]) for entry in history[1:])
    after = encoder.state_dict()
    for name in ("sparse_linear.weight", "colbert_linear.weight", "model.embeddings.word_embeddings.weight"):
        assert not torch.equal(before[name], after[name]), name
    again = load_encoder(str(tmp_path / "m3"), device="cpu", encoder_class=M3Encoder)
    assert again.fingerprint() == encoder.fingerprint()
    assert not list((tmp_path / "m3").glob("*.pt"))
    with pytest.raises(ModelError, match="saved as a m3 encoder"):
        load_encoder(str(tmp_path / "m3"), device="cpu")


class Padded(M3Encoder):
    """The same, but every text is padded to `max_length`, as it once was."""

    def output_shape(self, length):
        return super().output_shape(self.profile.max_length)

    def forward(self, input_ids, attention_mask):
        return pad_texts(super().forward(input_ids, attention_mask), self.profile.max_length)


def test_a_forward_is_as_long_as_its_batch_and_trains_like_one_padded_to_max_length(folder, rows):
    found = []
    for kind in (M3Encoder, Padded):
        encoder = load_encoder(str(folder), "none", device="cpu", encoder_class=kind)
        batch, lengths = make_batch([rows[n] for n in range(4)], rows, encoder), []
        encoder.register_forward_hook(lambda _, inputs, output, lengths=lengths: lengths.append(output.shape[1]))
        measures = add_gradient(make_engine(encoder, m3_loss(), TrainingSettings()), batch)
        gradient = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
        found.append((measures["loss"].item(), gradient, lengths))
    longest = [inputs["input_ids"].shape[1] for inputs in (batch.queries, *batch.passages)]
    assert found[0][2] == longest and min(longest) < 64 and found[1][2] == [64] * len(longest)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert (found[0][1] - found[1][1]).norm() < 1e-5 * found[0][1].norm()


def test_token_ids_survive_mixed_precision(m3, texts):
    inputs = m3.pad(m3.tokenize(texts[:8], "passage"), "passage")
    assert inputs["input_ids"].max() > 256  # bf16 holds whole numbers up to 256 only
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        packed = m3(**inputs)
    real = inputs["attention_mask"] > 0
    assert torch.equal(packed[:, : real.shape[1], -1].long()[real], inputs["input_ids"][real])


def test_bge_m3_without_a_head_is_an_error_and_not_a_random_head(folder, tmp_path, m3):
    m3.model.save_pretrained(tmp_path / "bge-m3")
    m3.tokenizer.save_pretrained(tmp_path / "bge-m3")
    for encoder_class, head in ((M3Encoder, "sparse_linear"), (MultiVectorEncoder, "colbert_linear")):
        with pytest.raises(ModelError, match=rf"bge-m3 lacks {head}.pt; fetch all files"):
            load_encoder(str(tmp_path / "bge-m3"), device="cpu", encoder_class=encoder_class)
