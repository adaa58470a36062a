"""The bodies of OpenAI's requests, as far as a queue of jobs can answer them.

What is known and not built yet is a field here, so that it is refused by name unless it changes
nothing; what is not known at all is refused too. Values are checked where jobs are made.
This module knows no jobs.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Priority = Literal["high", "normal", "low"]
Disconnect = Literal["cancel", "keep"]
NotYet = Annotated[Any, Field(description="Not built yet: refused unless it changes nothing.")]
Neutral = dict[str, tuple[object, ...]]
Unused = Annotated[Any, Field(description="Taken, and not used.")]


class Body(BaseModel):
    """What every request may say of its job, beside what it asks the model."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    NEUTRAL: ClassVar[Neutral] = {"metadata": ({},)}
    """What changes nothing, beside null, of the fields that are not built yet. Those that sampling
    parameters have, too, are checked with them."""

    model: str = Field(description="A served model's name; `/v1/models` lists them.")
    priority: Priority | None = Field(None, description="Or the header `X-Priority`.")
    deadline_ms: int | None = Field(
        None, ge=1, le=2**42, description="End unfinished after so long. Or `X-Deadline-Ms`."
    )
    idempotency_key: str | None = Field(
        None, min_length=1, max_length=512, description="Or the header `Idempotency-Key`."
    )
    on_disconnect: Disconnect | None = Field(
        None,
        description="`cancel` after the gateway's grace (default), or `keep` running. Or "
        "`X-On-Disconnect`.",
    )
    webhook: str | None = Field(
        None, max_length=2048, description="A URL to tell of the end. Or `X-Webhook`."
    )
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    user: Unused = None
    metadata: NotYet = None


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    include_usage: bool = False
    include_obfuscation: Unused = None


class GenerationBody(Body):
    """What `/v1/chat/completions` and `/v1/completions` share."""

    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    min_tokens: int = Field(0, ge=0, le=2**31 - 1)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool = Field(False, description="Choices carry `token_ids`, too.")
    n: NotYet = None
    presence_penalty: NotYet = None
    frequency_penalty: NotYet = None
    repetition_penalty: NotYet = None
    logit_bias: NotYet = None
    logprobs: NotYet = None
    top_logprobs: NotYet = None
    response_format: NotYet = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class Part(BaseModel):
    """A part of a message; only text can be read."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(BaseModel):
    """A message of a chat; other fields go to the model's chat template as they are."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[Part] | None = None


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    NEUTRAL: ClassVar[Neutral] = {
        **Body.NEUTRAL,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "web_search_options": (),
    }

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    tools: NotYet = None
    tool_choice: NotYet = None
    parallel_tool_calls: Unused = None
    functions: NotYet = None
    function_call: NotYet = None
    modalities: NotYet = None
    audio: NotYet = None
    prediction: NotYet = None
    reasoning_effort: NotYet = None
    web_search_options: NotYet = None
    service_tier: Unused = None
    store: Unused = None
    prompt_cache_key: Unused = None
    safety_identifier: Unused = None


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    NEUTRAL: ClassVar[Neutral] = {**Body.NEUTRAL, "echo": (False,), "suffix": ("",)}

    prompt: str | list[str] | list[int] | list[list[int]]
    best_of: NotYet = None
    echo: NotYet = None
    suffix: NotYet = None


class InputItem(BaseModel):
    """A message of a response's input."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    id: Unused = None
    status: Unused = None


class ResponseBody(Body):
    """`POST /v1/responses`."""

    NEUTRAL: ClassVar[Neutral] = {
        **Body.NEUTRAL,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "text": ({"format": {"type": "text"}}, {}),
        "truncation": ("disabled",),
        "previous_response_id": (),
        "conversation": (),
        "prompt": (),
        "reasoning": ({}, {"effort": None, "summary": None}),
        "include": ([],),
        "max_tool_calls": (),
    }

    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = Field(None, description="Kept for the queue's retention in any case.")
    tools: NotYet = None
    tool_choice: NotYet = None
    text: NotYet = None
    truncation: NotYet = None
    previous_response_id: NotYet = None
    conversation: NotYet = None
    prompt: NotYet = None
    reasoning: NotYet = None
    include: NotYet = None
    max_tool_calls: NotYet = None
    top_logprobs: NotYet = None
    parallel_tool_calls: Unused = None
    service_tier: Unused = None
    stream_options: Unused = None
    prompt_cache_key: Unused = None
    safety_identifier: Unused = None
