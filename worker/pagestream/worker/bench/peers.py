"""The same requests on transformers: `generate()` in static batches, and its continuous batching.

Same model files, lengths and greedy drawing, end tokens ignored. `generate()` takes left-padded
batches, each as long as its longest output, and gives a batch's tokens when all of it has ended;
only the tokens that were asked for count. Neither way shows tokens as they come, so latencies other
than E2EL are left out.
Knows no engine of ours, no Redis and no queue.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from ..config import EngineConfig
from ..engine.engine import pick_device
from ..errors import ConfigError, ModelError
from ..models.hub import resolve
from .datasets import Sample, Workload
from .metrics import Timeline

Told = Callable[[int, int], None]
POLL_S = 1.0
STALL_S = 600.0
"""Continuous batching that gives nothing for so long has failed."""


def load_peer(config: EngineConfig) -> Any:
    """Load the model by transformers, in our dtype and on our device.

    Raises:
        ModelError: transformers cannot load it.
    """
    device = pick_device(config.device)
    directory = resolve(config.model, config.revision, weights=config.load_format == "auto")
    dtype: Any = "auto" if device.type == "cuda" else torch.float32
    if config.dtype != "auto":
        dtype = getattr(torch, config.dtype)
    try:
        if config.load_format == "dummy":
            settings = AutoConfig.from_pretrained(directory)
            if dtype == "auto":
                dtype = settings.dtype or torch.bfloat16
            with device:  # random weights are drawn where they are used
                model: Any = AutoModelForCausalLM.from_config(settings, dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ModelError(f"transformers cannot load {config.model!r}: {error}") from error
    return model.to(device).eval()


class Peer:
    """A model of transformers and how to run workloads on it."""

    def __init__(self, model: Any, time_limit_s: float | None = None) -> None:
        """`time_limit_s`: start nothing more after so long, and count what has ended."""
        self.vocab_size: int = model.config.get_text_config().vocab_size
        self.context_tokens: int = model.config.get_text_config().max_position_embeddings
        self.device = str(model.device)
        self._model = model
        self._time_limit_s = time_limit_s

    def play(
        self,
        workload: Workload,
        batching: str,
        batch_size: int,
        told: Told = lambda ended, tokens: None,
    ) -> tuple[Workload, list[Timeline]]:
        """Run a workload; returns the requests that ended within the limit, and their times.

        Raises:
            ConfigError: transformers has no such batching.
        """
        runs = {"static": self._static, "continuous": self._continuous}
        if batching not in runs:
            raise ConfigError(
                f"--batching {batching} is not one of transformers' ways: {', '.join(runs)}"
            )
        ended_s = runs[batching](workload, batch_size, told)
        done = [(workload[index], at) for index, at in sorted(ended_s.items())]
        lines = [Timeline(0.0, [at], [sample.output_tokens], ended_s=at) for sample, at in done]
        return [sample for sample, _ in done], lines

    @torch.inference_mode()
    def _static(self, workload: Workload, batch_size: int, told: Told) -> dict[int, float]:
        """Seconds at which each request ended: its batch's end."""
        ended_s: dict[int, float] = {}
        began_s = time.perf_counter()
        for first in range(0, len(workload), batch_size):
            batch = workload[first : first + batch_size]
            self._generate(batch)
            now_s = time.perf_counter() - began_s
            ended_s |= dict.fromkeys(range(first, first + len(batch)), now_s)
            told(len(ended_s), _tokens(workload, ended_s))
            if self._time_limit_s is not None and now_s > self._time_limit_s:
                break
        return ended_s

    def _generate(self, batch: Workload) -> None:
        longest = max(len(ids) for ids, _ in batch)
        ids = [[0] * (longest - len(prompt)) + prompt for prompt, _ in batch]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in batch]
        tokens = max(tokens for _, tokens in batch)
        given = self._model.generate(
            torch.tensor(ids, device=self._model.device),
            attention_mask=torch.tensor(mask, device=self._model.device),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        given.cpu()  # waits for the device: the clock is read after it
        assert given.shape[1] == longest + tokens, "a batch ended early"

    def _continuous(self, workload: Workload, batch_size: int, told: Told) -> dict[int, float]:
        """Seconds at which each request ended; the manager sizes its batches itself."""
        ended_s: dict[int, float] = {}
        config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        began_s = heard_s = time.perf_counter()
        with self._model.continuous_batching_context_manager(generation_config=config) as manager:
            places = {
                manager.add_request(ids, max_new_tokens=tokens, eos_token_id=-1): index
                for index, (ids, tokens) in enumerate(workload)
            }
            while len(ended_s) < len(workload):
                result = manager.get_result(timeout=POLL_S)
                now_s = time.perf_counter()
                if self._time_limit_s is not None and now_s - began_s > self._time_limit_s:
                    break
                if result is None:
                    assert now_s - heard_s < STALL_S, "transformers' continuous batching stopped"
                    continue
                assert result.error is None, result.error
                heard_s = now_s
                ended_s[places[result.request_id]] = now_s - began_s
                told(len(ended_s), _tokens(workload, ended_s))
        return ended_s


def _tokens(workload: Sequence[Sample], ended_s: dict[int, float]) -> int:
    return sum(workload[index].output_tokens for index in ended_s)
