"""Knowledge distillation: a small student learns a teacher's opinion of every candidate, not only which is right.

A teacher is a function from question ids and passage rows to logits [B, P], with NaN where it was never asked. Vectors
and scores that are slow to compute are kept in a file. Hinton et al. 2015, https://arxiv.org/abs/1503.02531; for
retrieval Hofstätter et al. 2020, https://arxiv.org/abs/2010.02666.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from helpers.base.errors import DataError, ModelError, SettingError
from helpers.base.files import QUIET, atomic_path
from helpers.batches import Batch
from helpers.dataset import PassageIndex, RetrievalData
from helpers.encoder import Encoder
from helpers.gradients import Loss
from helpers.loss import score_loss
from helpers.retrieval import BM25
from helpers.topics.feedback import word_counts, word_scores

BATCH = 32  # texts in a step of `match_vectors`

Teacher = Callable[[Sequence[str], Sequence[int]], Tensor]  # (question ids, passage rows) -> logits [B, P]


def kl_divergence(student: Tensor, teacher: Tensor, softness: float = 1.0) -> Tensor:
    """Return T² · KL(softmax(teacher / T) ‖ softmax(student / T)), T being `softness`, mean over questions; scalar.

    A large T shows the student what the teacher thinks of the wrong candidates too. It shrinks the gradient by T², and
    the factor makes up for that, so that the weight of another loss beside it keeps its meaning (Hinton et al. 2015).

    Parameters
    ----------
    student, teacher : logits, [B, P]; candidates whose teacher logit is NaN are left out on both sides

    >>> one = torch.tensor([[2.0, 0.0]])
    >>> kl_divergence(one - 5, one).item(), round(kl_divergence(-one, one).item(), 4)  # 2 · (2p − 1), p = sigmoid(2)
    (0.0, 1.5232)
    """
    unknown = teacher.isnan()
    target = (teacher.masked_fill(unknown, -1e9) / softness).log_softmax(1)
    guess = (student.masked_fill(unknown, -1e9) / softness).log_softmax(1)
    return softness**2 * F.kl_div(guess, target, reduction="batchmean", log_target=True)


def margin_mse(student: Tensor, teacher: Tensor, positive: Tensor) -> Tensor:
    """Return the mean square of (s₊ − s) − (t₊ − t) over all known candidates but the positives; scalar.

    Only margins count: the two may score at different levels, but must use the same scale. Hofstätter et al. 2020.

    Parameters
    ----------
    student, teacher : logits, [B, P]; NaN in the teacher's: unknown
    positive : column of each question's positive, [B]
    """
    margins = [logits.gather(1, positive[:, None]) - logits for logits in (student, teacher)]
    known = margins[1].isfinite().scatter(1, positive[:, None], False)
    return (margins[0][known] - margins[1][known]).square().sum() / max(1, int(known.sum()))


def distillation_loss(
    teacher: Teacher, kind: str = "kl", softness: float = 1.0, contrastive: float = 0.0, temperature: float = 0.05
) -> Loss:
    """Return a loss for `helpers.training.Task`: distillation + `contrastive` · InfoNCE.

    Parameters
    ----------
    teacher : asked for all pairs of a batch; its logits are compared with similarity / `temperature`
    kind : "kl", with T = `softness`, or "margin"
    """
    if kind not in ("kl", "margin") or not 0 < softness < math.inf or not 0 <= contrastive < math.inf:
        given = f"kind={kind!r}, softness={softness}, contrastive={contrastive}"
        raise SettingError(f"{given}: kind is 'kl' or 'margin', softness is above 0, contrastive is not negative")

    def total(scores: Tensor, batch: Batch) -> Tensor:
        student, known = scores / temperature, teacher(batch.qids, batch.columns).to(scores.device)
        margin, positive = kind == "margin", batch.positive
        loss = margin_mse(student, known, positive) if margin else kl_divergence(student, known, softness)
        if contrastive:
            loss = loss + contrastive * score_loss(scores, positive, batch.allowed, temperature)
        return loss

    return total


def teacher_vectors(encoder: Encoder, texts: Mapping[str, Sequence[str]], path: str | Path) -> dict[str, np.ndarray]:
    """Return the vectors of `texts`, kind ("query", "passage") -> [N, D]; computed once, then kept in `path`."""

    def encode() -> dict[str, np.ndarray]:
        return {kind: encoder.search_vectors(own, kind, f"teacher: {kind}") for kind, own in texts.items()}

    return _cached(path, [encoder.fingerprint(), {kind: list(own) for kind, own in texts.items()}], encode)


def dense_teacher(
    vectors: Mapping[str, np.ndarray], qids: Sequence[str], rows: Sequence[int], temperature: float = 0.05
) -> Teacher:
    """Return a dense model as a teacher of all pairs of `qids` and passage `rows`: similarity / `temperature`.

    `vectors` are those of `teacher_vectors` for these questions and passages.
    """
    questions = dict(zip(qids, vectors["query"], strict=True))
    passages = dict(zip(rows, vectors["passage"], strict=True))
    unknown = np.full(vectors["passage"].shape[1], np.nan, dtype=np.float32)

    def teacher(qids: Sequence[str], columns: Sequence[int]) -> Tensor:
        table = np.stack([passages.get(column, unknown) for column in columns])  # [P, D]
        return torch.from_numpy(np.stack([questions[qid] for qid in qids]) @ table.T / temperature)

    return teacher


def listed_teacher(
    score: Callable[[str, Sequence[int]], Sequence[float]],
    candidates: Mapping[str, Sequence[int]],
    path: str | Path,
    name: str,
) -> Teacher:
    """Return a teacher of a list of passages for each question; it scores them once, into `path` (safetensors).

    For a teacher that must read question and passage together, such as a cross-encoder.

    Parameters
    ----------
    score : from a question id and passage rows to as many logits
    candidates : question id -> passage rows, the list that student and teacher share
    name : identifies the teacher, e.g. its fingerprint; under another name everything is scored again
    """

    def ask() -> dict[str, np.ndarray]:
        asked = tqdm(candidates.items(), desc="teacher", delay=2, disable=QUIET, leave=False)
        return {"scores": np.concatenate([np.asarray(score(qid, rows), dtype=np.float32) for qid, rows in asked])}

    pairs = [(qid, int(row)) for qid, rows in candidates.items() for row in rows]
    return _looked_up(dict(zip(pairs, _cached(path, [name, pairs], ask)["scores"].tolist(), strict=True)))


def given_teacher(data: RetrievalData, passages: PassageIndex) -> Teacher:
    """Return the scores that came with the data, in candidates/train.tsv, as a teacher of the pairs that have one.

    Raises a SettingError if there are none.
    """
    scores = {}
    for qid, given in data.candidates.items():
        scores |= {(qid, passages.row.find(pid)): score for pid, score in given.items() if math.isfinite(score)}
    if not scores:
        raise SettingError("no scores came with the data set: candidates/train.tsv has none, or there is no such file")
    return _looked_up(scores)


def _looked_up(scores: Mapping[tuple[str, int], float]) -> Teacher:
    return lambda qids, columns: torch.tensor([[scores.get((q, c), math.nan) for c in columns] for q in qids])


def bm25_teacher(queries: Mapping[str, str], passages: PassageIndex) -> Teacher:
    """Return BM25 as a teacher of all pairs; its scores are cheap, so they are computed batch by batch."""
    bm25 = BM25(passages.texts)
    counts = dict(zip(queries, word_counts(bm25, list(queries.values())), strict=True))
    return lambda qids, columns: torch.from_numpy(np.stack([word_scores(bm25, counts[q])[columns] for q in qids]))


def ensemble(teachers: Sequence[Teacher], weights: Sequence[float]) -> Teacher:
    """Return the teacher whose logits are the weighted sum of others'; unknown where one of them does not know."""
    return lambda qids, columns: sum(w * t(qids, columns) for t, w in zip(teachers, weights, strict=True))


def _cached(path: str | Path, made_from: object, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file, computed again if they were not made from the same."""
    made_from, arrays = hashlib.sha256(repr(made_from).encode()).hexdigest(), {}
    if Path(path).exists():
        try:
            with safe_open(path, framework="numpy") as file:
                if (file.metadata() or {}).get("made_from") == made_from:
                    arrays = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read ({error}); delete it, and it is made again") from error
    if not arrays:
        arrays = dict(sorted(make().items()))  # in the order in which the file has them
        if not all(np.isfinite(array).all() for array in arrays.values()):  # NaN would mean: the teacher was not asked
            raise DataError(f"{path}: the teacher's numbers are NaN or infinite; train it with a lower learning rate")
        with atomic_path(path) as temporary:
            save_file(arrays, temporary, {"made_from": made_from})
    return arrays


def first_layers(encoder: Encoder, count: int) -> Encoder:
    """Return a copy of `encoder` with only its first `count` layers; it saves and loads like any other.

    Raises a SettingError if it has fewer, a ModelError if the layers cannot be told apart from the rest of the model.
    """
    student = deepcopy(encoder)
    config, total = student.model.config, student.model.config.num_hidden_layers
    if not 1 <= count <= total:
        raise SettingError(f"count={count}, but the model has layers 1 to {total}")
    stacks = [m for m in student.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == total]
    if len(stacks) != 1:
        found = f"{len(stacks)} lists of {total} modules"
        raise ModelError(f"{type(student.model).__name__} has {found}; its layers cannot be found")
    del stacks[0][count:]
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    return student


def match_vectors(
    student: Encoder,
    teacher_vecs: Mapping[str, np.ndarray],
    texts: Mapping[str, Sequence[str]],
    steps: int,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> list[float]:
    """Train `student` to give texts its teacher's vectors; return the loss of each step, 1 − cosine.

    `teacher_vecs` and `texts` map "query" and "passage" to vectors [N, D] and the N texts they belong to. Positives and
    negatives are not needed. Reimers & Gurevych 2020, https://arxiv.org/abs/2004.09813, carry a model over to other
    languages this way.
    """
    rng, losses = torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    student.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout's draws are not the caller's
        for step in range(steps):
            kind = ("passage", "query")[step % 2]
            drawn = torch.randint(len(texts[kind]), (BATCH,), generator=rng).tolist()
            inputs = student.pad(student.tokenize([texts[kind][number] for number in drawn], kind), kind)
            vectors = student(**{name: tensor.to(student.device) for name, tensor in inputs.items()})
            wanted = torch.from_numpy(teacher_vecs[kind][drawn]).to(student.device)
            loss = 1 - F.cosine_similarity(vectors, wanted).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    student.eval()
    return losses
