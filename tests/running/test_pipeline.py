"""The whole way, mining to report, with tiny random models of the architectures that the course is for."""

import json
import math

import numpy as np
import pytest
import torch

from helpers.base.errors import ModelError, SettingError
from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex
from helpers.encoder import load_encoder, save_memory
from helpers.evaluation import hit_at_k, hit_ranks
from helpers.negatives import mine_pool
from helpers.profiles import saved_profile
from helpers.reporting.report import Report
from helpers.retrieval import dense_run
from helpers.strategies import bm25_strategy
from helpers.training import Task, TrainingSettings, train
from tests.tiny_models import save_bert, save_xlm

# folder -> how to save it, prefixes, pooling, longest text: XLM-R's positions start at 2
MODELS = {
    "bert-random": (save_bert, ("", ""), "mean", 66),
    "xlm-roberta-random": (save_xlm, ("", ""), "mean", 64),
    "bge-m3-tiny": (save_xlm, ("query: ", "passage: "), "cls", 64),
}


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, sample_passages, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / name
    MODELS[name][0](folder, sample_passages.texts)
    return folder


@pytest.fixture
def encoder(folder):
    return load_encoder(str(folder), device="cpu")


def test_the_profile_follows_the_folders_name(name, folder, encoder):
    _, prefixes, pooling, longest = MODELS[name]
    profile = encoder.profile
    assert (profile.query_prefix, profile.passage_prefix) == prefixes
    assert (profile.pooling, profile.max_length, profile.normalize) == (pooling, longest, True)
    assert (profile.base_model, profile.scheme) == (str(folder), "auto")


def test_the_longest_text_fits_and_no_longer_one(name, folder, encoder):
    longest = MODELS[name][3]
    text = "river " * 200
    assert len(encoder.tokenize([text], "passage")[0]) == longest
    assert np.isfinite(encoder.encode([text, text + "sea"], "passage")).all()
    with pytest.raises(SettingError, match=f"{longest + 1}.*{longest} tokens"):
        load_encoder(str(folder), max_length=longest + 1, device="cpu")


def test_padding_never_changes_a_vector(encoder, sample_passages):
    texts = ["Sea.", *sample_passages.texts[:5], "A river in the north."]
    alone = np.concatenate([encoder.encode([text], "passage") for text in texts])
    np.testing.assert_allclose(encoder.encode(texts, "passage"), alone, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.01


def test_queries_and_passages_differ_by_their_prefixes_alone(name, encoder):
    prefixes = MODELS[name][1]
    query, passage = (encoder.tokenize(["Old rivers"], kind)[0] for kind in ("query", "passage"))
    assert (query == passage) is (prefixes[0] == prefixes[1])
    plain = encoder.tokenizer([prefix + "Old rivers" for prefix in prefixes])["input_ids"]
    assert [query, passage] == plain
    assert query[0] == encoder.tokenizer.cls_token_id
    assert query[-1] == encoder.tokenizer.sep_token_id


def test_from_mining_to_the_report(name, encoder, sample, tmp_path):
    train_passages, dev_passages = PassageIndex(sample.training_corpus()), PassageIndex(sample.evaluation_corpus())
    dev = {qid: sample.queries[qid].text for qid in sample.split_queries("dev", limit=60)}
    bm25 = bm25_strategy(sample, train_passages)
    pool = mine_pool(sample, train_passages, bm25, sample.split_queries("train", limit=32))
    rows = TrainingRows(sample, train_passages, pool.ids(), hard_negatives=2)
    ranks, relevant = {}, {}

    def search(system, model):
        run = dense_run(system, model, dev, dev_passages, k=100)
        assert [len(ranking) for ranking in run.rankings] == [100] * len(dev)
        assert np.isfinite(run.scores).all()
        ranks[system], relevant[system] = hit_ranks(run, sample, dev_passages, "dev")
        return relevant[system]

    search("zero-shot", encoder)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    asked = []

    def evaluate(model):  # dev improves, whatever four steps do to a random model
        asked.append(hit_at_k(search("dev", model), 10))
        return len(asked)

    settings = TrainingSettings(batch_size=8, max_steps=4, learning_rate=1e-3, eval_every=2)
    task = Task(rows, evaluate, about={"data": sample.fingerprint})
    history = train(encoder, task, settings, tmp_path / "trained")
    assert [entry["step"] for entry in history] == [0, 1, 2, 3, 4]
    assert all(math.isfinite(entry["loss"]) and entry["gradient_norm"] > 0 for entry in history[1:])
    assert len(asked) == 3

    again = load_encoder(str(tmp_path / "trained"), device="cpu")
    assert again.profile == encoder.profile == saved_profile(tmp_path / "trained")
    changed = [key for key, value in again.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) > len(before) / 2
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert value.isfinite().all()

    search("trained", again)
    vectors = again.encode(dev_passages.texts, "passage")
    assert vectors.shape == (len(dev_passages), 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    del ranks["dev"], relevant["dev"]
    Report(ranks, relevant, len(dev_passages), {"model": name}).save(tmp_path / "report")
    got = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [system["name"] for system in got["systems"]] == ["zero-shot", "trained"]
    assert (got["questions"], got["passages"]) == (60, len(dev_passages))


def test_a_trained_model_keeps_its_profile_under_any_folder_name(name, encoder, tmp_path):
    encoder.save(tmp_path / "e5-something")
    assert load_encoder(str(tmp_path / "e5-something"), device="cpu").profile == encoder.profile
    with pytest.raises(ModelError, match=r"was trained with .* was asked for"):
        load_encoder(str(tmp_path / "e5-something"), prefixes=["ask: ", ""], device="cpu")


def test_gradient_checkpointing_changes_no_gradient(folder, sample_passages):
    gradients = []
    for checkpointing in (False, True):
        encoder = save_memory(load_encoder(str(folder), device="cpu"), gradient_checkpointing=checkpointing)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        encoder.train()
        encoder(**encoder.pad(encoder.tokenize(sample_passages.texts[:4], "passage"), "passage"))[:, 0].sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
