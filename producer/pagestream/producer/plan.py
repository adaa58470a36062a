"""How many requests a GPU holds and how fast it can be: arithmetic, no GPU.

    weights + overhead + KV cache = memory        GB are 10^9 bytes
    KV of a token = 2 (key, value) x layers x KV heads x head_dim x bytes

A ceiling is a roofline: a decode step reads every weight and every cached token once, a token costs
two operations a parameter. Of experts, a token is computed with a few, and a step reads those that
its tokens are sent to, as if evenly. Real engines reach 75 to 95 % of it. This module knows no
devices beyond the table, and asks nobody.

Source: Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention" (arXiv
2309.06180), section 3; Williams et al., "Roofline" (CACM 2009).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from .errors import InvalidRequest

GB = 1e9
BLOCK_TOKENS = 16
DEFAULT_LENGTHS_TOKENS = (512, 2048, 8192)
MOST_TOKENS = 10**9
MOST_GB = 1e6
DTYPE_BYTES = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5,
}


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """What of a GPU counts here."""

    memory_gb: float
    bandwidth_gb_per_s: float
    tflops: float
    """Dense, 16 bit."""


GPUS = {
    "rtx-3090": Gpu(memory_gb=24, bandwidth_gb_per_s=936, tflops=71),
    "rtx-4090": Gpu(memory_gb=24, bandwidth_gb_per_s=1008, tflops=165),
    "a6000": Gpu(memory_gb=48, bandwidth_gb_per_s=768, tflops=155),
    "l4": Gpu(memory_gb=24, bandwidth_gb_per_s=300, tflops=121),
    "l40s": Gpu(memory_gb=48, bandwidth_gb_per_s=864, tflops=362),
    "a100-40gb": Gpu(memory_gb=40, bandwidth_gb_per_s=1555, tflops=312),
    "a100-80gb": Gpu(memory_gb=80, bandwidth_gb_per_s=2039, tflops=312),
    "h100": Gpu(memory_gb=80, bandwidth_gb_per_s=3350, tflops=989),
    "h200": Gpu(memory_gb=141, bandwidth_gb_per_s=4800, tflops=989),
    "b200": Gpu(memory_gb=180, bandwidth_gb_per_s=8000, tflops=2250),
}
"""From the makers' data sheets."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What of a model counts here."""

    params: float
    layers: int
    kv_heads: int
    head_dim: int
    context_tokens: int | None = None
    expert_params: float = 0.0
    """Those of `params` that are experts'."""
    expert_share: float = 1.0
    """Share of the experts that a token is computed with."""

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Shape":
        """Read a Hugging Face `config.json` of a decoder with gated MLPs.

        Raises:
            InvalidRequest: a size is missing, or there is something that is not counted here.
        """
        config = config.get("text_config") or config

        def size(name: str, default: int | None = None) -> int:
            value = config.get(name)
            if value is None:
                value = default
            if not isinstance(value, int) or value < 1:
                raise InvalidRequest(f"config.json has {name}={value!r}; it should be a number")
            return value

        if config.get("kv_lora_rank"):
            raise InvalidRequest(
                f"config.json has kv_lora_rank={config['kv_lora_rank']!r}: a compressed KV cache, "
                "which is not counted here"
            )
        hidden, layers, heads = (
            size(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
        )
        kv_heads = size("num_key_value_heads", heads)
        head_dim = size("head_dim", hidden // heads)
        queries, keys = heads * head_dim, kv_heads * head_dim
        attention = hidden * (2 * queries + 2 * keys)
        experts, per_token = _experts(config, size)
        width = size("intermediate_size")
        if experts:
            width = size("moe_intermediate_size", width)
        mlps = max(experts, 1) * 3 * hidden * width
        embedding = size("vocab_size") * hidden
        tables = 1 if config.get("tie_word_embeddings") else 2
        layer = attention + mlps + experts * hidden + 2 * hidden
        return cls(
            params=float(layers * layer + tables * embedding + hidden),
            layers=layers,
            kv_heads=kv_heads,
            head_dim=head_dim,
            context_tokens=(
                size("max_position_embeddings") if "max_position_embeddings" in config else None
            ),
            expert_params=float(layers * mlps if experts else 0),
            expert_share=per_token / experts if experts else 1.0,
        )

    @property
    def active_params(self) -> float:
        """Those a token is computed with."""
        return self.read_params(1)

    def read_params(self, tokens: float) -> float:
        """Return how many a step of so many tokens reads, their experts spread evenly."""
        unread = self.expert_params * (1 - self.expert_share) ** tokens
        return self.params - unread


_COUNTED = {"num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"}
_UNEVEN = ("mlp_only_layers", "first_k_dense_replace", "shared_intermediate_size")


def _experts(config: Mapping[str, Any], size: Callable[[str], int]) -> tuple[int, int]:
    """Return how many experts each layer has, and how many a token takes; 0 and 0 without."""
    named = {
        name: value
        for name, value in config.items()
        if value and ("expert" in name or "moe" in name.split("_"))
    }
    if not named:
        return 0, 0
    unknown = {name: value for name, value in named.items() if name not in _COUNTED}
    unknown |= {name: config[name] for name in _UNEVEN if config.get(name)}
    if config.get("decoder_sparse_step", 1) != 1:
        unknown["decoder_sparse_step"] = config["decoder_sparse_step"]
    counts = [name for name in ("num_experts", "num_local_experts") if name in named]
    if unknown or len(counts) != 1:
        shown = ", ".join(f"{name}={value!r}" for name, value in (unknown or named).items())
        raise InvalidRequest(
            f"config.json has {shown}: experts are counted where every layer has the same number "
            "of them (num_experts or num_local_experts, num_experts_per_tok) and nothing beside"
        )
    experts, per_token = size(counts[0]), size("num_experts_per_tok")
    if per_token > experts:
        raise InvalidRequest(
            f"config.json has num_experts_per_tok={per_token}, more than {counts[0]}={experts}"
        )
    return experts, per_token


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one length."""

    length_tokens: int
    ideal_requests: int
    """free / (length x KV of a token): if every place of every block were filled."""
    requests: int
    """That fit at once, with paging: the last block of each is half empty on average."""
    decode_tokens_per_s: float
    """At most, with so many running."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes on a GPU, and what is left."""

    weights_gb: float
    overhead_gb: float
    free_gb: float
    """For the KV cache."""
    kv_bytes_per_pair_and_head: int
    """A key and a value of one head in one layer."""
    kv_bytes_per_token: int
    kv_tokens: int
    """That the cache holds."""
    prefill_tokens_per_s: float
    """At most."""
    reserved_requests: int | None
    """That would fit if each had the model's whole context reserved in one piece."""
    rows: list[Row]


def plan(
    shape: Shape,
    gpu: Gpu,
    *,
    weight_bytes: float = 2.0,
    kv_bytes: float = 2.0,
    overhead_gb: float = 2.0,
    lengths_tokens: Sequence[int] = DEFAULT_LENGTHS_TOKENS,
) -> Plan:
    """Say what fits.

    Args:
        shape: the model.
        gpu: where it runs.
        weight_bytes: of a parameter.
        kv_bytes: of a number in the cache.
        overhead_gb: activations, graphs, the driver.
        lengths_tokens: of requests, prompt and output together.

    Raises:
        InvalidRequest: the model does not fit, or a number is none.
    """
    for name, value, least in (
        ("weight_bytes", weight_bytes, 0.01),
        ("kv_bytes", kv_bytes, 0.01),
        ("overhead", overhead_gb, 0.0),
    ):
        check_number(name, value, least)
    if not lengths_tokens or min(lengths_tokens) < 1 or max(lengths_tokens) > MOST_TOKENS:
        raise InvalidRequest(
            f"lengths {list(lengths_tokens)} should be tokens, 1 or more, {MOST_TOKENS:,} at most"
        )
    if shape.params < shape.expert_params:
        raise InvalidRequest(
            f"{shape.params:.4g} parameters are fewer than the experts' {shape.expert_params:.4g}"
        )
    weights_gb = shape.params * weight_bytes / GB
    free_gb = gpu.memory_gb - weights_gb - overhead_gb
    pair_bytes = math.ceil(2 * shape.head_dim * kv_bytes)
    token_bytes = pair_bytes * shape.kv_heads * shape.layers
    if free_gb * GB < token_bytes * BLOCK_TOKENS:
        raise InvalidRequest(
            f"{weights_gb:.1f} GB of weights and {overhead_gb:g} GB beside them leave no room for "
            f"a KV cache in {gpu.memory_gb:g} GB; take a larger GPU or fewer bytes a parameter"
        )
    kv_tokens = int(free_gb * GB / token_bytes)
    context = shape.context_tokens
    return Plan(
        weights_gb=weights_gb,
        overhead_gb=overhead_gb,
        free_gb=free_gb,
        kv_bytes_per_pair_and_head=pair_bytes,
        kv_bytes_per_token=token_bytes,
        kv_tokens=kv_tokens,
        prefill_tokens_per_s=gpu.tflops * 1e12 / (2 * shape.active_params),
        reserved_requests=None if context is None else kv_tokens // context,
        rows=[
            _row(shape, gpu, weight_bytes, token_bytes, free_gb, length)
            for length in lengths_tokens
        ],
    )


def _row(
    shape: Shape, gpu: Gpu, weight_bytes: float, token_bytes: int, free_gb: float, length: int
) -> Row:
    requests = int(free_gb * GB / token_bytes / (length + BLOCK_TOKENS / 2))
    # Half-way through its life a request has half its tokens in the cache; ceilings take them all.
    moved_gb = (shape.read_params(requests) * weight_bytes + requests * length * token_bytes) / GB
    memory_s = moved_gb / gpu.bandwidth_gb_per_s
    compute_s = 2 * shape.active_params * requests / (gpu.tflops * 1e12)
    return Row(
        length_tokens=length,
        ideal_requests=int(free_gb * GB / (length * token_bytes)),
        requests=requests,
        decode_tokens_per_s=requests / max(memory_s, compute_s),
    )


def check_number(name: str, value: float, least: float, most: float = MOST_GB) -> float:
    """Return `value`.

    Raises:
        InvalidRequest: it is not a number from `least` to `most`.
    """
    if not (math.isfinite(value) and least <= value <= most):
        raise InvalidRequest(f"{name} {value:g} should be a number from {least:g} to {most:,.0f}")
    return value
