"""What one training step needs, memory and arithmetic, computed from the architecture before a GPU is rented.

Counted for the layers of BERT and XLM-RoBERTa in transformers 5: what autograd keeps of a layer's forward pass for its
backward pass. The tests count it again on real layers; `tests/benchmarks/measure_memory.py` measures peaks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PretrainedConfig

FP32, BF16 = 4, 2  # bytes of a number


@dataclass(frozen=True)
class Saving:
    """Ways to train in less memory.

    Attributes
    ----------
    precision : "fp32", or "bf16"/"fp16": mixed, with weights in fp32 and a 16-bit copy of the matrices beside them
    gradient_checkpointing : each layer keeps only its input, and one at a time computes the rest again
    lora_rank : rank of the adapters that are trained instead of the weights; 0: all weights
    pieces : texts are encoded in several rounds (`micro_batch`, `accumulate`), so that gradients of the first lie in
        memory beside the activations of the next; False: when all activations are there, there is no gradient yet
    fused : attention computes the softmax in pieces and keeps none of it, as on a GPU; False: as on a CPU with
        dropout, where the heads' [L, L] matrices are kept three times
    """

    precision: str = "fp32"
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    pieces: bool = False
    fused: bool = True


def parameter_counts(config: PretrainedConfig, lora_rank: int = 0) -> dict[str, int]:
    """Return how many parameters are in the embeddings, in the layers' matrices, in all, and trained."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    embeddings = (config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2) * hidden
    matrices = layers * (4 * hidden * hidden + 2 * hidden * inner)
    every = embeddings + matrices + layers * (9 * hidden + inner)  # biases, and two norms of two vectors each
    adapters = layers * lora_rank * (10 * hidden + 2 * inner)  # two thin matrices beside each of the six
    return {
        "embeddings": embeddings,
        "matrices": matrices,
        "all": every + adapters,
        "trained": adapters or every,
    }


def layer_activations(config: PretrainedConfig, length: int, saving: Saving = Saving()) -> int:
    """Return the bytes that one layer keeps of one text of `length` tokens until its backward pass."""
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    per_token = (40 * hidden + 8 * inner) if saving.precision == "fp32" else (34 * hidden + 4 * inner)
    softmax = 0 if saving.fused else 3 * FP32 * heads * length * length
    return length * per_token + softmax


def training_memory(config: PretrainedConfig, texts: float, length: int, saving: Saving = Saving()) -> dict[str, float]:
    """Return the memory of a training step in GB (10⁹ bytes): its parts, and the total that is needed at once.

    Parameters
    ----------
    texts : encoded at a time: `micro_batch`, or without it every question and passage of a batch
    length : their tokens, padding included

    AdamW keeps two averages for each trained parameter. The total is the peak: activations and gradients do not all
    exist at once, see `Saving.pieces`, and the gradient of the embeddings exists twice for a moment. On one H200 it was
    within 10% of the measured peak of BGE-M3's size (data/results/gpu.json). Libraries, the CUDA context (half a GB or
    more) and fragmentation come on top.
    """
    counts, layer = parameter_counts(config, saving.lora_rank), layer_activations(config, length, saving)
    kept = config.num_hidden_layers * layer
    if saving.gradient_checkpointing:
        kept = config.num_hidden_layers * length * config.hidden_size * FP32 + layer
    parts = {
        "weights": FP32 * counts["all"] + (BF16 * counts["matrices"] if saving.precision != "fp32" else 0),
        "gradients": FP32 * counts["trained"],
        "AdamW": 2 * FP32 * counts["trained"],
        "activations": texts * (kept + 2 * FP32 * length * config.hidden_size),  # the embeddings keep two
    }
    twice = 0 if saving.lora_rank else FP32 * counts["embeddings"]
    gradients, activations = parts["gradients"], parts["activations"]
    if saving.pieces:
        moving = gradients + max(activations, twice)
    else:
        moving = max(activations, gradients + twice)
    parts["total"] = parts["weights"] + parts["AdamW"] + moving
    return {name: size / 1e9 for name, size in parts.items()}


def forward_flops(config: PretrainedConfig, lengths: Iterable[int]) -> float:
    """Return the floating-point operations that encoding texts of these lengths, in tokens, takes once.

    A multiplication and an addition for each token and weight of the layers' matrices, and as much again for the
    scores of attention and for the sums that they weight, L² · H each. A training step takes three times that, since
    the backward pass costs two forward ones; what checkpointing or GradCache computes again is not counted as work,
    nor is padding. Their share of the card's peak is the MFU (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311).
    """
    matrices = parameter_counts(config)["matrices"]
    attention = 4 * config.num_hidden_layers * config.hidden_size
    return float(sum(2 * matrices * length + attention * length**2 for length in lengths))
