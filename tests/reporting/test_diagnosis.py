"""A Hit@K that would mean nothing is explained before it is printed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.dataset import PassageIndex, Query
from helpers.reporting.diagnosis import diagnose_run
from helpers.retrieval import Run, bm25_run, dense_run, load_run


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def good_run(sample, passages, split="dev"):
    """Return a run that ranks every question's judged passage second, over all of `passages`."""
    rankings = []
    for qid in sample.split_queries(split):
        gold = passages.row[min(sample.qrels[split][qid])]
        others = [row for row in range(20) if row != gold]
        rankings.append(np.array([others[0], gold, *others[1:]]))
    return Run("mine", sample.split_queries(split), rankings, [np.linspace(1, 0.5, len(rows)) for rows in rankings])


def without_answers(sample, answers):
    return replace(sample, queries={qid: Query(query.text, answers) for qid, query in sample.queries.items()})


def test_nothing_is_said_about_a_run_that_is_fine(sample, sample_passages, bert_tiny):
    assert diagnose_run(good_run(sample, sample_passages), sample, sample_passages, "dev") == []
    passages = PassageIndex(sample.evaluation_corpus())
    queries = {qid: sample.queries[qid].text for qid in sample.split_queries("dev")}
    for run in (bm25_run("bm25", queries, passages), dense_run("dense", bert_tiny, queries, passages)):
        assert diagnose_run(run, sample, passages, "dev") == []


@pytest.mark.parametrize(
    ("answers", "message"), [((), "no question has an answer"), (("", " "), "all answers are empty")]
)
def test_missing_answers_are_diagnosed(sample, sample_passages, answers, message):
    broken = without_answers(sample, answers)
    (sentence,) = diagnose_run(good_run(sample, sample_passages), broken, sample_passages, "dev")
    assert sentence.startswith(f"In 'dev' {message}, so answer match finds nothing;")


def test_questions_of_another_split_are_diagnosed(sample, sample_passages):
    (sentence,) = diagnose_run(good_run(sample, sample_passages), sample, sample_passages, "test")
    assert sentence.startswith("mine: 'test' judges none of its questions; they belong to dev: wrong split (the run")


def test_a_corpus_without_the_judged_passages_is_diagnosed(sample):
    held_out = PassageIndex(sample.evaluation_corpus("held-out"))
    qids = sample.split_queries("train")[:50]
    run = Run("mine", qids, [np.arange(i, i + 5) for i in range(50)], [np.linspace(1, 0, 5)] * 50)
    (sentence,) = diagnose_run(run, sample, held_out, "train")
    assert sentence == (
        f"Judged passages of 50 of 50 questions of 'train' are not among the {len(held_out)} that are "
        "searched; the data set has them: wrong split, or eval_corpus leaves them out."
    )


def test_passage_ids_that_do_not_match_are_diagnosed(sample, sample_passages):
    renamed = {qid: {f"doc-{pid}" for pid in pids} for qid, pids in sample.qrels["dev"].items()}
    broken = replace(sample, qrels=sample.qrels | {"dev": renamed})
    (sentence,) = diagnose_run(good_run(sample, sample_passages), broken, sample_passages, "dev")
    first = min(sample_passages.ids)
    assert sentence.startswith(f"Judged passages of {len(renamed)} of {len(renamed)} questions of 'dev' are not among")
    assert "the ids do not match (qrels name 'doc-" in sentence and f"the corpus {first!r})." in sentence


def test_question_ids_that_do_not_match_are_diagnosed(sample, sample_passages, tmp_path):
    run = good_run(sample, sample_passages)
    other = replace(run, qids=[f"question-{qid}" for qid in run.qids])
    (sentence,) = diagnose_run(other, sample, sample_passages, "dev")
    assert "'dev' judges none of its questions; the ids do not match (the run asks 'question-" in sentence
    other.save(tmp_path / "run.txt", sample_passages.ids)
    empty = load_run(tmp_path / "run.txt", sample_passages.row, run.qids)
    (sentence,) = diagnose_run(empty, sample, sample_passages, "dev")
    assert "no question has a passage; that is how a run file with other question ids is read" in sentence


def test_some_questions_that_are_not_judged_are_diagnosed(sample, sample_passages):
    run = good_run(sample, sample_passages)
    stray = replace(run, qids=["stray", *run.qids[1:]])
    (sentence,) = diagnose_run(stray, sample, sample_passages, "dev")
    assert sentence.startswith(f"'dev' does not judge 1 of {len(run.qids)} questions, e.g. 'stray';")


@pytest.mark.parametrize(
    ("same", "message"), [("passage", "all scores of a question are equal"), ("query", "all questions have the same")]
)
def test_a_model_that_maps_everything_to_one_vector_is_diagnosed(sample, sample_passages, same, message):
    class Collapsed:
        device = torch.device("cpu")

        def search_vectors(self, texts, kind, progress=""):
            one = vectors(1, 8) + 1e-8 * vectors(len(texts), 8, seed=1)  # not bit for bit, as in a real one
            return one if kind == same else vectors(len(texts), 8, seed=2)

    queries = {qid: sample.queries[qid].text for qid in sample.split_queries("dev")}
    run = dense_run("collapsed", Collapsed(), queries, sample_passages, k=20, progress=False)
    (sentence,) = diagnose_run(run, sample, sample_passages, "dev")
    assert sentence.startswith(f"collapsed: {message}") and f"map every {same.replace('query', 'question')}" in sentence


def test_a_run_over_another_corpus_is_diagnosed(sample, sample_passages):
    run = good_run(sample, sample_passages)
    far = replace(run, rankings=[rows + len(sample_passages) for rows in run.rankings])
    (sentence,) = diagnose_run(far, sample, sample_passages, "dev")
    assert f"it ranks passages beyond the {len(sample_passages)} of this corpus" in sentence
    shifted = replace(run, rankings=[np.delete(rows, 1) for rows in run.rankings])
    (sentence,) = diagnose_run(shifted, sample, sample_passages, "dev")
    assert sentence.startswith("mine: no judged passage is in any ranking;")
