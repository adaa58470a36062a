"""The decoder: one transformer for every supported family, read top-down.

A step is one flat batch of tokens of many sequences (`ForwardInputs`); keys and values live in a
paged cache that the caller owns. Nothing here waits for the device, so a whole pass can be captured
in a CUDA graph. This module knows no requests, no files and no sampling.

Source: Vaswani et al. 2017 (arXiv 1706.03762), in the form of Llama (arXiv 2302.13971); what
differs between families is in `ModelSpec`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.functional import embedding

from pagestream.kernels import (
    KvSplits,
    Products,
    QueryTiles,
    Splitting,
    decode_attention,
    kv_splits,
    linear,
    prefill_attention,
    query_tiles,
    rms_norm,
    rope_and_cache,
)

from .inputs import ForwardInputs, LayerCache
from .linear import Linear
from .rope import Rope
from .spec import ModelSpec


class Model:
    """Token ids in, hidden states out; then hidden states in, logits out."""

    def __init__(self, spec: ModelSpec, rope: Rope, device: torch.device) -> None:
        self.spec = spec
        self.rope = rope
        self.splitting: Splitting | None = None
        """How attention cuts contexts; None takes the fastest for each batch."""
        self._products: Products | None = None
        self.embed = torch.empty(spec.vocab_size, spec.hidden_size, dtype=spec.dtype, device=device)
        self.layers = [Layer(spec, window, device) for window in spec.windows]
        self.norm = torch.empty(spec.hidden_size, dtype=spec.dtype, device=device)
        self.head = self.embed if spec.tied_embeddings else torch.empty_like(self.embed)

    def forward(
        self, inputs: ForwardInputs, cache: list[LayerCache], only: Sequence[int] | None = None
    ) -> Tensor:
        """Run the step's tokens through every layer, writing their keys and values to the cache.

        `only` runs these layers alone: see `samples`.
        Shapes: -> [tokens, hidden], in the model's dtype, after the last norm.
        """
        assert len(cache) == len(self.layers), f"{len(cache)} caches for {len(self.layers)} layers"
        cos_sin = self.rope.cos_sin(inputs.positions, self._rope_lens(inputs))
        attend = Attend(inputs, self.spec, self.splitting)
        # A kernel of torch's, which begins when those before it have ended: all of `attend` is
        # settled for the layers, and of what decodes read all that earlier steps wrote. A decode
        # shares no block that this step fills: its prompt was computed in an earlier one.
        x, residual = embedding(inputs.input_ids, self.embed), None
        for index in range(len(cache)) if only is None else only:
            x, residual = self.layers[index](x, residual, cos_sin, attend, cache[index])
        return rms_norm(x, self.norm, self.spec.norm_eps, residual)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Shapes: hidden [n, hidden] -> [n, vocab], in the model's dtype."""
        return linear(hidden, self.head, products=self._products)

    def take_products(self, products: Products) -> None:
        """Let every projection use what `products` learns."""
        self._products = products
        for layer in self.layers:
            for projection in layer.projections():
                projection.products = products

    def samples(self) -> list[int]:
        """Return layers that stand for all: what has run them has run every kernel.

        Two of each kind, so that products can be measured with weights the cache does not hold.
        """
        alike: dict[int | None, list[int]] = {}
        for index, window in enumerate(self.spec.windows):
            alike.setdefault(window, []).append(index)
        return sorted(index for indices in alike.values() for index in indices[:2])

    def learning(self) -> AbstractContextManager[None]:
        """Measure the products that are asked for inside, if any are to be measured."""
        return nullcontext() if self._products is None else self._products.learning()

    def cache_salt(self, prompt_tokens: int) -> str:
        """Return what a prompt's cached prefix depends on beside its tokens (see `Rope`)."""
        return self.rope.cache_salt(prompt_tokens)

    @property
    def layer_products(self) -> int:
        """Multiplications of a token in a layer's projections."""
        return sum(projection.weight.numel() for projection in self.layers[0].projections())

    @property
    def weight_bytes(self) -> int:
        """Device memory that the parameters take."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def parameters(self) -> Iterator[Tensor]:
        """Every parameter once."""
        yield self.embed
        for layer in self.layers:
            yield from layer.parameters()
        yield self.norm
        if self.head is not self.embed:
            yield self.head

    def _rope_lens(self, inputs: ForwardInputs) -> Tensor | None:
        """Each token's prompt length, [tokens], where the rope depends on it."""
        if not self.rope.by_prompt:
            return None
        tokens = torch.arange(len(inputs.input_ids), dtype=torch.int32, device=inputs.cu_q.device)
        # Tokens beyond the last sequence are padding: they fall to it.
        seqs = torch.searchsorted(inputs.cu_q[1:-1], tokens, right=True)
        return inputs.prompt_lens.index_select(0, inputs.rows.index_select(0, seqs))


class Layer:
    """y = x + attention(norm(x)); y + mlp(norm(y)). The norms do the adding."""

    def __init__(self, spec: ModelSpec, window: int | None, device: torch.device) -> None:
        self.norm_eps = spec.norm_eps
        self.attention_norm = torch.empty(spec.hidden_size, dtype=spec.dtype, device=device)
        self.attention = Attention(spec, window, device)
        self.mlp_norm = torch.empty(spec.hidden_size, dtype=spec.dtype, device=device)
        self.mlp = Mlp(spec, device)

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        cos_sin: Tensor,
        attend: "Attend",
        cache: LayerCache,
    ) -> tuple[Tensor, Tensor]:
        """Shapes: x, residual [tokens, hidden] -> (x, residual), whose sum is the output."""
        x, residual = rms_norm(x, self.attention_norm, self.norm_eps, residual)
        x = self.attention(x, cos_sin, attend, cache)
        x, residual = rms_norm(x, self.mlp_norm, self.norm_eps, residual)
        return self.mlp(x), residual

    def projections(self) -> tuple[Linear, ...]:
        """The layer's matrix products, in the order they run."""
        return (self.attention.qkv, self.attention.out, self.mlp.gate_up, self.mlp.down)

    def parameters(self) -> Iterator[Tensor]:
        """Every parameter once."""
        yield from (self.attention_norm, self.mlp_norm)
        attention = self.attention
        for projection in self.projections():
            yield projection.weight
            if projection.bias is not None:
                yield projection.bias
        yield from (norm for norm in (attention.q_norm, attention.k_norm) if norm is not None)


class Attention:
    """Grouped-query attention over the paged cache; one projection gives queries, keys, values."""

    def __init__(self, spec: ModelSpec, window: int | None, device: torch.device) -> None:
        self.heads, self.window, self.norm_eps = spec.num_heads, window, spec.norm_eps
        width, dtype = spec.q_size + 2 * spec.kv_size, spec.dtype
        self.qkv = Linear(spec.hidden_size, width, bias=spec.qkv_bias, dtype=dtype, device=device)
        self.out = Linear(
            spec.q_size, spec.hidden_size, bias=spec.o_bias, dtype=dtype, device=device
        )
        self.q_norm = (
            torch.empty(spec.head_dim, dtype=dtype, device=device) if spec.qk_norm else None
        )
        self.k_norm = (
            torch.empty(spec.head_dim, dtype=dtype, device=device) if spec.qk_norm else None
        )

    def __call__(self, x: Tensor, cos_sin: Tensor, attend: "Attend", cache: LayerCache) -> Tensor:
        """Shapes: x [tokens, hidden] -> [tokens, hidden]."""
        q = rope_and_cache(
            self.qkv(x),
            cos_sin,
            cache.k,
            cache.v,
            attend.slot_mapping,
            self.heads,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            eps=self.norm_eps,
        )
        return self.out(attend(q, cache, self.window).flatten(1))


class Attend:
    """The step's attention, the same for each layer: which sequences decode, which are prompts."""

    def __init__(
        self, inputs: ForwardInputs, spec: ModelSpec, splitting: Splitting | None = None
    ) -> None:
        self.inputs = inputs
        self.scale = spec.head_dim**-0.5
        heads = spec.num_kv_heads, spec.head_dim
        # Beside prefills one splitting serves every batch: such a step's time is in its products.
        self.splitting = splitting or (
            Splitting.for_many(*heads)
            if inputs.max_prefills
            else Splitting.fastest(len(inputs.rows), *heads)
        )
        self.slot_mapping = inputs.slot_mapping
        # Made once a step, for all layers.
        self.tiles: QueryTiles | None = None
        self.splits: dict[int | None, KvSplits] = {}
        for window in dict.fromkeys(spec.windows if inputs.has_decodes else ()):
            self.splits[window] = kv_splits(
                inputs.rows, inputs.decode_lens, self.splitting, inputs.max_kv_len, window
            )
        self.arrivals = torch.zeros(
            len(inputs.rows) * spec.num_kv_heads, dtype=torch.int32, device=inputs.rows.device
        )

    def __call__(self, q: Tensor, cache: LayerCache, window: int | None) -> Tensor:
        """Each kind of sequence takes its own kernel; both write their tokens of one buffer.

        Shapes: q [tokens, heads, head_dim] -> like q.
        """
        inputs, out = self.inputs, torch.empty_like(q)
        if inputs.has_decodes:
            decode_attention(
                q,
                cache.k,
                cache.v,
                inputs.block_table,
                inputs.rows,
                inputs.decode_lens,
                self.scale,
                window=window,
                max_kv_len=inputs.max_kv_len,
                splitting=self.splitting,
                splits=self.splits[window],
                settled=True,
                arrivals=self.arrivals,
                out=out,
            )
        if inputs.max_prefills:
            if self.tiles is None:
                self.tiles = query_tiles(
                    q, cache.k.shape[2], inputs.prefill_cu_q, max_seqs=inputs.max_prefills
                )
            prefill_attention(
                q,
                cache.k,
                cache.v,
                inputs.block_table,
                inputs.rows,
                inputs.prefill_cu_q,
                inputs.kv_lens,
                self.scale,
                window=window,
                tiles=self.tiles,
                out=out,
            )
        return out


class Mlp:
    """down(silu(gate(x)) · up(x)); gate and up come of one projection."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        bias, dtype = spec.mlp_bias, spec.dtype
        self.gate_up = Linear(
            spec.hidden_size, 2 * spec.intermediate_size, bias=bias, dtype=dtype, device=device
        )
        self.down = Linear(
            spec.intermediate_size, spec.hidden_size, bias=bias, dtype=dtype, device=device
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: x [tokens, hidden] -> [tokens, hidden]."""
        return self.down(self.gate_up.silu_mul(x))
