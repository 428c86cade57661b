"""Opening a run: what it checks, and what it hands to a notebook."""

import numpy as np
import pytest

from helpers.base.errors import CourseError, ModelError, SettingError
from helpers.base.files import ROOT
from helpers.dataset import PassageIndex
from helpers.negatives import load_pool
from helpers.retrieval import BM25
from helpers.running.start import course_run, fewer_passages, open_run

PARAMETERS = {
    "data": "data/sample",
    "run_dir": "",
    "model_name": "bert-tiny",
    "prefixes": ["q: ", "p: "],
    "max_length": 40,
    "device": "cpu",
    "seed": 3,
    "dev_questions": 5,
}


@pytest.fixture
def parameters(tmp_path):
    return PARAMETERS | {"run_dir": str(tmp_path / "run")}


def test_a_notebook_gets_its_data_folder_and_passages(parameters, tmp_path):
    run = course_run(parameters)
    assert run.folder == tmp_path / "run" and run.folder.is_dir() and run.models == tmp_path / "run" / "models"
    assert run.data.folder == ROOT / "data" / "sample" and run.device == "cpu"
    assert set(run.training.corpus["split"]) == {"train"} and len(run.passages) == 384
    assert len(course_run(parameters | {"eval_corpus": "held-out"}).passages) == 144
    assert run.training is run.training  # made once


def test_questions_are_drawn_with_the_seed(parameters):
    run = course_run(parameters)
    assert list(run.questions("dev")) == run.data.split_queries("dev", 5, 3)
    assert list(run.questions("dev", 7)) == run.data.split_queries("dev", 7, 3)
    assert list(run.questions("test")) == run.data.split_queries("test")
    assert all(text == run.data.queries[qid].text for qid, text in run.questions("dev").items())
    assert list(course_run(parameters | {"seed": 4}).questions("dev")) != list(run.questions("dev"))


def test_fewer_passages_hold_what_dev_needs_and_others_at_random(sample, eval_passages):
    qids = sample.split_queries("dev")[:4]
    few = fewer_passages(sample, eval_passages, qids, 60)
    assert len(few) == len(set(few.ids)) == 60 and set(few.ids) < set(eval_passages.ids)
    assert {pid for qid in qids for pid in sample.qrels["dev"][qid]} <= set(few.ids)
    hardest = BM25(eval_passages.texts).search([sample.queries[qid].text for qid in qids], 10)[0]
    assert {eval_passages.ids[row] for rows in hardest for row in rows} <= set(few.ids)
    again, other = (fewer_passages(sample, eval_passages, qids, 60, seed) for seed in (0, 1))
    assert list(few.ids) == list(again.ids) != list(other.ids)
    strict = fewer_passages(sample, PassageIndex(eval_passages.corpus, True, True), qids, 60)
    assert strict.match_title and strict.strict_dpr
    with pytest.raises(SettingError, match=r"dev_passages=5, but positives and BM25's first 10 are \d\d already"):
        fewer_passages(sample, eval_passages, qids, 5)


def test_dev_may_be_searched_over_fewer_passages(parameters):
    for count, expected in ((0, 384), (100, 100), (384, 384), (9999, 384)):
        run = course_run(parameters | {"dev_passages": count})
        assert len(run.dev_passages) == expected and (run.dev_passages is run.passages) == (expected == 384)


def test_auto_is_decided_when_a_run_is_opened(parameters, monkeypatch):
    for gain, precision in ((0.0, "fp32"), (0.5, "fp32"), (1.2, "fp32"), (1.9, "bf16")):
        monkeypatch.setattr("helpers.base.devices.bf16_gain", lambda gain=gain: gain)
        run = course_run(parameters | {"precision": "auto"})
        assert run.parameters["precision"] == run.encoder().precision == precision
    assert "precision" not in course_run(parameters).parameters
    with pytest.raises(SettingError, match="use 'auto', 'fp32', 'bf16' or 'fp16'"):
        course_run(parameters | {"precision": "bf-16"})


def test_the_encoder_is_loaded_as_asked(parameters):
    encoder = course_run(parameters | {"lora_rank": 4}).encoder()
    assert (encoder.profile.query_prefix, encoder.profile.max_length) == ("q: ", 40)
    assert any("lora" in name for name, _ in encoder.named_parameters())


def test_a_trained_model_is_loaded_for_its_own_data_only(parameters, bert_tiny):
    run = course_run({**parameters, "precision": "bf16"})
    bert_tiny.save(run.models / "model", {"data": run.data.fingerprint})
    found = run.trained("model")
    assert found.fingerprint() == bert_tiny.fingerprint() and found.precision == "bf16"
    bert_tiny.save(run.models / "model", {"data": "0123"})
    with pytest.raises(ModelError, match=r"trained on other data \(fingerprint 0123, here "):
        run.trained("model")
    with pytest.raises(ModelError, match="holds no trained model; run notebook 03"):
        run.trained("nothing")


@pytest.mark.parametrize(("precision", "why"), [("int8", "use 'auto', 'fp32'"), ("fp16", "needs device='cuda'")])
def test_a_precision_that_the_device_lacks_is_told(parameters, precision, why):
    with pytest.raises(SettingError, match=why):
        course_run({**parameters, "precision": precision, "data": "not read yet"})


def test_answer_match_follows_the_parameters(parameters):
    run = course_run(parameters | {"match_title": True, "strict_dpr": True})
    for index in (run.training, run.passages):
        assert index.match_title and index.strict_dpr


def test_a_missing_pool_is_mined_and_kept(parameters):
    run = course_run(parameters | {"train_questions": 6})
    pool = run.pool()
    assert list(pool.negatives) == list(run.questions("train")) and pool.settings["strategy"] == "bm25"
    assert load_pool(run.folder / "pool.jsonl", run.data).negatives == pool.negatives
    (run.folder / "pool.jsonl").write_text("not a pool")
    with pytest.raises(CourseError, match=r"pool\.jsonl"):
        run.pool()


def test_a_pool_that_is_no_file_is_told(parameters):
    run = course_run(parameters)
    pool = run.folder / "pool.jsonl"
    pool.symlink_to("pool.jsonl")  # a circle
    with pytest.raises(CourseError, match=r"pool\.jsonl"):
        run.pool()
    pool.unlink()
    pool.mkdir()
    with pytest.raises(CourseError, match=r"pool\.jsonl"):
        run.pool()


def test_a_run_folder_that_cannot_be_one_is_told(parameters, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("file", "file/below", "circle", "circle/below"):
        with pytest.raises(CourseError, match=name):
            course_run(parameters | {"run_dir": str(tmp_path / name)})


def test_wrong_parameters_stop_before_the_data_is_read(parameters):
    namespace = {
        "data": "nowhere",
        "run_dir": "runs/x",
        "model_name": 3,
        "prefixes": "auto",
        "device": "cpu",
        "seed": 0,
    }
    with pytest.raises(SettingError, match="model_name=3 is a int"):
        open_run("01_explore_data", namespace)
    with pytest.raises(SettingError, match="'tpu'"):
        course_run(parameters | {"device": "tpu", "data": "nowhere"})


def test_passages_hold_what_their_index_says(parameters):
    run = course_run(parameters)
    row = run.passages.row["p01-1"]
    assert run.passages.texts[row].startswith("Moons of Saturn Titan")
    assert np.flatnonzero([pid == "p01-1" for pid in run.passages.ids]).tolist() == [row]
