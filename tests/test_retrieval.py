"""Search against plain implementations, and run files against ir-measures."""

import math
from collections import Counter
from dataclasses import replace

import bm25s
import ir_measures
import numpy as np
import pytest
import torch

import helpers.base.nearest
import helpers.retrieval
from helpers.base.errors import DataError
from helpers.base.nearest import best_k, nearest
from helpers.encoder import save_memory
from helpers.evaluation import first_relevant, hit_at_k, hit_ranks
from helpers.retrieval import BM25, DenseIndex, Run, bm25_run, dense_run, dense_search, load_run, search_run


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 3, 17, 1024])
@pytest.mark.parametrize("k", [1, 10, 50])
def test_dense_search_is_a_full_sort(monkeypatch, k, chunk):
    monkeypatch.setattr(helpers.base.nearest, "QUESTIONS", chunk)
    queries, passages = vectors(17, 12), vectors(50, 12, seed=1)
    rows, scores = dense_search(queries, passages, k)
    expected = np.argsort(-(queries @ passages.T), axis=1)[:, :k]
    assert (rows == expected).all()
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ passages.T, expected, axis=1), rtol=1e-5, atol=1e-5)


def test_k_is_cut_to_the_corpus():
    rows, scores = dense_search(vectors(3, 4), vectors(5, 4, seed=1), k=100)
    assert rows.shape == scores.shape == (3, 5)
    assert all(sorted(row) == list(range(5)) for row in rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["query", "passage"])
def test_a_vector_that_is_not_finite_is_an_error(what, bad):
    both = {"query": vectors(4, 3), "passage": vectors(6, 3)}
    both[what][2, 1] = bad
    with pytest.raises(DataError, match=f"{what} vector 2 is NaN or infinite"):
        dense_search(both["query"], both["passage"], 2)


def test_no_question_gives_no_ranking():
    rows, scores = dense_search(vectors(0, 4), vectors(5, 4), k=3)
    assert rows.shape == scores.shape == (0, 3)
    assert BM25(DOCUMENTS).search([], k=3) == ([], [])


@pytest.mark.parametrize("block", [1, 7, 64, 999, 5000])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_search_block_by_block_is_best_k_of_everything(monkeypatch, k, block):
    monkeypatch.setattr(helpers.base.nearest, "MAX_SCORES", {"cpu": 12 * block})
    queries, passages = torch.from_numpy(vectors(12, 16)), torch.from_numpy(vectors(4000, 16, seed=1))
    passages[1000:1050], passages[3000:3050] = passages[:50], passages[:50]  # equal scores, far apart
    passages = passages[passages.sum(1).sort().indices] if k == 10 else passages  # the best ones last
    rows, values = map(torch.from_numpy, nearest(queries, passages, k))
    everything = torch.stack([queries @ passage for passage in passages], dim=1)
    expected, scores = best_k(everything, k)
    torch.testing.assert_close(values, scores)
    same = rows == expected
    near = (everything.gather(1, rows) - scores).abs() < 1e-5  # a sum in another order differs in its last bits
    assert (same | near).all() and same.float().mean() > 0.99


def test_search_with_scores_that_are_exact_is_a_stable_sort_whatever_the_block(monkeypatch):
    draw = np.random.default_rng(3)
    queries, passages = (torch.from_numpy(draw.integers(-2, 3, (rows, 6)).astype(np.float32)) for rows in (9, 700))
    expected = np.argsort(-(queries @ passages.T).numpy(), axis=1, kind="stable")
    for block in (1, 3, 50, 333, 700):
        monkeypatch.setattr(helpers.base.nearest, "MAX_SCORES", {"cpu": 9 * block})
        for k in (1, 5, 40, 700, 900):
            assert nearest(queries, passages, k)[0].tolist() == expected[:, :k].tolist()


# equal scores


@pytest.mark.parametrize("k", range(1, 31))
def test_equal_scores_come_in_corpus_order(k):
    scores = torch.from_numpy(np.random.default_rng(k).integers(0, 4, (40, 30)).astype(np.float32))
    scores[0], scores[1] = 1, torch.arange(30)  # nothing but ties, and none
    columns, values = best_k(scores, k)
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
    assert columns.tolist() == expected.tolist()
    assert values.tolist() == np.take_along_axis(scores.numpy(), expected, axis=1).tolist()


@pytest.mark.parametrize("k", [1, 3, 5, 8, 12, 20, 99])
def test_duplicated_passages_keep_the_corpus_order_wherever_k_cuts(k):
    different = np.random.default_rng(0).integers(-3, 4, (4, 8)).astype(np.float32)  # their products are exact
    passages = different[np.random.default_rng(1).integers(0, 4, 20)]
    queries = np.random.default_rng(2).integers(-3, 4, (30, 8)).astype(np.float32)
    expected = np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :k]
    assert dense_search(queries, passages, k)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("k", [1, 2, 4, 5, 6, 99])
def test_bm25_keeps_the_corpus_order_wherever_k_cuts(k):
    documents = ["a river", "the fjord", "river", "Oslo", "river", "waltz and opera", "river", "river"]
    (rows,), (scores,) = BM25(documents).search(["river"], k)
    assert rows.tolist() == [0, 2, 4, 6, 7][:k]
    assert len(set(scores.tolist())) == 1


def test_dense_run_finds_each_passage_by_its_own_text(short_bert, sample_passages):
    queries = {f"q{number}": sample_passages.texts[number] for number in range(0, 200, 20)}
    run = dense_run("self", short_bert, queries, sample_passages, k=5)
    assert run.qids == list(queries)
    assert [ranking[0] for ranking in run.rankings] == list(range(0, 200, 20))
    assert all((np.diff(scores) <= 0).all() for scores in run.scores)
    assert {len(ranking) for ranking in run.rankings} == {5}


def test_an_index_is_built_once_and_answers_one_question_like_many(short_bert, sample_passages):
    queries = {f"q{number}": sample_passages.texts[number][:60] for number in range(0, 100, 10)}
    for index in (DenseIndex(short_bert, sample_passages.texts), BM25(sample_passages.texts)):
        run = search_run("all", index, queries, k=5)
        for text, ranking, scores in zip(queries.values(), run.rankings, run.scores, strict=True):
            rows, one = index.search([text], 5)
            assert rows[0].tolist() == ranking.tolist()
            np.testing.assert_allclose(one[0], scores, rtol=1e-5)


# an encoder with its corpus vectors

TEXTS = ["The Seine crosses Paris.", "Oslo lies in Norway.", "Bern", "Vienna, Danube, waltz"]


@pytest.fixture
def encoded(own_bert, monkeypatch):
    """Collect the kinds of text that are encoded, one entry per call."""
    calls, encode = [], own_bert.encode

    def counted(texts, kind, **more):
        calls.append(kind)
        return encode(texts, kind, **more)

    monkeypatch.setattr(own_bert, "encode", counted)
    return calls


def test_an_index_encodes_passages_as_passages_once_and_when_they_are_needed(own_bert, encoded, monkeypatch):
    own_bert.profile = replace(own_bert.profile, query_prefix="ask: ", passage_prefix="read: ")
    monkeypatch.setattr(own_bert, "fingerprint", lambda: pytest.fail("hashing all weights takes long"))
    index = DenseIndex(own_bert, TEXTS)
    assert encoded == []
    rows, scores = index.search(["Where is Bern?", "a waltz"], 3)
    assert index.search(["Where is Bern?", "a waltz"], 3)[0].tolist() == rows.tolist()
    assert encoded.count("passage") == 1
    own_bert.profile = replace(own_bert.profile, query_prefix="", passage_prefix="")
    wanted = own_bert.encode([f"read: {text}" for text in TEXTS], "passage")
    asked = own_bert.encode(["ask: Where is Bern?", "ask: a waltz"], "query")
    np.testing.assert_allclose(scores, -np.sort(-(asked @ wanted.T), axis=1)[:, :3], rtol=1e-5)


def test_vectors_can_be_searched_with_vectors(bert_tiny):
    index = DenseIndex(bert_tiny, TEXTS)
    assert index.vectors.device == bert_tiny.device and torch.is_tensor(index.vectors)
    np.testing.assert_array_equal(index.vectors.numpy(), bert_tiny.encode(TEXTS, "passage"))
    query_vecs = bert_tiny.encode(["Where is Bern?"], "query")
    for got, expected in zip(index.search_vectors(query_vecs, 2), index.search(["Where is Bern?"], 2), strict=True):
        np.testing.assert_array_equal(got, expected)


def step_with(**options):
    """Return what trains an encoder for one step with AdamW."""

    def step(encoder, _folder):
        parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.01, **options)
        encoder(**encoder.pad(encoder.tokenize(TEXTS, "passage"), "passage")).pow(3).sum().backward()
        optimizer.step()

    return step


def one_weight(encoder, _folder):
    with torch.no_grad():
        encoder.model.embeddings.LayerNorm.bias[3] += 1


def through_data(encoder, _folder):
    encoder.model.embeddings.LayerNorm.bias.data += 1e-3


def new_weights(encoder, _folder):
    encoder.load_state_dict({name: 1.01 * tensor for name, tensor in encoder.state_dict().items()})


def another_profile(encoder, _folder):
    encoder.profile = replace(encoder.profile, passage_prefix="passage: ")


def a_saved_model(encoder, folder):
    """Load what another encoder saved."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    new_weights(encoder, folder)
    encoder.save(folder / "model")
    encoder.load_state_dict(before)
    encoder.restore(folder / "model")


CHANGES = [
    pytest.param(step_with(fused=True), id="fused"),  # this optimizer raises no tensor's `_version`
    pytest.param(step_with(foreach=True), id="foreach"),
    pytest.param(step_with(foreach=False), id="plain"),
    one_weight,
    through_data,
    new_weights,
    another_profile,
    a_saved_model,
]


@pytest.mark.parametrize("change", CHANGES)
def test_no_vector_outlives_the_weights_that_made_it(own_bert, encoded, tmp_path, change):
    index = DenseIndex(own_bert, TEXTS)
    before = index.vectors
    change(own_bert, tmp_path)
    after = index.vectors
    assert not torch.equal(before, after)
    np.testing.assert_array_equal(after.numpy(), own_bert.encode(TEXTS, "passage"))
    assert index.vectors is after  # and they are kept as long as these weights


def test_adapters_are_weights_too(own_bert):
    save_memory(own_bert, lora_rank=2)
    index = DenseIndex(own_bert, TEXTS)
    before = index.vectors
    step_with(fused=True)(own_bert, None)
    assert not torch.equal(index.vectors, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_encoder_is_an_error(own_bert, bad):
    with torch.no_grad():
        own_bert.model.embeddings.LayerNorm.bias[3] = bad
    index = DenseIndex(own_bert, TEXTS)
    for what in ("query", "passage"):
        with pytest.raises(DataError, match=f"{what} vector 0 is NaN or infinite"):
            index.search(["Bern"], 1) if what == "query" else index.vectors


DOCUMENTS = [
    "The river Seine crosses Paris; a river town.",
    "Rome lies on the Tiber river.",
    "Oslo lies in Norway, near a fjord",
    "river river RIVER",
    "Vienna, Danube, waltz, opera, music, café",
    "Bern",
]
QUESTIONS = [
    "Which river crosses Paris?",
    "OSLO river fjord",
    "river river Seine",
    "Where is the café?",
    "Bern Bern",
    "unheard words",
    "the of",
]


def lucene(query, documents, k1, b):
    """Return the score of every document, by the formula; queries and documents are lists of words."""
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for word in query:
            df = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            score += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return np.array(scores)


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (1.2, 0.0)])
def test_bm25_is_lucenes_formula(k1, b):
    def words(texts):
        return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)

    rankings, scores = BM25(DOCUMENTS, k1, b).search(QUESTIONS, k=6)
    for query, ranking, got in zip(words(QUESTIONS), rankings, scores, strict=True):
        expected = lucene(query, words(DOCUMENTS), k1, b)
        assert set(ranking) == set(np.flatnonzero(expected))  # what shares no word is left out
        np.testing.assert_allclose(got, expected[ranking], rtol=1e-5)
        assert (np.diff(got) <= 0).all()


def test_bm25_gives_the_first_k_alone():
    index = BM25(DOCUMENTS)
    whole, cut = index.search(["river"], k=99)[0][0], index.search(["river"], k=2)[0][0]
    assert len(whole) == 3
    assert cut.tolist() == whole[:2].tolist()


@pytest.mark.parametrize(
    ("question", "rows"),
    [
        ("北京在哪里?", [1]),  # inside a clause
        ("京北", []),  # neither pair stands there
        ("東京タワー", [2]),
        ("กรุงเทพ", [3]),
        ("river 北京", [0, 1]),
        ("北", [4]),  # one character between others is no pair
    ],
)
def test_bm25_finds_words_in_scripts_without_spaces(question, rows):
    documents = ["a river river river", "我国首都是北京市", "東京タワーは高い", "เมืองหลวงคือกรุงเทพมหานคร", "Oslo 北"]
    index = BM25(documents)
    assert sorted(index.search([question], 5)[0][0].tolist()) == rows
    assert index.tokenizer.endswith("and pairs of characters")
    assert not BM25(DOCUMENTS).tokenizer.endswith("and pairs of characters")


def test_texts_without_a_word_are_not_a_crash():
    assert [len(ranking) for ranking in BM25(["of the", "is a"]).search(["river"], 2)[0]] == [0]


@pytest.fixture(scope="module")
def dev(sample, eval_passages):
    return eval_passages, {qid: sample.queries[qid].text for qid in sample.split_queries("dev")}


@pytest.fixture(scope="module")
def runs(dev, short_bert):
    passages, queries = dev
    return {"bm25": bm25_run("bm25", queries, passages), "dense": dense_run("dense", short_bert, queries, passages)}


@pytest.mark.parametrize("name", ["bm25", "dense"])
def test_a_run_survives_its_file(runs, dev, tmp_path, name):
    passages, queries = dev
    run = runs[name]
    run.save(tmp_path / "run.txt", passages.ids)
    again = load_run(tmp_path / "run.txt", passages.row, list(queries))
    assert (again.name, again.qids) == (name, run.qids)
    for one, other in zip(run.rankings, again.rankings, strict=True):
        assert one.tolist() == other.tolist()
    for one, other in zip(run.scores, again.scores, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)  # equal ones are written a little apart


@pytest.mark.parametrize("name", ["bm25", "dense"])
def test_hit_at_k_is_success_at_k_of_ir_measures(sample, runs, dev, tmp_path, name):
    passages, queries = dev
    runs[name].save(tmp_path / "run.txt", passages.ids)
    ranks = hit_ranks(runs[name], sample, passages, "dev")[1]
    relevant = [{passages.row[pid] for pid in sample.qrels["dev"][qid]} for qid in queries]
    assert (ranks == first_relevant(runs[name].rankings, relevant)).all()
    qrels = [ir_measures.Qrel(qid, pid, 1) for qid, pids in sample.qrels["dev"].items() for pid in pids]
    measures = [ir_measures.Success @ k for k in (1, 2, 5, 10, 100)]
    got = ir_measures.calc_aggregate(measures, qrels, ir_measures.read_trec_run(str(tmp_path / "run.txt")))
    assert 0 < hit_at_k(ranks, 1) < hit_at_k(ranks, 10)
    for measure in measures:
        assert got[measure] == hit_at_k(ranks, measure["cutoff"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_not_saved(tmp_path, bad):
    run = Run("mine", ["q0", "q1"], [np.arange(2)] * 2, [np.array([1.0, 0.5]), np.array([1.0, bad])])
    with pytest.raises(DataError, match="mine: question 'q1' has a score that is NaN or infinite"):
        run.save(tmp_path / "run.txt", ["p0", "p1"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_search_that_gives_no_finite_score_is_an_error(bad):
    class Index:
        def search(self, queries, k):
            return np.zeros((2, 1), int), np.array([[1.0], [bad]])

    with pytest.raises(DataError, match="mine: question 'q1' has a score that is NaN or infinite"):
        search_run("mine", Index(), {"q0": "a", "q1": "b"}, 1)


def test_products_beyond_the_largest_number_are_an_error():
    class Far:
        device = torch.device("cpu")

        def search_vectors(self, texts, kind, progress=""):
            return np.full((len(texts), 2), 1e30, np.float32)

    with pytest.raises(DataError, match="far: question 'q0' has a score that is NaN or infinite"):
        search_run("far", DenseIndex(Far(), TEXTS), {"q0": "a"}, 1)


def test_a_full_disk_is_told_and_leaves_the_old_run(tmp_path, full_disk):
    run = Run("mine", ["q0"], [np.arange(1)], [np.array([1.0])])
    run.save(tmp_path / "run.txt", ["p0"])
    before = (tmp_path / "run.txt").read_bytes()
    run.rankings, run.scores = [np.arange(500)], [np.ones(500)]
    with full_disk(100), pytest.raises(DataError, match=r"run\.txt"):
        run.save(tmp_path / "run.txt", [f"p{row}" for row in range(500)])
    assert [path.name for path in tmp_path.iterdir()] == ["run.txt"]
    assert (tmp_path / "run.txt").read_bytes() == before


@pytest.mark.parametrize("scores", [[2.5] * 4, [1, 1 - 1e-9, 0.5, 0.5], [0.0] * 4, [-3, -3, -3, -4]])
@pytest.mark.parametrize("ids", ["abcd", "dcba", "bdac"])
def test_every_tool_keeps_the_order_of_equal_scores(tmp_path, scores, ids):
    Run("ties", ["q"], [np.arange(4)], [np.array(scores)]).save(tmp_path / "run.txt", ids)
    again = load_run(tmp_path / "run.txt", {pid: row for row, pid in enumerate(ids)}, ["q"])
    assert again.rankings[0].tolist() == [0, 1, 2, 3]
    saved = list(ir_measures.read_trec_run(str(tmp_path / "run.txt")))
    for rank, pid in enumerate(ids, start=1):
        measures = [ir_measures.RR @ 10, ir_measures.RR]  # computed by MS MARCO's script and by trec_eval
        got = ir_measures.calc_aggregate(measures, [ir_measures.Qrel("q", pid, 1)], saved)
        assert [got[measure] for measure in measures] == pytest.approx([1 / rank] * 2)


@pytest.mark.parametrize("name", ["bm25", "dense"])
def test_ir_measures_agrees_with_the_formulas_on_saved_runs(sample, runs, dev, tmp_path, name):
    passages, queries = dev
    qrels = {qid: set(sample.qrels["dev"][qid]) for qid in queries}
    for qid in list(qrels)[::3]:
        qrels[qid].add(passages.ids[runs[name].rankings[list(queries).index(qid)][1]])  # some with two judged passages
    runs[name].save(tmp_path / "run.txt", passages.ids)
    reciprocal, gain, recall = [], [], []
    for qid, ranking in zip(runs[name].qids, runs[name].rankings, strict=True):
        found = [rank for rank, row in enumerate(ranking, start=1) if passages.ids[row] in qrels[qid]]
        reciprocal.append(next((1 / rank for rank in found if rank <= 10), 0))
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, len(qrels[qid]) + 1))
        gain.append(sum(1 / math.log2(rank + 1) for rank in found if rank <= 10) / ideal)
        recall.append(len(found) / len(qrels[qid]))
    judged = [ir_measures.Qrel(qid, pid, 1) for qid, pids in qrels.items() for pid in pids]
    measures = [ir_measures.RR @ 10, ir_measures.nDCG @ 10, ir_measures.R @ 100]
    got = ir_measures.calc_aggregate(measures, judged, ir_measures.read_trec_run(str(tmp_path / "run.txt")))
    for measure, expected in zip(measures, (reciprocal, gain, recall), strict=True):
        assert got[measure] == pytest.approx(np.mean(expected), abs=1e-9)


def test_a_question_that_the_file_leaves_out_has_an_empty_ranking(tmp_path):
    (tmp_path / "run.txt").write_text("q1 Q0 p1 1 0.5 mine\nq9 Q0 p0 1 0.5 mine\n")
    run = load_run(tmp_path / "run.txt", {"p0": 0, "p1": 1}, ["q0", "q1"])
    assert [ranking.tolist() for ranking in run.rankings] == [[], [1]]
    assert first_relevant(run.rankings, [{0}, {1}]).tolist() == [math.inf, 1]


def test_scores_decide_the_order_and_the_last_id_comes_first_among_equals(tmp_path):
    lines = [
        "q Q0 a 1 0.1 x",
        "q Q0 b 2 0.9 x",
        "",
        "q\tQ0\tc\t3\t.5\tx",
        "q Q0 d 4 5e-1 x",
        "q Q0 B 0 0.50000000001 x",
    ]
    (tmp_path / "run.txt").write_text("\n".join(lines))
    run = load_run(tmp_path / "run.txt", {"a": 0, "b": 1, "c": 2, "d": 3, "B": 4}, ["q"])
    assert run.rankings[0].tolist() == [1, 3, 2, 4, 0]  # as float32, the last three scores are equal


@pytest.mark.parametrize("tool", ["ir_measures", "BEIR", "trec_eval"])
def test_runs_of_other_tools_get_their_success_at_k(sample, sample_passages, tmp_path, tool):
    random, qids = np.random.default_rng(0), sample.split_queries("dev")
    lines, judged = [], sample.qrels["dev"]
    for qid in qids[3:]:  # some questions are left out
        rows = {*random.choice(len(sample_passages), 30, replace=False), *(sample_passages.row[p] for p in judged[qid])}
        scores = np.round(random.random(len(rows)) * 8) / 8  # many ties, in no order
        for rank, (row, score) in enumerate(zip(rows, scores, strict=True)):
            line = [qid, "Q0", sample_passages.ids[row], str(0 if tool == "BEIR" else rank), repr(float(score)), tool]
            lines.append(("\t" if tool == "trec_eval" else " ").join(line))
    random.shuffle(lines)
    (tmp_path / "run.txt").write_text("\n".join(lines))
    ranks = hit_ranks(load_run(tmp_path / "run.txt", sample_passages.row, qids), sample, sample_passages, "dev")[1]
    qrels = [ir_measures.Qrel(qid, pid, 1) for qid in qids for pid in judged[qid]]
    measures = [ir_measures.Success @ k for k in (1, 5, 10, 20, 50, 100)]
    got = ir_measures.calc_aggregate(measures, qrels, ir_measures.read_trec_run(str(tmp_path / "run.txt")))
    assert [got[measure] for measure in measures] == [hit_at_k(ranks, k) for k in (1, 5, 10, 20, 50, 100)]
    assert 0 < got[measures[0]] < got[measures[1]] < got[measures[3]] < 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 p1 1 0.5", "5 fields"),
        ("q1 Q0 p1 1 0.5 my run", "7 fields"),
        ("garbage", "1 fields"),
        ("q1 Q0 p7 1 0.5 x", "'p7' is not in the corpus"),
        ("q1 Q0 p1 1 high x", "the score 'high' is not a finite number"),
        ("q1 Q0 p1 1 nan x", "the score 'nan' is not a finite number"),
        ("q1 Q0 p1 1 -inf x", "the score '-inf' is not a finite number"),
        ("q1 Q0 p1 1 1.2.3 x", "the score '1.2.3' is not a finite number"),
        ("q1 Q0 p0 2 0.4 x", "passage 'p0' is ranked twice for question 'q1'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    (tmp_path / "run.txt").write_text(f"q1 Q0 p0 1 0.5 x\n{line}\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_run(tmp_path / "run.txt", {"p0": 0, "p1": 1}, ["q1"])
    assert isinstance(caught.value, DataError)
    assert "run.txt:2:" in str(caught.value)


def test_a_run_of_other_questions_is_an_error_where_most_must_be_there(tmp_path):
    (tmp_path / "run.txt").write_text("q1 Q0 p0 1 0.5 x\n")
    assert load_run(tmp_path / "run.txt", {"p0": 0}, ["q1", "q2"], least=0.5).rankings[1].size == 0
    with pytest.raises(DataError, match="only 1 of 3 questions have a line"):
        load_run(tmp_path / "run.txt", {"p0": 0}, ["q1", "q2", "q3"], least=0.5)


def test_what_is_no_file_is_an_error(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    for path in (tmp_path / "none.txt", tmp_path, tmp_path / "circle"):
        with pytest.raises(DataError, match="not readable as a TREC run file"):
            load_run(path, {}, [])


def test_a_run_with_a_space_in_its_name_can_be_read_again(tmp_path):
    Run("my run", ["q"], [np.array([0])], [np.array([1.0])]).save(tmp_path / "run.txt", ["p0"])
    assert load_run(tmp_path / "run.txt", {"p0": 0}, ["q"]).rankings[0].tolist() == [0]
