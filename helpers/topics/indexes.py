"""Indexes over shards, with the two methods of `helpers.retrieval.DenseIndex`: exact search on disk, and FAISS.

FAISS: Douze et al. 2024, https://arxiv.org/abs/2401.08281. HNSW: Malkov & Yashunin 2016, https://arxiv.org/abs/1603.09320.
IVF: Jégou et al. 2011, https://doi.org/10.1109/TPAMI.2010.57.
"""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import torch

from helpers.base.errors import DataError, SettingError, shorten
from helpers.base.files import atomic_path, display_path, read_json, told, write_json
from helpers.base.nearest import best_k, nearest
from helpers.dataset import PassageIndex
from helpers.encoder import Encoder
from helpers.topics.shards import Shards

KINDS = ("flat", "hnsw", "ivf", "ivfpq")
TRAINING = 200_000  # vectors at most that IVF is trained on
PATTERNS = 256  # of four numbers each, a byte: what product quantization learns for every group
SEARCHED = {"hnsw": "efSearch", "ivf": "nprobe", "ivfpq": "nprobe"}  # what trades speed for recall


class VectorIndex:
    """What finds passages by the vectors of questions, and by their texts if it is given an encoder.

    With an encoder and `shards` it can be mined from: `helpers.strategies.dense_strategy` takes it as a `DenseIndex`,
    for an encoder that stays as it is.
    """

    encoder: Encoder | None = None
    shards: Shards | None = None

    @property
    def vectors(self) -> Shards:
        """The passages' vectors on disk, of which `vectors[rows]` reads some."""
        if self.shards is None:
            raise SettingError("this index was made without shards, which hold the passages' vectors; give it them")
        return self.shards

    def check(self, passages: PassageIndex) -> None:
        """Raise a DataError if the rows are not those of `passages`, or not made by the encoder."""
        self.vectors.check(self._known_encoder(), passages)

    def _known_encoder(self) -> Encoder:
        if self.encoder is None:
            raise SettingError("this index was made without an encoder; give it one, or use search_vectors")
        return self.encoder

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return row numbers and scores of the `k` best passages, [Q, k] each, best first."""
        return self.search_vectors(self._known_encoder().search_vectors(queries, "query"), k)

    def search_vectors(self, query_vecs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the same for questions that are encoded already, [Q, D]."""
        raise NotImplementedError


class ShardIndex(VectorIndex):
    """Exact search over vectors that stay on disk: one shard in memory at a time, ties in corpus order."""

    def __init__(self, shards: Shards, encoder: Encoder | None = None):
        self.shards, self.encoder = shards, encoder

    def search_vectors(self, query_vecs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return row numbers and dot products of the `k` nearest passages, [Q, k] each."""
        queries = torch.from_numpy(fitting(query_vecs, self.shards.dimension))
        rows, scores = torch.empty(len(queries), 0, dtype=torch.long), torch.empty(len(queries), 0)
        for start, vectors in self.shards.blocks():
            found = nearest(queries, torch.from_numpy(vectors.astype(np.float32)), k)
            rows = torch.cat([rows, torch.from_numpy(found[0]) + start], dim=1)
            scores = torch.cat([scores, torch.from_numpy(found[1])], dim=1)
            best, scores = best_k(scores, k)  # an earlier shard's passage stays before an equal one of this shard
            rows = rows.gather(1, best)
        return rows.numpy(), scores.numpy()


class FaissIndex(VectorIndex):
    """A FAISS index over the rows of a corpus.

    Attributes
    ----------
    effort : what HNSW visits (efSearch) or how many lists IVF reads (nprobe): more finds more and takes longer
    """

    def __init__(self, index: faiss.Index, kind: str, shards: Shards | None = None, encoder: Encoder | None = None):
        self.index, self.kind, self.shards, self.encoder = index, kind, shards, encoder

    @property
    def effort(self) -> int:
        """The present value of efSearch or nprobe; 0 where the search is exact."""
        if self.kind not in SEARCHED:
            return 0
        return self.index.hnsw.efSearch if self.kind == "hnsw" else self.index.nprobe

    @effort.setter
    def effort(self, value: int) -> None:
        if self.kind in SEARCHED:
            faiss.ParameterSpace().set_index_parameter(self.index, SEARCHED[self.kind], value)

    def search_vectors(self, query_vecs: np.ndarray, k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return row numbers and scores of up to `k` passages for each question, best first."""
        scores, rows = self.index.search(fitting(query_vecs, self.index.d), min(k, self.index.ntotal))
        found = [own >= 0 for own in rows]  # FAISS fills up with -1 where it has seen fewer
        return list(map(np.extract, found, rows)), list(map(np.extract, found, scores))

    def save(self, folder: Path) -> None:
        """Write the index and what it was made from to `folder` in one step."""
        with atomic_path(folder) as temporary, told(folder):
            temporary.mkdir()
            faiss.write_index(self.index, str(temporary / "index.faiss"))
            write_json(temporary / "index.json", {"kind": self.kind, "shards": self.vectors.fingerprint})


def build_faiss(kind: str, shards: Shards, encoder: Encoder | None = None, seed: int = 0) -> FaissIndex:
    """Return a FAISS index, filled shard by shard, so that float32 vectors of one shard are in memory at a time.

    Parameters
    ----------
    kind : "flat": exact. "hnsw": a graph of 32 neighbours. "ivf": lists around about 4 · √P centroids. "ivfpq": the
        same with a byte for every four numbers of a vector, by product quantization

    Raises a SettingError for any other kind, and if product quantization cannot be trained on so few or such vectors.
    """
    if kind not in KINDS:
        raise SettingError(f"index={shorten(kind)}: use one of {', '.join(KINDS)}")
    size, dimension = len(shards), shards.dimension
    lists = max(1, min(round(4 * size**0.5), size // 39))  # FAISS wants 39 training vectors a centroid
    if kind == "ivfpq" and (size < PATTERNS or dimension % 4):
        fix = f"it needs {PATTERNS} vectors or more, of a multiple of 4 numbers"
        raise SettingError(f"index='ivfpq': there are {size} vectors of {dimension} numbers; {fix}")
    recipe = {"flat": "Flat", "hnsw": "HNSW32", "ivf": f"IVF{lists},Flat", "ivfpq": f"IVF{lists},PQ{dimension // 4}np"}
    index = faiss.index_factory(dimension, recipe[kind], faiss.METRIC_INNER_PRODUCT)  # np: no minutes of annealing
    if kind == "ivfpq":
        index.pq.cp.min_points_per_centroid = 1  # do not warn that a small corpus is little to train on
    if not index.is_trained:
        index.train(_sample(shards, seed))
    for _, vectors in shards.blocks():
        index.add(vectors.astype(np.float32))
    return FaissIndex(index, kind, shards, encoder)


def load_faiss(folder: Path, shards: Shards, encoder: Encoder | None = None) -> FaissIndex:
    """Open what `FaissIndex.save` wrote, mapped from the disk where FAISS can.

    Raises
    ------
    DataError : there is none, it is damaged, or it was made from other shards
    """
    about = read_json(folder / "index.json")
    if about.get("shards") != shards.fingerprint:
        raise DataError(f"{display_path(folder)} was made from other shards; build it again")
    try:
        index = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise DataError(f"{display_path(folder)} is damaged ({shorten(error)}); build it again") from error
    return FaissIndex(index, about["kind"], shards, encoder)


def recall(found: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> np.ndarray:
    """Return the share of the exact rows that were found, per question, [Q].

    >>> recall([np.array([1, 2])], [np.array([1, 3, 2])]).round(2).tolist()
    [0.67]
    """
    return np.array([len(np.intersect1d(own, best)) / len(best) for own, best in zip(found, exact, strict=True)])


def _sample(shards: Shards, seed: int) -> np.ndarray:
    share, rng = min(1.0, TRAINING / len(shards)), np.random.default_rng(seed)
    parts = [
        vectors[np.sort(rng.permutation(len(vectors))[: max(1, round(share * len(vectors)))])]
        for _, vectors in shards.blocks()
    ]
    return np.concatenate(parts).astype(np.float32)


def fitting(vectors: np.ndarray, dimension: int) -> np.ndarray:
    """Return vectors [N, D] as float32; raise a DataError if D is not the index's, or one is NaN or infinite."""
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise DataError(f"the vectors are {vectors.shape}, but the index holds vectors of {dimension} numbers")
    if not np.isfinite(vectors).all():
        raise DataError("a vector is NaN or infinite; train again with a lower learning rate")
    return np.ascontiguousarray(vectors, np.float32)
