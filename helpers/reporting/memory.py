"""How much memory one training step needs, computed from the architecture alone: before a GPU is rented, not after.

Counted for BERT's and XLM-RoBERTa's layer as transformers 5 builds it: what autograd keeps of a layer's forward pass
for its backward pass. `tests/test_memory.py` counts it again on real layers; `tests/benchmarks/measure_memory.py` measures peaks.
"""

from transformers import PretrainedConfig

FP32, BF16 = 4, 2  # bytes of a number


def parameter_counts(config: PretrainedConfig, lora_rank: int = 0) -> dict[str, int]:
    """Return how many parameters are in the embeddings, in the layers' matrices, in all, and trained."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    embeddings = (config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2) * hidden
    matrices = layers * (4 * hidden * hidden + 2 * hidden * inner)
    every = embeddings + matrices + layers * (9 * hidden + inner)  # biases, and two norms of two vectors each
    adapters = layers * lora_rank * (10 * hidden + 2 * inner)  # two thin matrices beside each of the six
    return {
        "embeddings": embeddings, "matrices": matrices, "all": every + adapters, "trained": adapters or every
    }  # fmt: skip


def layer_activations(config: PretrainedConfig, length: int, precision: str = "fp32", fused: bool = True) -> int:
    """Return the bytes that one layer keeps of one text of `length` tokens until its backward pass.

    Parameters
    ----------
    fused : attention computes the softmax in pieces and keeps none of it, as on a GPU; False: as on a CPU with dropout,
        where the heads' [L, L] matrices are kept three times
    """
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    per_token = (40 * hidden + 8 * inner) if precision == "fp32" else (34 * hidden + 4 * inner)
    softmax = 0 if fused else 3 * FP32 * heads * length * length
    return length * per_token + softmax


def training_memory(
    config: PretrainedConfig,
    texts: float,
    length: int,
    precision: str = "fp32",
    gradient_checkpointing: bool = False,
    lora_rank: int = 0,
    fused: bool = True,
) -> dict[str, float]:
    """Return the memory of a training step in GB (10⁹ bytes), part by part and in total.

    Parameters
    ----------
    texts : encoded at a time: `micro_batch`, or without it every question and passage of a batch
    length : their tokens, padding included
    precision : "fp32", or "bf16"/"fp16": mixed, the weights stay in fp32 and a 16-bit copy of the matrices comes beside
    fused : see `layer_activations`

    AdamW keeps two averages for each trained parameter; the gradient of the largest matrix, the embeddings, exists
    twice for a moment. Libraries, the CUDA context (half a GB or more) and fragmentation come on top.
    """
    counts = parameter_counts(config, lora_rank)
    layer = layer_activations(config, length, precision, fused)
    kept = config.num_hidden_layers * layer
    if gradient_checkpointing:  # each layer keeps its input alone, and one at a time computes the rest again
        kept = config.num_hidden_layers * length * config.hidden_size * FP32 + layer
    parts = {
        "weights": FP32 * counts["all"] + (BF16 * counts["matrices"] if precision != "fp32" else 0),
        "gradients": FP32 * (counts["trained"] + (0 if lora_rank else counts["embeddings"])),
        "AdamW": 2 * FP32 * counts["trained"],
        "activations": texts * (kept + 2 * FP32 * length * config.hidden_size),  # the embeddings keep two
    }
    parts = {name: size / 1e9 for name, size in parts.items()}
    return {**parts, "total": sum(parts.values())}
