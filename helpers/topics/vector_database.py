"""Dense and sparse vectors in Milvus, a vector database: Milvus Lite in a folder, or a server or cluster at an address.

The code is the same for all of them; `uri` decides. Milvus: Wang et al. 2021, https://doi.org/10.1145/3448016.3457550.
"""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from helpers.base.errors import DataError, SettingError, shorten
from helpers.encoder import Encoder
from helpers.retrieval import BM25
from helpers.topics.indexes import VectorIndex, fitting
from helpers.topics.shards import Shards, digest

BATCH = 1_000  # passages sent, and questions asked, at a time
MOST = 16_384  # passages that Milvus returns for a question
AWAY = (2, "UNAVAILABLE", "DEADLINE_EXCEEDED")  # Milvus's code and gRPC's names for "cannot be reached"
MISSING = 100  # Milvus's code for "there is no such collection"
RRF = 60  # as `helpers.topics.hybrid.rrf`


class MilvusIndex(VectorIndex):
    """A collection of Milvus: of every passage its row, id, title, vector, and weights of words.

    While a server is away, a call is repeated with growing pauses for `patience` seconds. Then, and whenever the
    database refuses something, there is a DataError. Writes go by row numbers, so they may be repeated.

    Parameters
    ----------
    uri : a path that ends in .db (Milvus Lite), or the address of a server, such as "http://localhost:19530"
    name : of the collection
    token : "user:password" or an API key, where a server asks for one
    patience : seconds; also how long one answer may take

    Raises
    ------
    SettingError : pymilvus is not installed
    DataError : the server cannot be reached, or the folder cannot be opened
    """

    def __init__(
        self, uri: str, name: str = "passages", encoder: Encoder | None = None, token: str = "", patience: float = 30
    ):
        try:
            import grpc  # for this class alone; see the extra `scale`
            import pymilvus
        except ImportError as error:
            raise SettingError("Milvus needs its client: pip install -e '.[scale]'") from error
        for noisy in ("pymilvus", "milvus_lite"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what they log is raised as well
        self.uri, self.name, self.encoder, self.patience = str(uri), name, encoder, patience
        self._library, self._failures = pymilvus, (pymilvus.MilvusException, grpc.RpcError, OSError)
        self._client = self._patiently(lambda: pymilvus.MilvusClient(self.uri, token=token, timeout=patience))

    def create(self, dimension: int, made_from: str = "") -> None:
        """Make an empty collection for vectors of `dimension` numbers; what it held before is gone."""
        kinds, indexes = self._library.DataType, self._library.MilvusClient.prepare_index_params()
        schema = self._library.MilvusClient.create_schema(auto_id=False)
        schema.add_field("row", kinds.INT64, is_primary=True)
        schema.add_field("pid", kinds.VARCHAR, max_length=1_000)
        schema.add_field("title", kinds.VARCHAR, max_length=10_000)
        schema.add_field("dense", kinds.FLOAT_VECTOR, dim=dimension)
        schema.add_field("sparse", kinds.SPARSE_FLOAT_VECTOR)
        indexes.add_index("dense", index_type="FLAT", metric_type="IP")
        indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        if self._call("has_collection"):
            self._call("drop_collection")
        about = {"schema": schema, "index_params": indexes, "properties": {"made_from": made_from}}
        self._call("create_collection", consistency_level="Strong", **about)

    def fill(self, shards: Shards, titles: Sequence[str], weights: csr_array) -> int:
        """Write all passages of `shards` that are not there yet; return how many were written.

        Cut off and called again, it writes the rest. If the collection holds other vectors, titles or weights of words
        [P, V] than these, or was not made by `fill`, it is made anew. It can be mined from, as other indexes can.
        """
        if {len(titles), weights.shape[0]} != {len(shards)}:
            counts = f"{len(shards)} passages, {len(titles)} titles and weights of {weights.shape[0]}"
            raise DataError(f"there are {counts}; give one of each per passage")
        parts = (
            shards.fingerprint,
            *titles,
            weights.data.tobytes(),
            weights.indices.tobytes(),
            weights.indptr.tobytes(),
        )
        made_from, written = digest(*parts), 0
        held = self._call("describe_collection")["properties"] if self._call("has_collection") else {}
        if held.get("made_from") != made_from:
            self.create(shards.dimension, made_from)
        ids = shards.ids()
        for first, vectors in shards.blocks():
            for start in range(0, len(vectors), BATCH):
                block = vectors[start : start + BATCH].astype(np.float32)
                rows = np.arange(first + start, first + start + len(block))
                where = f"row >= {rows[0]} and row <= {rows[-1]}"
                there = [own["row"] for own in self._read("query", filter=where, output_fields=["row"], limit=BATCH)]
                pids, missing = list(islice(ids, len(block))), np.flatnonzero(~np.isin(rows, there))
                new = rows[missing]
                columns = [[own[place] for place in missing] for own in (pids, titles[rows[0] : rows[-1] + 1])]
                self.upsert(new, *columns, block[missing], weights[new])
                written += len(new)
        self.shards = shards
        return written

    def upsert(
        self, rows: Sequence[int], pids: Sequence[str], titles: Sequence[str], vectors: np.ndarray, weights: csr_array
    ) -> None:
        """Write passages, or write them over: their vectors [N, D], and weights of words [N, V].

        Raises a DataError, before anything is written, if there are not N of each, or if D is not the collection's.
        """
        lengths = [len(rows), len(pids), len(titles), len(vectors), weights.shape[0]]
        if len(set(lengths)) > 1:
            raise DataError(f"rows, pids, titles, vectors and weights are {lengths}; give one of each per passage")
        dense = self._fitting(vectors)
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            fields = zip(
                map(int, rows[part]), pids[part], titles[part], dense[part], _words(weights[part]), strict=True
            )
            entities = [dict(zip(("row", "pid", "title", "dense", "sparse"), own, strict=True)) for own in fields]
            self._call("upsert", data=entities)

    def delete(self, rows: Sequence[int]) -> None:
        """Take passages out; rows that are not there do no harm."""
        if len(rows):  # Milvus refuses an empty list
            self._call("delete", ids=[int(row) for row in rows])

    @property
    def count(self) -> int:
        """How many passages the collection holds."""
        return self._read("query", filter="", output_fields=["count(*)"])[0]["count(*)"]

    def search_vectors(
        self, query_vecs: np.ndarray, k: int, where: str = ""
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return rows and dot products of the `k` nearest passages for questions [Q, D], best first, per question.

        Equal scores are in the corpus's order, but which of several equal ones are the last of the `k` is left to
        Milvus. `where` restricts the passages by Milvus's own expressions: `title == "Comets"`.

        Raises a SettingError if `k` is not 1 to 16,384, a DataError if there is no collection, or D is not its own.
        """
        return self._search("dense", self._fitting(query_vecs), k, where)

    def search_sparse(
        self, query_weights: csr_array, k: int, where: str = ""
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the same by the products of weights of words [Q, V]; a passage that shares no word is not found."""
        return self._search("sparse", _words(query_weights, of_questions=True), k, where)

    def hybrid(
        self, query_vecs: np.ndarray, query_weights: csr_array, k: int, candidates: int = 100
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return what the database makes of the first `candidates` by vectors and by words, fused by rank (RRF)."""
        _check(k)
        _check(candidates, "candidates")
        asked = {"dense": self._fitting(query_vecs), "sparse": _words(query_weights, of_questions=True)}
        found = []
        for start in range(0, len(query_vecs), BATCH):
            requests = [
                self._library.AnnSearchRequest(own[start : start + BATCH], field, {"metric_type": "IP"}, candidates)
                for field, own in asked.items()
            ]
            ranker = self._library.RRFRanker(RRF)
            found += self._read("hybrid_search", reqs=requests, ranker=ranker, limit=k, output_fields=["row"])
        return _columns(found)

    def close(self) -> None:
        """Let go of the connection, or of the folder, which one process at a time may open."""
        self._client.close()

    def _fitting(self, vectors: np.ndarray) -> list[np.ndarray]:
        fields = {field["name"]: field for field in self._call("describe_collection")["fields"]}
        return list(fitting(vectors, fields["dense"]["params"]["dim"]))

    def _search(self, field: str, asked: list, k: int, where: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        _check(k)
        found = []
        for part in (asked[start : start + BATCH] for start in range(0, len(asked), BATCH)):
            options = {"anns_field": field, "limit": k, "filter": where, "search_params": {"metric_type": "IP"}}
            found += self._read("search", data=part, output_fields=["row"], **options)
        return _columns(found)

    def _call(self, what: str, **_options: Any) -> Any:
        """Return what the client's method `what` returns for this collection."""
        return self._patiently(lambda: getattr(self._client, what)(self.name, timeout=self.patience, **_options))

    def _read(self, what: str, **_options: Any) -> Any:
        """Return the same of a collection that is in the server's memory: after a restart it is on its disk alone."""
        self._call("load_collection")
        return self._call(what, **_options)

    def _patiently(self, work: Callable[[], Any]) -> Any:
        """Return the result of `work`; while the server cannot be reached, try again with pauses that double."""
        deadline, pause = time.monotonic() + self.patience, 0.1
        while True:
            try:
                return work()
            except self._failures as error:
                code = _code(error)
                if code not in AWAY or time.monotonic() + pause > deadline:
                    raise DataError(f"{self.uri}, collection {self.name!r}: {_reason(error, code)}") from error
            time.sleep(pause)
            pause *= 2


def bm25_weights(bm25: BM25) -> csr_array:
    """Return what each word adds to a passage's score, [P, V]; see `bm25_query_weights`. V is 0 if there is no word."""
    if bm25.index is None:
        return csr_array((bm25.size, 0), dtype=np.float32)
    scores = bm25.index.scores
    shape = bm25.size, len(scores["indptr"]) - 1
    return csr_array((scores["data"], scores["indices"], scores["indptr"]), shape=shape[::-1]).T.tocsr()


def bm25_query_weights(bm25: BM25, queries: Sequence[str]) -> csr_array:
    """Return how often each word stands in a question, [Q, V]; times `bm25_weights`, these are BM25's scores."""
    if bm25.index is None:
        return csr_array((len(queries), 0), dtype=np.float32)
    words = bm25.tokens(queries)
    names = {number: name for name, number in words.vocab.items()}
    ids = [bm25.index.get_tokens_ids([names[number] for number in own]) for own in words.ids]
    ends = np.cumsum([0, *map(len, ids)])
    flat = np.array([number for own in ids for number in own], dtype=int)
    width = len(bm25.index.scores["indptr"]) - 1
    counts = csr_array((np.ones(len(flat), np.float32), flat, ends), shape=(len(queries), width))
    counts.sum_duplicates()
    return counts


def _words(weights: csr_array, of_questions: bool = False) -> list[dict[int, float]]:
    """Return each row as a dict. Milvus takes no empty one: instead there is a column that the other side never has."""
    slices = (slice(*ends) for ends in pairwise(weights.indptr))
    rows = [dict(zip(weights.indices[own].tolist(), weights.data[own].tolist(), strict=True)) for own in slices]
    return [row or {weights.shape[1] + of_questions: 1.0} for row in rows]


def _code(error: Exception) -> object:
    """Return the number that Milvus gives an error, or the name that gRPC does."""
    code = getattr(error, "code", None)
    code = code() if callable(code) else code
    return code if isinstance(code, int) else getattr(code, "name", None)


def _reason(error: Exception, code: object) -> str:
    """Return what failed, and what to do about it."""
    message = getattr(error, "message", "") or (hasattr(error, "details") and error.details()) or str(error)
    fix = "check what was asked"
    if code in AWAY:
        fix = "start the server and repeat the call, which does no harm"
        fix = f"if it is only slow, raise patience; else {fix}" if code == "DEADLINE_EXCEEDED" else fix
    elif code == MISSING:
        fix = "make it first: create(dimension), then upsert"
    elif "Open local milvus failed" in message:
        fix = "close it in the other notebook or process that has it open, and check that its parent folder exists"
    return f"{shorten(' '.join(message.split()), 200)}; {fix}"


def _check(k: int, name: str = "k") -> None:
    if not 1 <= k <= MOST:
        raise SettingError(f"{name}={k}: Milvus returns 1 to {MOST:,} passages for a question")


def _columns(found: Sequence[Sequence[dict]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return rows and scores, one array per question, the best first and equal ones in the order of rows."""
    pairs = [sorted((-hit["distance"], hit["row"]) for hit in hits) for hits in found]
    rows = [np.array([row for _, row in own], dtype=int) for own in pairs]
    return rows, [np.array([-score for score, _ in own], dtype=np.float32) for own in pairs]
