"""Late interaction: a vector for every token, compared by MaxSim (ColBERT, https://arxiv.org/abs/2004.12832).

Vectors of several texts are padded with rows of zeros, [N, L, D]. No real row is zero, because its length is 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import cached_file

from helpers.base.errors import ModelError, SettingError, shorten
from helpers.base.nearest import best_k
from helpers.encoder import Encoder
from helpers.topics.small_vectors import to_int8

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}
WINDOW = 128  # texts that are in memory padded at the same time
QUESTIONS = 64  # questions searched for together
MAX_SCORES = 2**22  # token similarities that are in memory at the same time


def maxsim(q_vecs: Tensor, passage_vecs: Tensor) -> Tensor:
    """Return Σ over a question's tokens of the best dot product with a passage's token, for all pairs: [B, P].

    Both are padded with rows of zeros, [B, Lq, D] and [P, Lp, D].

    >>> question = torch.eye(2)[None]  # two tokens
    >>> maxsim(question, torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 0.0]]])).tolist()  # 1.0 and 0.8; padding is none
    [[1.7999999523162842]]
    """
    q_real, p_real = is_token(q_vecs), is_token(passage_vecs)
    return flat_maxsim(q_vecs[q_real], q_real.sum(1), passage_vecs[p_real], p_real.sum(1))


def flat_maxsim(q_vecs: Tensor, q_lengths: Tensor, passage_vecs: Tensor, passage_lengths: Tensor) -> Tensor:
    """Return MaxSim of texts without padding, [B, P]: one large product, then a maximum and a sum over each text.

    The tokens of all questions stand one after the other, [ΣLq, D], and `q_lengths`, [B], says how many each question
    has; the same holds for the passages.
    """
    scores = passage_vecs @ q_vecs.T  # [ΣLp, ΣLq]
    passage_of = torch.repeat_interleave(passage_lengths)[:, None].expand_as(scores)
    lowest = scores.new_full((len(passage_lengths), len(q_vecs)), torch.finfo(scores.dtype).min)
    best = lowest.scatter_reduce(0, passage_of, scores, "amax")  # [P, ΣLq]
    return best.new_zeros(len(q_lengths), len(best)).index_add(0, torch.repeat_interleave(q_lengths), best.T)


def mean_maxsim(q_vecs: Tensor, passage_vecs: Tensor) -> Tensor:
    """Return MaxSim divided by the number of the question's tokens, [B, P]: between -1 and 1, whatever its length."""
    return maxsim(q_vecs, passage_vecs) / is_token(q_vecs).sum(1, keepdim=True)


def is_token(vectors: Tensor) -> Tensor:
    """Return which rows of [N, L, D] are not padding, [N, L]."""
    return (vectors != 0).any(-1)


def read_head(encoder: Encoder, name: str) -> torch.nn.Linear | None:
    """Return the linear layer `name` that is stored beside a model's weights, or None if there is none.

    It is a file of ours (safetensors), or BGE-M3's own (a torch file, of which only tensors are loaded). Raises a
    ModelError if it holds something else or a layer of another size, or if a BGE-M3 has none.
    """
    size = encoder.model.config.hidden_size
    most = 1 if name == "sparse_linear" else size  # numbers that it may give: one weight, or a vector
    patient = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    for suffix in (".safetensors", ".pt"):
        if path := cached_file(encoder.source, name + suffix, **patient):
            try:
                state = load_file(path) if suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
                layer = torch.nn.Linear(*reversed(state["weight"].shape), bias="bias" in state)
                layer.load_state_dict(state)
            except Exception as error:  # torch.load raises nearly anything
                raise ModelError(f"{path}: not a linear layer ({shorten(str(error))}); fetch the file again") from error
            if layer.in_features != size or not 1 <= layer.out_features <= most:
                made_for = f"a layer from {layer.in_features} numbers to {layer.out_features}"
                raise ModelError(f"{path}: {made_for}, but the model's vectors have {size}; it is another model's head")
            return layer.float()
    if "bge-m3" in encoder.profile.base_model.lower():
        raise ModelError(f"{encoder.source} lacks {name}.pt; fetch all files of BGE-M3's repository")
    return None


class MultiVectorEncoder(Encoder):
    """An encoder that keeps a vector of length 1 for every token but the first, [B, L - 1, D].

    If `colbert_linear` is stored beside the weights, as with BGE-M3, the vectors go through it. The score is MaxSim
    divided by the number of the question's tokens, as in BGE-M3. It is a mean cosine, so the same temperature fits.
    """

    kind = "multi-vector"
    similarity = staticmethod(mean_maxsim)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.head = read_head(self, "colbert_linear") or torch.nn.Identity()

    @property
    def dimension(self) -> int:
        """How many numbers a vector has, D."""
        return getattr(self.head, "out_features", self.model.config.hidden_size)

    def output_shape(self, length: int) -> tuple[int, ...]:
        """Return the shape of what one text of `length` tokens becomes: (length - 1, D)."""
        return length - 1, self.dimension

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vectors of each text, [B, L - 1, D], with zeros for padding."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 1:]
        return F.normalize(self.head(hidden), dim=-1) * attention_mask[:, 1:, None]

    def export(self, folder: Path, metadata: Mapping) -> None:
        """Write the head. No files for sentence-transformers, where it would load as a single-vector model."""
        if isinstance(self.head, torch.nn.Linear):
            save_file(self.head.state_dict(), folder / "colbert_linear.safetensors")


@dataclass
class TokenVectors:
    """The vectors of N texts without padding, the tokens of one text after those of the other.

    Attributes
    ----------
    values : [ΣL, D], float32, float16 or int8
    lengths : tokens of each text, [N]
    scales : the factor of each row of int8, [ΣL, 1] of float16; None for floats
    """

    values: Tensor
    lengths: Tensor
    scales: Tensor | None = None

    def __post_init__(self):
        self.ends = self.lengths.cumsum(0)

    @property
    def nbytes(self) -> int:
        """Bytes of vectors and lengths."""
        return sum(tensor.nbytes for tensor in (self.values, self.lengths, self.scales) if tensor is not None)

    def take(self, rows: Sequence[int], device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the vectors of some texts as float32, [ΣL, D], and how many each has."""
        lengths, ends = self.lengths[rows], self.ends[rows]
        tokens = torch.arange(int(lengths.sum())) + torch.repeat_interleave(ends - lengths.cumsum(0), lengths)
        values = self.values[tokens].to(device).float()
        if self.scales is not None:
            values *= self.scales[tokens].to(device)
        return values, lengths.to(device)

    @classmethod
    def pack(cls, windows: Iterable[np.ndarray], precision: str = "fp16") -> "TokenVectors":
        """Return the real rows of padded vectors [N, L, D] in "fp32", "fp16" or "int8".

        int8 stores every number as a multiple of 1/127 of the largest in its vector, and that largest one as float16.
        """
        if precision not in PRECISIONS:
            raise SettingError(f"token_precision={shorten(precision)}: use one of {list(PRECISIONS)}")
        rows, scales, lengths = [], [], []
        for window in map(torch.from_numpy, windows):
            real = is_token(window)
            vectors = window[real]
            lengths.append(real.sum(1))
            if precision == "int8":
                vectors, factors = to_int8(vectors)
                scales.append(factors)
            rows.append(vectors.to(PRECISIONS[precision]))
        return cls(torch.cat(rows), torch.cat(lengths), torch.cat(scales) if scales else None)


def encode_tokens(encoder: Encoder, texts: Sequence[str], kind: str, precision: str = "fp16") -> TokenVectors:
    """Return the vectors of all tokens of `texts`; `encoder` is a `MultiVectorEncoder`."""
    return TokenVectors.pack(encoder.encode_windows(texts, kind, WINDOW, progress=f"tokens ({kind})"), precision)


def maxsim_search(
    query_vecs: TokenVectors,
    passage_vecs: TokenVectors,
    k: int = 100,
    candidates: Sequence[np.ndarray] | None = None,
    device: str = "cpu",
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return row numbers and scores (`mean_maxsim`) of each question's `k` best passages.

    `candidates` are the rows to rank for each question, e.g. the rankings of a cheaper run; None: all passages.
    """
    if candidates is None:
        numbers, everything = range(len(query_vecs.lengths)), np.arange(len(passage_vecs.lengths))
        groups = [(numbers[start : start + QUESTIONS], everything) for start in numbers[::QUESTIONS]]
    else:
        groups = [([number], np.asarray(rows)) for number, rows in enumerate(candidates)]
    rankings, scores = [], []
    for numbers, rows in groups:
        questions, lengths = query_vecs.take(numbers, device)
        size = max(1, MAX_SCORES // (len(questions) * int(passage_vecs.lengths.max())))
        blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
        values = [flat_maxsim(questions, lengths, *passage_vecs.take(block, device)) for block in blocks]
        values = torch.cat(values or [questions.new_zeros(len(lengths), 0)], 1) / lengths[:, None]
        columns, best = best_k(values.cpu(), k)
        rankings += list(rows[columns.numpy()])
        scores += list(best.numpy())
    return rankings, scores
