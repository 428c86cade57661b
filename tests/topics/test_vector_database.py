"""Milvus ranks as exact search, BM25 and our own fusion do, in one folder and behind an address, and loses no write."""

import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.sparse import csr_array

from helpers.base.errors import DataError, SettingError
from helpers.base.files import ROOT
from helpers.retrieval import BM25, Run
from helpers.topics.hybrid import rrf
from helpers.topics.indexes import ShardIndex, build_faiss
from helpers.topics.shards import Shards, encode_shard, finish_shards
from helpers.topics.vector_database import MilvusIndex, bm25_query_weights, bm25_weights

SERVE = "from milvus_lite.cmdline import main; main()"


class Corpus:
    """The sample as a database takes it, and 40 questions."""

    def __init__(self, sample, passages, encoder, folder):
        for number in range(3):
            encode_shard(encoder, passages, folder, number, 3)
        self.shards, self.encoder = finish_shards(folder, 3), encoder
        self.vectors = np.concatenate([part for _, part in self.shards.blocks()]).astype(np.float32)
        self.pids, self.titles = list(passages.ids), sample.corpus["title"][:]
        self.bm25 = BM25(passages.texts)
        self.weights = bm25_weights(self.bm25)
        self.texts = [query.text for query in list(sample.queries.values())[:40]]
        self.asked = encoder.search_vectors(self.texts, "query")
        self.words = bm25_query_weights(self.bm25, self.texts)

    @property
    def all(self):
        return self.shards, self.titles, self.weights

    def write(self, index, start=0, stop=384):
        part = slice(start, stop)
        own = self.pids[part], self.titles[part], self.vectors[part], self.weights[part]
        index.upsert(range(start, stop), *own)


@pytest.fixture(scope="module")
def corpus(sample, sample_passages, short_bert, tmp_path_factory):
    return Corpus(sample, sample_passages, short_bert, tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def local(corpus, tmp_path_factory):
    index = MilvusIndex(str(tmp_path_factory.mktemp("milvus") / "passages.db"), encoder=corpus.encoder)
    index.create(corpus.shards.dimension)
    corpus.write(index)
    yield index
    index.close()


def assert_same(found, wanted, tolerance=1e-5):
    """Rankings are equal, but for passages whose scores are equal within the tolerance."""
    for rows, scores, others, best in zip(*found, *wanted, strict=True):
        assert len(rows) == len(set(rows.tolist())) == len(others) and np.allclose(scores, best, atol=tolerance)
        inside = set(np.asarray(others)[best > best[-1] + tolerance].tolist())  # the last ones may be exchanged
        assert inside <= set(rows.tolist())


def test_exact_search_faiss_and_milvus_give_the_same_first_hundred(corpus, local):
    exact = ShardIndex(corpus.shards).search_vectors(corpus.asked, 100)
    assert_same(build_faiss("flat", corpus.shards).search_vectors(corpus.asked, 100), exact)
    assert_same(local.search_vectors(corpus.asked, 100), exact)
    assert_same(local.search(corpus.texts, 100), exact)


def test_words_are_searched_as_by_our_bm25(corpus, local):
    assert_same(local.search_sparse(corpus.words, 100), corpus.bm25.search(corpus.texts, 100))


def test_the_databases_fusion_is_ours(corpus, local):
    dense, sparse = local.search_vectors(corpus.asked, 6), local.search_sparse(corpus.words, 6)
    qids = [str(number) for number in range(40)]
    ours = rrf("both", [Run("dense", qids, *dense), Run("sparse", qids, *sparse)], 10)
    found = local.hybrid(corpus.asked, corpus.words, 10, candidates=6)
    scores = zip(dense[1], sparse[1], strict=True)
    clear = [number for number, both in enumerate(scores) if all((np.diff(own) < -1e-6).all() for own in both)]
    assert len(clear) >= 10  # the others have candidates with equal scores, whose ranks are left open
    wanted = [[column[number] for number in clear] for column in (ours.rankings, ours.scores)]
    assert_same([[column[number] for number in clear] for column in found], wanted, 1e-6)
    assert any(set(own.tolist()) != set(rows[:10].tolist()) for own, rows in zip(found[0], dense[0], strict=True))


def test_writing_twice_deleting_and_filters(corpus, local):
    before = local.search_vectors(corpus.asked, 10)
    corpus.write(local, 100, 200)
    assert local.count == 384
    assert_same(local.search_vectors(corpus.asked, 10), before)
    title = corpus.titles[7]
    rows, _ = local.search_vectors(corpus.asked[:1], 100, where=f'title == "{title}"')
    assert sorted(rows[0].tolist()) == [row for row, own in enumerate(corpus.titles) if own == title]
    best = int(before[0][0][0])
    local.delete([best, 999])
    assert local.count == 383 and best not in local.search_vectors(corpus.asked[:1], 100)[0][0]
    corpus.write(local, best, best + 1)
    assert_same(local.search_vectors(corpus.asked, 10), before)


def test_filling_writes_what_is_missing_and_never_mixes(corpus, local, tmp_path, sample, sample_passages, short_bert):
    database = MilvusIndex(str(tmp_path / "passages.db"), encoder=corpus.encoder)
    assert database.fill(*corpus.all) == 384
    assert database.fill(*corpus.all) == 0
    database.delete([*range(100, 140), 383])
    assert database.fill(*corpus.all) == 41 and database.count == 384
    assert_same(database.search_vectors(corpus.asked, 100), local.search_vectors(corpus.asked, 100))
    assert_same(database.search_sparse(corpus.words, 100), local.search_sparse(corpus.words, 100))
    database.check(sample_passages)  # it can be mined from
    for titles, weights in ((["other"] * 384, corpus.weights), (corpus.titles, corpus.weights * 2)):
        assert database.fill(corpus.shards, titles, weights) == 384  # the old ones would be wrong
    for number in range(2):
        encode_shard(short_bert, sample_passages, tmp_path / "two", number, 2)
    assert database.fill(finish_shards(tmp_path / "two", 2), corpus.titles, corpus.weights) == 384
    with pytest.raises(DataError, match="384 passages, 383 titles and weights of 384; give one of each per passage"):
        database.fill(corpus.shards, corpus.titles[:-1], corpus.weights)
    database.close()


FILL = """
import pickle, sys
from helpers.topics import vector_database
vector_database.BATCH = 8
folder, shards, titles, weights = pickle.load(open(sys.argv[1], "rb"))
database = vector_database.MilvusIndex(folder)
upsert = database.upsert
def told(*rows): upsert(*rows); print("a batch", flush=True)
database.upsert = told
database.fill(shards, titles, weights)
"""


def test_a_killed_loader_loses_nothing_that_it_had_written(corpus, local, tmp_path):
    job, folder = tmp_path / "job", str(tmp_path / "passages.db")
    job.write_bytes(
        pickle.dumps((folder, Shards(corpus.shards.folder, corpus.shards.entries), corpus.titles, corpus.weights))
    )
    loader = subprocess.Popen([sys.executable, "-c", FILL, str(job)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for _ in range(3):
        assert loader.stdout.readline() == "a batch\n"
    loader.kill()
    loader.wait()
    database = MilvusIndex(folder, encoder=corpus.encoder)
    left = database.fill(*corpus.all)
    assert 0 < left <= 384 - 24 and database.count == 384
    assert_same(database.search_vectors(corpus.asked, 100), local.search_vectors(corpus.asked, 100))
    assert_same(database.search_sparse(corpus.words, 100), local.search_sparse(corpus.words, 100))
    database.close()


def test_a_corpus_without_words_has_no_weights():
    bm25 = BM25(["", "  "])
    assert bm25_weights(bm25).shape == (2, 0) and bm25_query_weights(bm25, ["a word"]).shape == (1, 0)


def test_a_passage_and_a_question_without_words(corpus, local):
    nothing = csr_array((1, corpus.weights.shape[1]), dtype=np.float32)
    local.upsert([384], ["p"], ["no words"], corpus.vectors[:1], nothing)
    try:
        assert local.search_vectors(corpus.vectors[:1], 2)[0][0].tolist() == [0, 384]  # equal: in the corpus's order
        assert 384 not in np.concatenate(local.search_sparse(corpus.words, 385)[0])
        assert len(local.search_sparse(nothing, 10)[0][0]) == 0
    finally:
        local.delete([384])


def test_what_cannot_be_is_told(corpus, local, tmp_path):
    with pytest.raises(DataError, match="holds vectors of 128 numbers"):
        local.search_vectors(corpus.asked[:, :3], 1)
    for k in (0, 16_385):
        with pytest.raises(SettingError, match=f"k={k}: Milvus returns 1 to 16,384 passages"):
            local.search_vectors(corpus.asked, k)
    with pytest.raises(SettingError, match="candidates=0: Milvus returns"):
        local.hybrid(corpus.asked, corpus.words, 10, candidates=0)
    with pytest.raises(DataError, match=r"\[2, 1, 1, 1, 1\]; give one of each per passage"):
        local.upsert([0, 1], ["p"], ["t"], corpus.vectors[:1], corpus.weights[:1])
    local.delete([])
    assert local.count == 384
    with pytest.raises(DataError, match="collection 'passages': "):
        local.search_vectors(corpus.asked, 1, where="title ==")
    empty = MilvusIndex(str(tmp_path / "empty.db"))
    with pytest.raises(DataError, match=r"'passages' does not exist.*make it first: create\(dimension\)"):
        empty.search_vectors(corpus.asked, 1)
    empty.close()
    with pytest.raises(DataError, match="close it in the other notebook or process"):
        MilvusIndex(str(tmp_path / "nowhere" / "empty.db"))
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9, .*start the server and repeat the call"):
        MilvusIndex("http://127.0.0.1:9", patience=0.2)


@pytest.fixture
def server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["server", "--data-dir", str(tmp_path / "server"), "--host", "127.0.0.1", "--port", str(port)]
    started = []

    def start():
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([sys.executable, "-c", SERVE, *options], **quiet))

    start.address, start.started = f"http://127.0.0.1:{port}", started
    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_server_answers_many_at_once_and_its_death_loses_no_write(corpus, local, server):
    server()
    index = MilvusIndex(server.address, patience=60)  # it waits until the server is up
    index.create(corpus.shards.dimension)
    corpus.write(index, 0, 300)
    server.started[0].send_signal(signal.SIGKILL)
    server.started[0].wait()
    index.patience, begin = 0.5, time.monotonic()
    with pytest.raises(DataError, match="start the server and repeat the call, which does no harm"):
        corpus.write(index, 200, 384)
    assert time.monotonic() - begin < 20
    index.patience = 60
    threading.Timer(0.5, server).start()
    corpus.write(index, 200, 384)  # begun while the server is still away
    assert index.count == 384  # what the first write had acknowledged is there too
    one_by_one = [index.search_vectors(vector[None], 10) for vector in corpus.asked[:32]]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda vector: index.search_vectors(vector[None], 10), corpus.asked[:32]))
    for one, other in zip(one_by_one, together, strict=True):
        assert_same(other, one, 1e-6)
    assert_same(index.search_vectors(corpus.asked, 100), local.search_vectors(corpus.asked, 100))
    index.close()


def test_a_server_killed_between_batches_keeps_what_it_acknowledged_and_a_silent_one_is_told(
    corpus, server, monkeypatch
):
    monkeypatch.setattr("helpers.topics.vector_database.BATCH", 50)
    server()
    index = MilvusIndex(server.address, patience=60)
    acknowledged, upsert = [], index._client.upsert

    def watched(name, data, **options):
        if len(acknowledged) == 3:
            server.started[0].kill()  # SIGKILL, while the fourth batch is on its way
        answer = upsert(name, data=data, **options)
        acknowledged.extend([len(data)])
        return answer

    monkeypatch.setattr(index._client, "upsert", watched)
    index.patience = 0.5
    with pytest.raises(DataError, match="start the server and repeat the call"):
        index.fill(*corpus.all)
    written = sum(acknowledged)
    assert 128 <= written < 384  # three batches of the first shard
    server.started[0].wait()
    server()
    index.patience = 60
    there = index.count
    assert written <= there <= written + 50  # one batch may have arrived without an answer
    assert index.fill(*corpus.all) == 384 - there and index.count == 384
    index.patience = 1
    server.started[1].send_signal(signal.SIGSTOP)  # it is there, but silent
    with pytest.raises(DataError, match="if it is only slow, raise patience; else start the server"):
        index.search_vectors(corpus.asked, 1)
    server.started[1].send_signal(signal.SIGCONT)
    index.patience = 60
    assert index.count == 384
    index.close()
