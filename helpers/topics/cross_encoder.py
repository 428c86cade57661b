"""A cross-encoder: question and passage read together, one logit. Too slow to search with, good at judging a few."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from helpers.base.assets import ASSETS, fetch
from helpers.base.devices import choose_device
from helpers.base.errors import ModelError, shorten
from helpers.base.files import QUIET, atomic_path
from helpers.dataset import PassageIndex
from helpers.retrieval import Run


class CrossEncoder(torch.nn.Module):
    """A sequence classifier with one output, and its tokenizer. Nogueira & Cho 2019, https://arxiv.org/abs/1901.04085."""

    def __init__(self, model: torch.nn.Module, tokenizer, max_length: int = 256):
        super().__init__()
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length

    def forward(self, questions: Sequence[str], passages: Sequence[str]) -> Tensor:
        """Return the logit of each (question, passage), [N]."""
        inputs = self.tokenizer(
            list(questions), list(passages), truncation="longest_first", max_length=self.max_length, padding=True,
            return_tensors="pt",
        )  # fmt: skip
        return self.model(**inputs.to(self.model.device)).logits[:, 0]

    @torch.inference_mode()
    def score(self, question: str, passages: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Return the logits of `passages` for one question, [N]; passages of like length share a batch."""
        scores, order = (
            np.zeros(len(passages), dtype=np.float32),
            sorted(range(len(passages)), key=lambda number: len(passages[number])),
        )
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            scores[batch] = self([question] * len(batch), [passages[n] for n in batch]).float().cpu().numpy()
        return scores

    def rerank(self, run: Run, queries: Mapping[str, str], passages: PassageIndex, depth: int, name: str) -> Run:
        """Return `run` with the first `depth` passages of every question in the order of their logits."""
        rankings, found = [], []
        for qid, rows in tqdm(zip(run.qids, run.rankings, strict=True), desc=name, total=len(run.qids), delay=2,
                              disable=QUIET, leave=False):  # fmt: skip
            scores = self.score(queries[qid], [passages.texts[row] for row in rows[:depth]])
            order = np.argsort(-scores, kind="stable")
            rest = scores.min(initial=0) - np.arange(1, 1 + len(rows[depth:]))  # below, in the order they had
            rankings.append(np.concatenate([rows[:depth][order], rows[depth:]]))
            found.append(np.concatenate([scores[order], rest]))
        return Run(name, run.qids, rankings, found)

    def save(self, folder: str | Path) -> None:
        """Write weights and tokenizer to `folder` in one step; `load_cross_encoder` and transformers read it."""
        with atomic_path(folder) as temporary:
            self.model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)


def load_cross_encoder(model_name: str, device: str = "auto", seed: int = 0) -> CrossEncoder:
    """Load any encoder as a cross-encoder; a head that its weights lack starts from `seed` and must be trained.

    Raises
    ------
    ModelError : no such model; code in a model folder is never run
    """
    target, source = choose_device(device), fetch(model_name) if model_name in ASSETS else model_name
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_pretrained(
                source, num_labels=1, dtype=torch.float32, trust_remote_code=False
            )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cross-encoder {shorten(model_name)} could not be loaded: {reason}") from error
    return CrossEncoder(model, tokenizer).to(target).eval()
