"""The engine in this process: `LLM(model).generate(prompts)`, with no Redis and no worker.

The same checks, defaults, tokens and stop strings as a job on the queue: prompts go through the
worker's intake and detokenizer to an engine of this process. Not thread-safe.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from pagestream.producer.errors import InvalidRequest
from pagestream.producer.protocol import FinishReason, Payload, encode_payload
from pagestream.producer.sampling import SamplingParams

from .config import EngineConfig
from .engine.engine import Engine, build_engine
from .messages import Add, Output
from .models.hub import generation_defaults, resolve
from .queue.detokenizer import Detokenizer
from .queue.intake import Intake, model_info
from .queue.tokenizer import Tokenizer

Prompt = str | list[int]


class Completion(msgspec.Struct, kw_only=True):
    """What a prompt was completed with."""

    prompt_ids: list[int]
    token_ids: list[int] = []
    text: str = ""
    """Empty for a model without a tokenizer."""
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""


class LLM:
    """A model on this machine's device, ready to generate."""

    def __init__(
        self,
        model: str | Path,
        *,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> None:
        """Load `model`, a Hugging Face directory or hub id.

        Args:
            model: where it is.
            progress: told (bytes loaded, bytes in all) while the weights load.
            settings: fields of `EngineConfig`, such as `max_model_tokens` or `num_blocks`.

        Raises:
            ConfigError: settings that do not fit the model or the machine.
            ModelError: the model cannot be found, read or run.
        """
        config = EngineConfig(model=str(model), **settings)
        directory = resolve(config.model, config.revision, weights=False)
        tokenizer = Tokenizer.load(directory)
        self.engine: Engine = build_engine(config, progress)
        info = model_info(config.model, self.engine.ready(), tokenizer)
        self._intake = Intake(tokenizer, info, generation_defaults(directory))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_token: Callable[[int, Output], None] | None = None,
    ) -> list[Completion]:
        """Complete prompts, texts or token ids, all in one running batch.

        Args:
            prompts: one or several.
            params: for all, or one each; a prompt without a seed draws by its index.
            on_token: called with (index of the prompt, what a step gave it) as tokens come.

        Returns:
            One completion a prompt, in order.

        Raises:
            InvalidRequest: a prompt or a parameter cannot work; nothing was generated.
            OutOfMemory: the GPU has no memory left for a single token; make another `LLM`.
        """
        many = cast(Sequence[Prompt], [prompts] if _is_one(prompts) else prompts)
        payloads = [
            Payload(prompt=prompt, sampling=sampling)
            if isinstance(prompt, str)
            else Payload(prompt_ids=prompt, sampling=sampling)
            for prompt, sampling in zip(many, _one_each(params, len(many)), strict=True)
        ]
        return self._run(payloads, on_token)

    def chat(
        self, messages: list[dict[str, Any]], params: SamplingParams | None = None
    ) -> Completion:
        """Answer a chat by the model's template.

        Raises:
            InvalidRequest: the model has no template, or it refuses the messages.
        """
        sampling = params or SamplingParams()
        return self._run([Payload(messages=messages, sampling=sampling)], None)[0]

    def _run(
        self, payloads: list[Payload], on_token: Callable[[int, Output], None] | None
    ) -> list[Completion]:
        prepared = [
            self._intake.prepare(str(index), encode_payload(payload))
            for index, payload in enumerate(payloads)
        ]
        completions = [Completion(prompt_ids=request.prompt_ids) for request in prepared]
        texts = [request.new_detokenizer() for request in prepared]
        for index, request in enumerate(prepared):
            self.engine.add(
                Add(
                    request_id=str(index),
                    prompt_ids=request.prompt_ids,
                    sampling=request.sampling,
                )
            )
        while self.engine.has_work:
            for output in self.engine.step().outputs:
                index = int(output.request_id)
                if completions[index].finish_reason is None:
                    self._take(completions[index], texts[index], output)
                    if on_token is not None:
                        on_token(index, output)
        return completions

    def _take(self, completion: Completion, text: Detokenizer, output: Output) -> None:
        # Intake has checked what the engine checks, so an error here is a mistake of this program.
        assert output.finish != "error", f"prompt {output.request_id}: {output.message}"
        before = text.tokens
        completion.text += text.push(output.token_ids)
        completion.token_ids += output.token_ids[: text.tokens - before]
        completion.cached_tokens = output.cached_tokens
        completion.finish_reason = output.finish
        if text.stopped is not None:
            completion.finish_reason = "stop"
            self.engine.abort([output.request_id])
        if completion.finish_reason is not None:
            completion.text += text.flush()


def _is_one(prompts: Any) -> bool:
    """True for a text or a list of token ids, False for several prompts."""
    return isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))


def _one_each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequest(f"{len(params)} sampling parameters for {count} prompts")
    return list(params)
