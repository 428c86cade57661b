"""Fusing runs: against plain dictionaries, at the edges, and as a run file."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.base.errors import DataError, SettingError
from helpers.base.files import ROOT
from helpers.retrieval import Run, load_run
from helpers.topics.hybrid import min_max, rrf, weighted


def make_run(name, lists):
    """A run from one dict passage -> score a question."""
    ranked = [sorted(scores.items(), key=lambda item: -item[1]) for scores in lists]
    return Run(
        name,
        [f"q{number}" for number in range(len(lists))],
        [np.array([row for row, _ in pairs], dtype=int) for pairs in ranked],
        [np.array([score for _, score in pairs], dtype=float) for pairs in ranked],
    )


def scaled(scores):
    """Min-max as a dictionary."""
    low, high = min(scores.values(), default=0), max(scores.values(), default=0)
    return {row: (score - low) / (high - low) if high > low else 0.0 for row, score in scores.items()}


question = st.dictionaries(st.integers(0, 12), st.integers(-20, 20).map(float), max_size=8)
pairs = st.lists(st.tuples(question, question), min_size=1, max_size=4)


@given(pairs, st.floats(0, 1))
def test_weighted_is_the_sum_of_scaled_scores_where_a_missing_passage_has_the_lists_minimum(lists, alpha):
    dense, sparse = (make_run(name, [pair[n] for pair in lists]) for n, name in enumerate(("dense", "sparse")))
    fused = weighted("hybrid", dense, sparse, alpha)
    for number, (one, other) in enumerate(map(lambda pair: map(scaled, pair), lists)):
        expected = {row: alpha * one.get(row, 0.0) + (1 - alpha) * other.get(row, 0.0) for row in {**one, **other}}
        found = dict(zip(fused.rankings[number].tolist(), fused.scores[number].tolist(), strict=True))
        assert found == pytest.approx(expected)
        order = [(-score, row) for row, score in found.items()]
        assert order == sorted(order)  # best first, equal ones in the corpus's order


@given(pairs)
def test_rrf_is_the_sum_of_reciprocal_ranks(lists):
    runs = [make_run(name, [pair[n] for pair in lists]) for n, name in enumerate(("dense", "sparse"))]
    fused = rrf("rrf", runs)
    for number in range(len(lists)):
        expected: dict[int, float] = {}
        for run in runs:
            for rank, row in enumerate(run.rankings[number].tolist(), start=1):
                expected[row] = expected.get(row, 0.0) + 1 / (60 + rank)
        assert dict(zip(fused.rankings[number].tolist(), fused.scores[number].tolist(), strict=True)) == pytest.approx(
            expected
        )


def test_the_formulas_on_numbers_that_one_can_check_by_hand():
    dense, sparse = make_run("dense", [{1: 0.9, 2: 0.5, 3: 0.1}]), make_run("sparse", [{2: 30.0, 4: 10.0}])
    fused = weighted("hybrid", dense, sparse, 0.6)
    assert fused.rankings[0].tolist() == [2, 1, 3, 4]  # 0.6·0.5 + 0.4·1, then 0.6, then twice 0
    assert fused.scores[0].tolist() == pytest.approx([0.7, 0.6, 0.0, 0.0])
    assert rrf("rrf", [dense, sparse]).scores[0].tolist() == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])


def test_the_ends_of_alpha_are_the_two_parts():
    dense, sparse = make_run("dense", [{5: 3.0, 1: 2.0, 9: 1.0}]), make_run("sparse", [{7: 8.0, 5: 7.0, 2: 6.0}])
    assert weighted("h", dense, sparse, 1.0).rankings[0][:2].tolist() == [5, 1]
    assert weighted("h", dense, sparse, 0.0).rankings[0][:2].tolist() == [7, 5]


def test_scores_of_any_scale_weigh_the_same():
    lists = [{5: 3.0, 1: 2.0, 9: 1.0}], [{1: 8.0, 2: 7.0, 5: 6.0}]
    dense, sparse = make_run("dense", lists[0]), make_run("sparse", lists[1])
    large = make_run("sparse", [{row: 1000 * score - 7 for row, score in lists[1][0].items()}])
    assert weighted("h", dense, sparse, 0.3).scores[0] == pytest.approx(weighted("h", dense, large, 0.3).scores[0])


def test_equal_scores_and_empty_lists_say_nothing():
    assert min_max(np.array([4.0, 4.0])).tolist() == [0, 0]
    assert min_max(np.array([])).tolist() == []
    fused = weighted("h", make_run("dense", [{3: 1.0, 4: 0.0}, {}]), make_run("sparse", [{}, {}]), 0.5)
    assert [ranking.tolist() for ranking in fused.rankings] == [[3, 4], []]
    assert fused.rankings[1].dtype.kind == "i"


def test_k_cuts_the_union():
    dense, sparse = (
        make_run("d", [{n: float(n) for n in range(5)}]),
        make_run("s", [{n: float(n) for n in range(3, 9)}]),
    )
    assert len(rrf("h", [dense, sparse], k=100).rankings[0]) == 9
    assert rrf("h", [dense, sparse], k=1).rankings[0].tolist() == [4]


def test_a_fused_run_is_a_run_file_like_any_other(tmp_path):
    ids = [f"p{number}" for number in range(10)]
    dense, sparse = make_run("d", [{1: 2.0, 3: 1.0}, {}]), make_run("s", [{3: 2.0, 5: 1.0}, {2: 1.0}])
    fused = rrf("hybrid rrf", [dense, sparse])
    fused.save(tmp_path / "rrf.test.trec", ids)
    loaded = load_run(tmp_path / "rrf.test.trec", {pid: row for row, pid in enumerate(ids)}, fused.qids)
    for number, ranking in enumerate(fused.rankings):
        assert loaded.rankings[number].tolist() == ranking.tolist()
        assert loaded.scores[number] == pytest.approx(fused.scores[number], rel=1e-5)


def test_the_runs_themselves_stay_as_they_were():
    dense, sparse = make_run("d", [{1: 2.0, 3: 1.0}]), make_run("s", [{3: 2.0, 5: 1.0}])
    weighted("h", dense, sparse, 0.5)
    assert (dense.rankings[0].tolist(), dense.scores[0].tolist()) == ([1, 3], [2.0, 1.0])


def test_what_cannot_be_fused_is_an_error_that_says_why():
    one, other = make_run("dense", [{1: 1.0}]), make_run("BM25", [{1: 1.0}, {2: 1.0}])
    with pytest.raises(DataError, match=r"BM25 and dense rank different questions.*q1.*same split"):
        rrf("h", [one, other])
    other.qids = other.qids[::-1]
    with pytest.raises(DataError, match="another order"):
        rrf("h", [make_run("dense", [{}, {}]), other])
    with pytest.raises(SettingError, match=r"alpha=1\.5.*0 \(sparse alone\) to 1 \(dense alone\)"):
        weighted("h", one, one, 1.5)


def test_what_notebook_and_readme_say_of_squad_was_measured():
    measured = json.loads((ROOT / "data" / "results" / "hybrid.json").read_text(encoding="utf-8"))
    notebook = (ROOT / "notebooks" / "05_hybrid_retrieval.ipynb").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    gain = measured["gains"][f"weighted, α = {measured['alpha']}"]["10"]
    assert "gains +{:.1f} points of Hit@10 [+{:.1f}, +{:.1f}]".format(*gain) in readme
    assert "by +{:.1f} points of Hit@10 (+{:.1f} to +{:.1f})".format(*gain) in notebook
    lost, low, high = (f"{-value:.1f}" for value in measured["gains"]["RRF"]["10"])
    assert f"(RRF) loses {lost}" in readme and f"−{lost} points of Hit@10 (−{low} to −{high})" in notebook
    for system in measured["systems"]:  # the table is made from the file: outputs must not be older
        assert "{answer:.1%} [{low:.1%}, {high:.1%}]".format(**system["hits"]["10"]) in notebook, system["name"]
