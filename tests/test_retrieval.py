"""Search against plain implementations, and run files against ir-measures."""

import math
from collections import Counter

import bm25s
import ir_measures
import numpy as np
import pytest

from helpers.base.errors import DataError
from helpers.dataset import PassageIndex
from helpers.evaluation import first_relevant, hit_at_k, hit_ranks
from helpers.retrieval import BM25, DenseIndex, Run, bm25_run, dense_run, dense_search, load_run, search_run


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 3, 17, 1024])
@pytest.mark.parametrize("k", [1, 10, 50])
def test_dense_search_is_a_full_sort(k, chunk):
    queries, passages = vectors(17, 12), vectors(50, 12, seed=1)
    rows, scores = dense_search(queries, passages, k, chunk)
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


def test_dense_run_finds_each_passage_by_its_own_text(bert_tiny, sample_passages):
    queries = {f"q{number}": sample_passages.texts[number] for number in range(0, 200, 20)}
    run = dense_run("self", bert_tiny, queries, sample_passages, k=5)
    assert run.qids == list(queries)
    assert [ranking[0] for ranking in run.rankings] == list(range(0, 200, 20))
    assert all((np.diff(scores) <= 0).all() for scores in run.scores)
    assert {len(ranking) for ranking in run.rankings} == {5}


def test_an_index_is_built_once_and_answers_one_question_like_many(bert_tiny, sample_passages):
    queries = {f"q{number}": sample_passages.texts[number][:60] for number in range(0, 100, 10)}
    for index in (DenseIndex(bert_tiny, sample_passages.texts), BM25(sample_passages.texts)):
        run = search_run("all", index, queries, k=5)
        for text, ranking, scores in zip(queries.values(), run.rankings, run.scores, strict=True):
            rows, one = index.search([text], 5)
            assert rows[0].tolist() == ranking.tolist()
            np.testing.assert_allclose(one[0], scores, rtol=1e-5)


DOCUMENTS = ["The river Seine crosses Paris; a river town.", "Rome lies on the Tiber river.",
             "Oslo lies in Norway, near a fjord", "river river RIVER", "Vienna, Danube, waltz, opera, music, café",
             "Bern"]  # fmt: skip
QUESTIONS = ["Which river crosses Paris?", "OSLO river fjord", "river river Seine", "Where is the café?", "Bern Bern",
             "unheard words", "the of"]  # fmt: skip


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


def test_texts_without_a_word_are_not_a_crash():
    assert [len(ranking) for ranking in BM25(["of the", "is a"]).search(["river"], 2)[0]] == [0]


@pytest.fixture(scope="module")
def dev(sample):
    passages = PassageIndex(sample.evaluation_corpus())
    queries = {qid: sample.queries[qid].text for qid in sample.split_queries("dev")}
    return passages, queries


@pytest.fixture(scope="module")
def runs(dev, bert_tiny):
    passages, queries = dev
    return {"bm25": bm25_run("bm25", queries, passages), "dense": dense_run("dense", bert_tiny, queries, passages)}


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
)  # fmt: skip
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


def test_a_missing_run_file_is_an_error(tmp_path):
    with pytest.raises(DataError):
        load_run(tmp_path / "none.txt", {}, [])


def test_a_run_with_a_space_in_its_name_can_be_read_again(tmp_path):
    Run("my run", ["q"], [np.array([0])], [np.array([1.0])]).save(tmp_path / "run.txt", ["p0"])
    assert load_run(tmp_path / "run.txt", {"p0": 0}, ["q"]).rankings[0].tolist() == [0]
