"""A question is no passage: where a corpus holds its own questions, they are not mined, trained on or ranked."""

import ir_measures
import numpy as np
import pytest

from helpers.base.columns import repeated
from helpers.batches import TrainingRows, candidate_mask, make_batch
from helpers.dataset import PassageIndex, load_data
from helpers.evaluation import dev_scorer, hit_at_k, hit_ranks, own_rows
from helpers.importing.sources import write_folder
from helpers.negatives import mine_pool
from helpers.retrieval import BM25, DenseIndex, search_run
from helpers.strategies import bm25_strategy, dense_strategy


@pytest.fixture(scope="module")
def folder(sample, tmp_path_factory):
    """The sample as Quora of BEIR is: every question is a passage too, under its own id, some also under another."""
    corpus, splits = list(sample.corpus), {qid: split for split, rows in sample.qrels.items() for qid in rows}
    queries = [{"_id": qid, "text": query.text, "answers": query.answers} for qid, query in sample.queries.items()]
    corpus += [{"_id": qid, "text": sample.queries[qid].text, "split": split} for qid, split in splits.items()]
    again = [qid for qid in splits if qid.endswith("0")]
    corpus += [{"_id": f"again-{q}", "text": f" {sample.queries[q].text}\n", "split": splits[q]} for q in again]
    qrels = {split: [(q, p, 1) for q, pids in rows.items() for p in pids] for split, rows in sample.qrels.items()}
    place = tmp_path_factory.mktemp("copies")
    write_folder(place, corpus, queries, qrels, sample.triples)
    return place


@pytest.fixture
def mirrored(folder):
    return load_data(folder)


@pytest.fixture
def without_the_rule(folder):
    """The same data, but nobody notices that questions are passages."""
    data = load_data(folder)
    data.copies = {}
    return data


def test_copies_are_found_by_text_and_by_id(mirrored, sample):
    wanted = {qid: {qid, *([f"again-{qid}"] if qid.endswith("0") else [])} for qid in sample.queries}
    assert mirrored.copies == wanted
    assert sample.copies == {}


@pytest.mark.parametrize(
    ("passage", "found"),
    [
        ({"_id": "p9", "text": "Where is Oslo?"}, True),
        ({"_id": "p9", "text": "\tWhere is Oslo? \n"}, True),
        ({"_id": "p9", "title": "Where is", "text": "Oslo?"}, True),
        ({"_id": "q1", "title": "Q", "text": "Where is\n Oslo?"}, True),
        ({"_id": "q1", "title": "A debate", "text": "Where is Oslo? In Norway."}, True),
        ({"_id": "p9", "text": "Where is Oslo? In Norway."}, False),  # another id: it may well be an answer
        ({"_id": "p9", "text": "where is oslo"}, False),
        ({"_id": "q1", "text": "Bern lies on the Aare."}, False),  # two numberings with a number in common
        ({"_id": "p2", "text": "Where is Oslo?"}, False),  # judged relevant
    ],
)
def test_what_a_copy_is(tiny_folder, passage, found):
    corpus = [row for row in load_data(tiny_folder).corpus if row["_id"] != passage["_id"]]
    write_folder(tiny_folder, [*corpus, passage], [], {})
    write_folder(tiny_folder, None, [{"_id": "q1", "text": "Where is Oslo?"}, {"_id": "q0", "text": "x"}], {})
    for name in ("train", "test"):
        (tiny_folder / "qrels" / f"{name}.tsv").unlink()
    (tiny_folder / "triples" / "train.tsv").unlink()
    assert load_data(tiny_folder).copies == ({"q1": {passage["_id"]}} if found else {})


def test_batches_of_rows_are_read_one_by_one(mirrored, monkeypatch):
    whole = sorted(repeated(mirrored.corpus, {qid: query.text for qid, query in mirrored.queries.items()}))
    monkeypatch.setattr("helpers.base.columns.BATCH", 7)
    assert sorted(repeated(mirrored.corpus, {q: own.text for q, own in mirrored.queries.items()})) == whole
    assert len(whole) > len(mirrored.queries)


@pytest.mark.parametrize("name", ["bm25", "dense"])
def test_pools_hold_no_question_of_their_own(mirrored, without_the_rule, short_bert, name):
    """Without the rule, each question is its own hardest negative."""
    pools = []
    for data in (mirrored, without_the_rule):
        passages = PassageIndex(data.training_corpus())
        rank = bm25_strategy(data, passages) if name == "bm25" else dense_strategy(data, passages, short_bert)
        pools.append(mine_pool(data, passages, rank, data.split_queries("train", 40)))
    pool, careless = pools
    for qid, ids in pool.ids().items():
        assert not set(ids) & mirrored.copies[qid] and len(ids) == 20
    assert sum(pool.audit["the question itself"].values()) == sum(len(mirrored.copies[qid]) for qid in pool.negatives)
    assert pool.audit["the question itself"][1] == 40
    assert sum(bool(set(ids) & mirrored.copies[qid]) for qid, ids in careless.ids().items()) == 40
    assert not careless.audit["the question itself"]


def test_a_batch_masks_the_question_itself(mirrored, without_the_rule, short_bert):
    """One of another row's pool, or the given negative: neither counts."""
    allowed = {}
    for name, data in (("with", mirrored), ("without", without_the_rule)):
        passages = PassageIndex(data.training_corpus())
        one, other = data.split_queries("train", 2)
        source = TrainingRows(data, passages, {one: [other], other: [one]}, 1, given_negative=False)
        batch = make_batch([source[number] for number in range(len(source))], source, short_bert)
        place = {passages.ids[column]: number for number, column in enumerate(batch.columns)}
        rows = {qid: number for number, qid in enumerate(batch.qids)}
        allowed[name] = [bool(batch.allowed[rows[qid], place[pid]]) for qid in (one, other) for pid in (one, other)]
        mask = candidate_mask([source.rows[0]], batch.columns, source, masks=())
        assert bool(mask[0, place[source.rows[0].qid]]) == (name == "without")  # whatever else is masked
    assert allowed == {"with": [False, True, True, False], "without": [True] * 4}


@pytest.mark.parametrize("name", ["bm25", "dense"])
def test_rankings_score_as_with_beirs_ignore_identical_ids(mirrored, without_the_rule, short_bert, name):
    """BEIR asks for one passage more and drops the one with the question's id."""
    for data in (mirrored, without_the_rule):
        data.copies = {qid: {qid} & pids for qid, pids in data.copies.items()}  # BEIR sees equal ids alone
    passages = PassageIndex(mirrored.corpus)
    queries = {qid: mirrored.queries[qid].text for qid in mirrored.split_queries("test")}
    index = BM25(passages.texts) if name == "bm25" else DenseIndex(short_bert, passages.texts)
    ours = search_run(name, index, queries, 50, own_rows(mirrored, passages))
    beir, found = [], {}
    for qid, ranking in zip(queries, index.search(list(queries.values()), 51)[0], strict=True):
        found[qid] = [pid for row in ranking if (pid := passages.ids[row]) != qid][:50]
        beir += [ir_measures.ScoredDoc(qid, pid, 100 - rank) for rank, pid in enumerate(found[qid])]
    for qid, ranking in zip(ours.qids, ours.rankings, strict=True):
        assert [passages.ids[row] for row in ranking] == found[qid]
    qrels = [ir_measures.Qrel(qid, pid, 1) for qid, pids in mirrored.qrels["test"].items() for pid in pids]
    measures = [ir_measures.Success @ k for k in (1, 5, 10, 50)]
    theirs = ir_measures.calc_aggregate(measures, qrels, beir)
    ranks = hit_ranks(ours, mirrored, passages, "test")[1]
    assert {m.params["cutoff"]: value for m, value in theirs.items()} == pytest.approx(
        {k: hit_at_k(ranks, k) for k in (1, 5, 10, 50)}
    )


def test_a_question_takes_no_rank_from_a_run_that_ranks_it(mirrored, without_the_rule):
    """As of a run file of another tool."""
    passages = PassageIndex(mirrored.corpus)
    queries = {qid: mirrored.queries[qid].text for qid in mirrored.split_queries("test")}
    run = search_run("BM25", BM25(passages.texts), queries, 100)
    clean = search_run("BM25", BM25(passages.texts), queries, 100, own_rows(mirrored, passages))
    for own, other in zip(*(hit_ranks(r, mirrored, passages, "test") for r in (run, clean)), strict=True):
        np.testing.assert_array_equal(np.where(own > 97, np.inf, own), np.where(other > 97, np.inf, other))
    careless = hit_ranks(run, without_the_rule, passages, "test")[1]
    assert hit_at_k(hit_ranks(run, mirrored, passages, "test")[1], 1) > hit_at_k(careless, 1) == 0


def test_dev_scores_leave_it_out_too(mirrored, without_the_rule, short_bert):
    found = []
    for data in (mirrored, without_the_rule):
        qids = data.split_queries("dev")
        found.append(dev_scorer(data, PassageIndex(data.evaluation_corpus()), qids)(short_bert))
    assert found[0]["Hit@1"] > found[1]["Hit@1"] == 0 and found[0]["dev"] >= found[1]["dev"]
