"""The ledger: the same systems everywhere, differences and intervals as the reports', nDCG@10 as trec_eval's."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from helpers.base.errors import SettingError
from helpers.encoder import load_encoder
from helpers.reporting.ledger import Ledger, judge, ndcg_at_10
from helpers.reporting.report import Report
from helpers.reporting.significance import bootstrap_interval
from helpers.retrieval import BM25, DenseIndex, Run

SYSTEMS = ("zero-shot", "BM25")


@pytest.fixture(scope="module")
def entry(sample, sample_passages):
    encoder = load_encoder("bert-tiny", device="cpu")
    systems = dict(zip(SYSTEMS, (lambda texts: DenseIndex(encoder, texts), BM25), strict=True))
    queries = {qid: sample.queries[qid].text for qid in sample.split_queries("test", 60)}
    return judge(systems, sample, sample_passages, queries, "zero-shot")


def test_differences_are_those_of_the_report_and_paired(entry):
    report = entry.report
    assert entry.difference("BM25", "Hit@1") == report.difference("BM25", 1)
    gain = 100 * (entry.ndcg["BM25"] - entry.ndcg["zero-shot"])
    assert entry.difference("BM25", "nDCG@10") == (gain.mean(), *bootstrap_interval(gain))
    assert entry.value("Hit@10") == pytest.approx(100 * (report.ranks["zero-shot"] <= 10).mean())


def test_the_table_has_a_row_for_every_set_and_system(entry):
    table = Ledger({"own": entry, "other": entry}).table()
    assert list(table["system"]) == [*SYSTEMS, *SYSTEMS]
    assert list(table.columns) == ["system", "Hit@1", "Hit@10", "nDCG@10"]
    assert table.index[0].startswith("own (60 questions") and table.index[2].startswith("other")
    mean, low, high = entry.difference("BM25", "nDCG@10")
    assert table["nDCG@10"].iloc[1] == f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    assert table["Hit@1"].iloc[0] == f"{entry.value('Hit@1'):.1f}"


def test_systems_must_be_the_same_everywhere(entry, sample, sample_passages):
    queries = {qid: sample.queries[qid].text for qid in sample.split_queries("test", 5)}
    other = judge({"zero-shot": BM25}, sample, sample_passages, queries, "zero-shot")
    with pytest.raises(SettingError, match="the same systems everywhere"):
        Ledger({"own": entry, "other": other})


def test_it_is_saved_with_the_report(entry, tmp_path):
    ledger = Ledger({"own": entry, "other": entry})
    entry.report.save(tmp_path, ledger)
    saved = json.loads((tmp_path / "report.json").read_text())["elsewhere"]
    assert saved == json.loads(json.dumps(ledger.as_dict())) and saved["other"]["questions"] == 60
    page = (tmp_path / "report.md").read_text()
    assert "## On other data sets" in page and "elsewhere.png" in page and (tmp_path / "elsewhere.png").exists()
    assert "On other data sets" in (tmp_path / "report.html").read_text()
    Report.save(entry.report, tmp_path / "alone")
    assert "elsewhere" not in json.loads((tmp_path / "alone" / "report.json").read_text())


def test_ndcg_counts_every_judged_passage_by_its_rank(sample, sample_passages):
    """The first question's passage is at rank 3, the second's nowhere, the third is not judged."""
    qids = sample.split_queries("test")[:3]
    judged = dict.fromkeys(qids[:2])
    rows = [next(iter(sample_passages.rows_of(sample.qrels["test"][qid]))) for qid in judged]
    others = [row for row in range(20) if row not in rows][:12]
    rankings = [[*others[:2], rows[0], *others[2:]], others, others]
    run = Run("made up", qids, [np.array(one) for one in rankings], [np.zeros(len(one)) for one in rankings])
    data = replace(sample, qrels={"test": {qid: sample.qrels["test"][qid] for qid in judged}})
    assert ndcg_at_10(run, data, sample_passages, "test").tolist() == pytest.approx([1 / math.log2(4), 0, 0])


def test_bars_are_labelled_with_the_sets(entry):
    axes = Ledger({"own": entry, "other": entry}).plot("nDCG@10")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["own", "other"]
    assert axes.get_title() == "nDCG@10"
