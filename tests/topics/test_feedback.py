"""RM3 against plain formulas on dictionaries, Rocchio by hand, and both on the sample."""

import re
from collections import Counter

import numpy as np
import pytest

from helpers.dataset import PassageIndex, load_data
from helpers.retrieval import BM25, bm25_run
from helpers.topics.feedback import Feedback, rm3_run, rocchio, word_counts, word_scores

# bm25s removes these from the texts below
STOP = {"the", "is", "in", "on", "which", "where"}


def words(text):
    return [word for word in re.findall(r"\b\w\w+\b", text.lower()) if word not in STOP]


def plain_rm3(query, texts, depth, terms, original):
    """RM3 as the papers have it, with BM25 (Lucene, k1 = 1.5, b = 0.75) written out."""
    docs = [words(text) for text in texts]
    mean = sum(map(len, docs)) / len(docs)

    def bm25(word, doc):
        having = sum(word in other for other in docs)
        idf = np.log(1 + (len(docs) - having + 0.5) / (having + 0.5))
        return idf * doc.count(word) / (doc.count(word) + 1.5 * (1 - 0.75 + 0.75 * len(doc) / mean))

    def rank(weights):
        scores = [sum(weight * bm25(word, doc) for word, weight in weights.items()) for doc in docs]
        order = sorted((row for row in range(len(docs)) if scores[row] > 0), key=lambda row: (-scores[row], row))
        return [(row, scores[row]) for row in order]

    known = [word for word in words(query) if any(word in doc for doc in docs)]
    relevance = Counter()
    for row, score in rank(Counter(known))[:depth]:
        for word, count in Counter(docs[row]).items():
            relevance[word] += score * count / len(docs[row])
    best = dict(relevance.most_common(terms))
    weights = Counter({word: original * count / len(known) for word, count in Counter(known).items()})
    for word, weight in best.items():
        weights[word] += (1 - original) * weight / sum(best.values())
    return rank(weights)


@pytest.mark.parametrize("depth, terms, original", [(1, 3, 0.5), (2, 50, 0.3), (3, 50, 0.9)])
def test_rm3_equals_the_plain_formula(tiny_folder, depth, terms, original):
    data = load_data(tiny_folder)
    passages = PassageIndex(data.corpus)
    queries = {
        "a": "Which river is the Danube on?",
        "b": "Where lies Seine Seine Tiber",
        "c": "capitals norway xylophone",
    }
    run = rm3_run("rm3", queries, passages, 5, Feedback(depth, terms, original))
    for query, rows, scores in zip(queries.values(), run.rankings, run.scores, strict=True):
        expected = plain_rm3(query, passages.texts, depth, terms, original)
        assert scores == pytest.approx([score for _, score in expected], rel=1e-4)
        assert dict(zip(rows.tolist(), scores, strict=True)) == pytest.approx(dict(expected), rel=1e-4)


def test_rm3_with_the_question_alone_is_bm25(sample, sample_passages):
    queries = {qid: sample.queries[qid].text for qid in sample.split_queries("dev")}
    plain = bm25_run("bm25", queries, sample_passages, 20)
    same = rm3_run("rm3", queries, sample_passages, 20, Feedback(original=1))
    for a, b, text in zip(plain.rankings, same.rankings, queries.values(), strict=True):
        assert (a[:5] == b[:5]).mean() >= 0.6, text  # rounding may swap two that tie
    assert np.mean([a[0] == b[0] for a, b in zip(plain.rankings, same.rankings, strict=True)]) > 0.98


def test_rm3_finds_a_passage_that_shares_no_word_with_the_question(tiny_folder):
    passages = PassageIndex(load_data(tiny_folder).corpus)
    run = rm3_run("rm3", {"a": "Seine"}, passages, 5, Feedback(passages=1))
    assert run.rankings[0][0] == 0 and len(run.rankings[0]) == 5  # "lies" and "capitals" came in by feedback
    assert len(bm25_run("bm25", {"a": "Seine"}, passages, 5).rankings[0]) == 1


def test_rm3_without_a_known_word_finds_nothing(tiny_folder):
    passages = PassageIndex(load_data(tiny_folder).corpus)
    assert [len(rows) for rows in rm3_run("rm3", {"a": "xylophone", "b": "the"}, passages, 5).rankings] == [0, 0]


def test_words_that_count_once_are_bm25(sample, sample_passages):
    bm25 = BM25(sample_passages.texts)
    texts = [sample.queries[qid].text for qid in sample.split_queries("dev")[:20]]
    for text, counts in zip(texts, word_counts(bm25, texts), strict=True):
        (rows,), (scores,) = bm25.search([text], 30)
        assert word_scores(bm25, counts)[rows] == pytest.approx(scores, rel=1e-5)


def test_word_counts_leave_out_unknown_words():
    bm25 = BM25(["red fox", "blue whale"])
    numbers = bm25.index.vocab_dict
    assert word_counts(bm25, ["red the red fox zebra", ""]) == [{numbers["red"]: 2, numbers["fox"]: 1}, {}]


def test_rocchio_by_hand():
    passages = np.eye(3, dtype=np.float32)
    moved = rocchio(np.array([[1.0, 0, 0]]), passages, [[1, 2, 0]], feedback_passages=2, original=0.5)
    assert moved == pytest.approx(np.array([[0.5, 0.25, 0.25]]) / np.sqrt(0.375))
    assert rocchio(passages, passages, [[1], [2], [0]], original=1.0) == pytest.approx(passages)
    assert rocchio(passages, passages, [[1], [2], [0]], original=np.float64(0.7)).dtype == np.float32  # as search wants
