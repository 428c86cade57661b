"""A cross-encoder: question and passage read together, one logit. Too slow to search with, good at judging a few."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from helpers.base.assets import ASSETS, fetch
from helpers.base.devices import choose_device
from helpers.base.files import QUIET, atomic_path
from helpers.base.pretrained import loading, read_pretrained
from helpers.dataset import PassageIndex
from helpers.retrieval import Run


class CrossEncoder(torch.nn.Module):
    """A sequence classifier with one output, and its tokenizer. Nogueira & Cho 2019, https://arxiv.org/abs/1901.04085."""

    def __init__(self, model: torch.nn.Module, tokenizer, max_length: int = 256):
        super().__init__()
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length

    def forward(self, questions: Sequence[str], passages: Sequence[str]) -> Tensor:
        """Return the logit of each (question, passage), [N]."""
        how = {"truncation": "longest_first", "max_length": self.max_length, "padding": True, "return_tensors": "pt"}
        inputs = self.tokenizer(list(questions), list(passages), **how)
        return self.model(**inputs.to(self.model.device)).logits[:, 0]

    @torch.inference_mode()
    def score(self, question: str, passages: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Return the logits of `passages` for one question, [N]; passages of similar length share a batch."""
        scores = np.zeros(len(passages), dtype=np.float32)
        order = sorted(range(len(passages)), key=lambda number: len(passages[number]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            scores[batch] = self([question] * len(batch), [passages[n] for n in batch]).float().cpu().numpy()
        return scores

    def rerank(self, run: Run, queries: Mapping[str, str], passages: PassageIndex, depth: int, name: str) -> Run:
        """Return `run` with the first `depth` passages of every question in the order of their logits."""
        new = Run(name, run.qids, [], [])
        pairs = list(zip(run.qids, run.rankings, strict=True))
        for qid, rows in tqdm(pairs, desc=name, delay=2, disable=QUIET, leave=False):
            scores = self.score(queries[qid], [passages.texts[row] for row in rows[:depth]])
            order = np.argsort(-scores, kind="stable")
            rest = scores.min(initial=0) - np.arange(1, 1 + len(rows[depth:]))  # below, in the order they had
            new.rankings.append(np.concatenate([rows[:depth][order], rows[depth:]]))
            new.scores.append(np.concatenate([scores[order], rest]))
        new.check()
        return new

    def save(self, folder: str | Path) -> None:
        """Write weights and tokenizer to `folder` in one step; `load_cross_encoder` and transformers read it."""
        with atomic_path(folder) as temporary:
            self.model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)


def load_cross_encoder(model_name: str, device: str = "auto", seed: int = 0) -> CrossEncoder:
    """Load any encoder as a cross-encoder; a head that its weights lack starts from `seed` and must be trained.

    Raises a ModelError if there is no such model, or if it is damaged.
    """
    target, source = choose_device(device), fetch(model_name) if model_name in ASSETS else model_name
    with loading(model_name, "cross-encoder"), torch.random.fork_rng():
        torch.manual_seed(seed)
        cross = CrossEncoder(*read_pretrained(str(source), AutoModelForSequenceClassification, outputs=1)).eval()
        if not np.isfinite(cross.score("a", ["b"])).all():  # a fault of config.json may show only now
            raise ValueError("its scores are not finite")
    return cross.to(target)
