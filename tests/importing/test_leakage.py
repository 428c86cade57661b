"""What two splits share: planted leaks are found, and nothing else; MinHash finds what comparing all pairs finds."""

import random
import tracemalloc

import pytest

from helpers.answers import normalize
from helpers.base.shingles import jaccard, shingles
from helpers.dataset import load_data
from helpers.importing.leakage import find_leaks, near_duplicates
from helpers.importing.sources import write_folder

WORDS = [f"word{n}" for n in range(3000)]


def text(rng, words=60):
    return " ".join(rng.choices(WORDS, k=words))


@pytest.fixture
def clean():
    """60 passages and questions without anything in common: (corpus, queries, qrels)."""
    rng = random.Random(0)
    splits = ["train"] * 40 + ["dev"] * 10 + ["test"] * 10
    corpus = [{"_id": f"p{n}", "title": f"T{n}", "text": text(rng), "split": s} for n, s in enumerate(splits)]
    queries = [{"_id": f"q{n}", "text": text(rng, 12)} for n in range(60)]
    qrels = {s: [(f"q{n}", f"p{n}", 1) for n in range(60) if splits[n] == s] for s in ("train", "dev", "test")}
    return corpus, queries, qrels


def leaks(folder, parts):
    write_folder(folder, *parts)
    return find_leaks(load_data(folder))


def test_nothing_in_common_is_no_leak(clean, tmp_path):
    assert leaks(tmp_path, clean) == []


def change(text, number):
    words = text.split()
    words[number] = "another"
    return " ".join(words)


def test_planted_leaks_are_found_with_examples(clean, tmp_path):
    corpus, queries, _ = clean
    queries[41]["text"] = queries[0]["text"].upper() + " "  # dev and train, but for case
    queries[51]["text"] = queries[2]["text"] + " really"  # test and train, nearly
    corpus[52]["text"] = corpus[3]["text"]
    corpus[53]["text"] = change(corpus[42]["text"], 30)
    corpus[54]["title"] = corpus[43]["title"]
    found = {(leak.what, leak.earlier, leak.later): leak for leak in leaks(tmp_path, clean)}
    assert found.keys() == {
        ("the same question", "train", "dev"),
        ("nearly the same question", "train", "test"),
        ("the same passage", "train", "test"),
        ("nearly the same passage", "dev", "test"),
        ("the same article", "dev", "test"),
    }
    assert {leak.count for leak in found.values()} == {1}
    ((later, earlier),) = found["nearly the same passage", "dev", "test"].examples
    assert (later, earlier) == (corpus[53]["text"], corpus[42]["text"])


def test_a_passage_judged_in_two_splits_is_found_without_split_fields(clean, tmp_path):
    corpus, queries, qrels = clean
    corpus = [{key: value for key, value in row.items() if key != "split"} for row in corpus]
    qrels["test"].append(("q50", "p0", 1))
    found = leaks(tmp_path, (corpus, queries, qrels))
    assert [(leak.what, leak.earlier, leak.later) for leak in found] == [
        ("the same passage", "train", "test"),
        ("the same article", "train", "test"),
    ]


def test_minhash_finds_what_all_pairs_find():
    rng = random.Random(1)
    base = [text(rng, 50) for _ in range(150)]
    other = []
    for one in base:
        words = one.split()
        for _ in range(rng.randrange(7)):
            words[rng.randrange(50)] = rng.choice(WORDS)
        other.append(" ".join(words))
    texts, splits = base + other, ["train"] * 150 + ["test"] * 150
    sets = [shingles(normalize(one).strip(), 3) for one in texts]
    expected = {(150 + n, m) for n in range(150) for m in range(150) if jaccard(sets[150 + n], sets[m]) >= 0.8}
    found = set(near_duplicates(splits, [normalize(one).strip() for one in texts], 3, 0.8))
    assert 20 < len(expected) < 130 and found == expected


def test_boilerplate_everywhere_costs_no_square():
    splits = ["train"] * 20_000 + ["test"] * 20_000
    found = near_duplicates(splits, ["the same words everywhere"] * 40_000, 3, 0.8)
    assert len(found) == 20_000 and {twin for _, twin in found} == {0}


def test_texts_are_not_kept_in_memory(tmp_path, monkeypatch):
    rng, splits = random.Random(2), ["test", *["train"] * 9]

    monkeypatch.setattr("helpers.base.shingles.CHUNK", 500)

    def peak(count):
        corpus = [{"_id": f"p{n}", "text": text(rng, 100), "split": splits[n % 10]} for n in range(count)]
        qrels = {"train": [("q0", "p1", 1)], "test": [("q1", "p0", 1)]}
        write_folder(tmp_path / str(count), corpus, [{"_id": f"q{n}", "text": text(rng)} for n in range(2)], qrels)
        data = load_data(tmp_path / str(count))
        tracemalloc.start()
        assert find_leaks(data) == []
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(3000) - peak(1000) < 2000 * 500  # bytes a passage; its text has 800, and normalised once more


def test_hashing_in_chunks_changes_nothing(clean, tmp_path, monkeypatch):
    corpus, queries, _ = clean
    corpus[52]["text"], corpus[53]["text"] = corpus[3]["text"], change(corpus[42]["text"], 30)
    queries[41]["text"] = queries[0]["text"]
    whole = leaks(tmp_path / "whole", clean)
    monkeypatch.setattr("helpers.base.shingles.CHUNK", 7)
    assert leaks(tmp_path / "parts", clean) == whole and len(whole) == 3


def test_one_split_leaks_nothing():
    assert near_duplicates(["train"] * 3, ["the same words"] * 3, 3, 0.8) == []
