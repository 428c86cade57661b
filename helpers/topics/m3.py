"""BGE-M3's three retrievers in one model: one forward pass gives a vector, weights of words and a vector per token.

Chen et al. 2024, https://arxiv.org/abs/2402.03216. Where the paper and FlagEmbedding's code differ, we follow the code.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.sparse import csr_array, vstack
from torch import Tensor

from helpers.encoder import HEADS, Encoder
from helpers.topics.late_interaction import WINDOW, TokenVectors, mean_maxsim, read_head


class M3Encoder(Encoder):
    """An encoder with BGE-M3's two heads. A text of L tokens becomes one tensor, [L, H + 2], see `unpack`.

    Each row belongs to a token: H numbers, the token's weight as a word, and its id. The first row has the dense
    vector, the others the token vectors. So the training loop can treat all three outputs as one. A model other than
    BGE-M3 gets new heads: token vectors as they are, and word weights that are equal until they are trained.
    """

    kind = "m3"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        size = self.model.config.hidden_size
        self.sparse_linear, self.colbert_linear = (read_head(self, Path(name).stem) for name in HEADS)
        if not self.sparse_linear:
            self.sparse_linear = torch.nn.Linear(size, 1)
            torch.nn.init.zeros_(self.sparse_linear.weight)
            torch.nn.init.constant_(self.sparse_linear.bias, 0.1)  # every word counts the same
        if not self.colbert_linear:
            self.colbert_linear = torch.nn.Linear(size, size, bias=False)
            torch.nn.init.eye_(self.colbert_linear.weight)

    def output_shape(self, length: int) -> tuple[int, ...]:
        """Return the shape of what one text of `length` tokens becomes: (length, H + 2)."""
        return length, self.model.config.hidden_size + 2

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return all three outputs of each text, [B, L, H + 2], with zeros for padding."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        tokens = F.normalize(self.colbert_linear(hidden[:, 1:]), dim=-1)
        tokens = F.pad(tokens, (0, hidden.shape[-1] - tokens.shape[-1]))  # a head may have fewer outputs
        vectors = torch.cat([self.pool(hidden, attention_mask)[:, None], tokens], 1)
        columns = vectors, self.sparse_linear(hidden).relu(), input_ids[:, :, None]
        exact = torch.promote_types(vectors.dtype, torch.float32)  # token ids do not fit into bfloat16
        return torch.cat([column.to(exact) for column in columns], -1) * attention_mask[:, :, None]

    def unpack(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return dense vectors [B, H], word weights [B, V] and token vectors [B, L - 1, H] of [B, L, H + 2]."""
        words = packed.new_zeros(len(packed), self.model.config.vocab_size)
        words = words.scatter_reduce(1, packed[:, :, -1].long(), packed[:, :, -2], "amax")
        special = torch.tensor(self.tokenizer.all_special_ids, device=words.device)
        return packed[:, 0, :-2], words.index_fill(1, special, 0), packed[:, 1:, :-2]

    def similarity(self, q_vec: Tensor, passage_vecs: Tensor) -> Tensor:
        """Return the scores by vector, by words and by tokens, [3, B, P]."""
        (q_dense, q_words, q_tokens), (dense, words, tokens) = self.unpack(q_vec), self.unpack(passage_vecs)
        return torch.stack([q_dense @ dense.T, q_words @ words.T, mean_maxsim(q_tokens, tokens)])

    def export(self, folder: Path, metadata: Mapping) -> None:
        """Write the heads as they are now; the torch files of the model that it came from would be out of date."""
        for name, head in zip(HEADS, (self.sparse_linear, self.colbert_linear), strict=True):
            save_file(head.state_dict(), (folder / name).with_suffix(".safetensors"))


def encode_m3(
    encoder: M3Encoder, texts: Sequence[str], kind: str, precision: str = "fp16"
) -> tuple[np.ndarray, csr_array, TokenVectors]:
    """Return dense vectors [N, H], word weights [N, V] and the vectors of all tokens, from one forward pass."""
    dense, words = [], []

    def token_windows() -> Iterator[np.ndarray]:
        for packed in encoder.encode_windows(texts, kind, WINDOW):
            vectors, weights, tokens = encoder.unpack(torch.from_numpy(packed))
            dense.append(vectors.numpy())
            words.append(csr_array(weights.numpy()))
            yield tokens.numpy()

    tokens = TokenVectors.pack(token_windows(), precision)  # fills `dense` and `words` on the way
    return np.concatenate(dense), vstack(words, "csr"), tokens


def m3_loss(temperature: float = 0.05, self_distillation: bool = True) -> Callable:
    """Return BGE-M3's joint loss for `helpers.training.Task`, from (scores [3, B, P], batch) to a scalar.

    Each output learns to pick the positive, and so does their ensemble. With `self_distillation` each also learns the
    ensemble's softmax. The weights are those of FlagEmbedding 1.4.
    """

    def loss(scores: Tensor, batch) -> Tensor:
        dense, sparse, colbert = scores / temperature
        scores = torch.stack([dense, sparse, colbert, dense + 0.3 * sparse + colbert])
        logs = scores.masked_fill(~batch.allowed, float("-inf")).log_softmax(-1)
        share = scores.new_tensor([1, 0.1, 1, 1])  # the sparse output counts less
        right = logs.gather(2, batch.positive[None, :, None].expand(4, -1, 1))
        total = -(share * right.mean((1, 2))).sum() / 4
        if self_distillation:
            teacher = logs[3].detach().exp()
            learnt = (teacher * logs[:3].masked_fill(~batch.allowed, 0)).sum(-1).mean(-1)
            total = (total - (share[:3] * learnt).sum() / 3) / 2
        return total

    return loss
