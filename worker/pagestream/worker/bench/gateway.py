"""Load over HTTP: OpenAI's completions at a gateway, as vLLM's serving benchmark asks for them.

Prompts go as token ids, answers come in server-sent events that say which tokens they bring.
Knows no queue and no engine; `OPENAI_API_KEY` is the key, as everywhere.

Source: OpenAI's API reference, "Completions"; `return_token_ids` as vLLM has it.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import msgspec

from pagestream.producer.errors import (
    InvalidRequest,
    JobFailed,
    PagestreamError,
    QueueUnavailable,
    UnknownModel,
)

from .client import Reply, Target
from .datasets import Sample

CONNECT_S = 30.0
DATA = "data: "
DONE = "[DONE]"


@dataclass(frozen=True)
class ServedModel:
    """What a workload has to fit."""

    vocab_size: int
    context_tokens: int


@dataclass(frozen=True)
class GatewayPlace:
    """A model at a gateway's `http://host:port/v1`."""

    base_url: str
    model: str

    def served_model(self) -> ServedModel:
        """Ask what the model takes.

        Raises:
            UnknownModel: no live worker serves it there.
            QueueUnavailable: nothing answers there as a gateway would.
        """
        with httpx2.Client(base_url=self._base(), headers=_headers(), timeout=CONNECT_S) as client:
            try:
                told = client.get(f"models/{self.model}")
                if told.status_code == 404:
                    raise UnknownModel(
                        f"no worker serves {self.model!r} behind {self.base_url}, which should "
                        "end in /v1"
                    )
                told.raise_for_status()
                model = told.json()
                return ServedModel(model["vocab_size"], model["max_model_len"])
            except httpx2.HTTPError as error:
                raise QueueUnavailable(f"{self.base_url} does not answer: {error}") from error
            except (ValueError, KeyError) as error:
                raise QueueUnavailable(f"{self.base_url} is no gateway of ours: {error}") from error
            except httpx2.InvalidURL as error:
                raise InvalidRequest(f"--base-url {self.base_url} is no URL: {error}") from error

    @asynccontextmanager
    async def open(self, requests: int) -> AsyncGenerator[Target]:
        """As `Place`."""
        async with httpx2.AsyncClient(
            base_url=self._base(),
            headers=_headers(),
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        ) as client:
            yield GatewayTarget(client, self.model)

    def _base(self) -> str:
        return f"{self.base_url.rstrip('/')}/"


class GatewayTarget:
    """A gateway, one HTTP request for each of ours."""

    def __init__(self, client: httpx2.AsyncClient, model: str) -> None:
        self._client = client
        self._model = model

    async def send(self, samples: Sequence[Sample]) -> list[Reply | PagestreamError]:
        """As `Target`; a request goes out as its reply is first read."""
        return [GatewayReply(self._client, self._body(sample)) for sample in samples]

    def _body(self, sample: Sample) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": sample.prompt_ids,
            "max_tokens": sample.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }


class GatewayReply:
    """The events of one completion."""

    def __init__(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
        self.queue_ms: float | None = None
        self._client = client
        self._body = body

    async def arrivals(self) -> AsyncIterator[int]:
        """As `Reply`; each event is an arrival."""
        try:
            async with self._client.stream("POST", "completions", json=self._body) as told:
                if told.status_code != 200:
                    raise _failure(await told.aread())
                async for line in told.aiter_lines():
                    data = line.removeprefix(DATA)
                    if data in (line, DONE):  # not data, or its end
                        continue
                    if tokens := _tokens(data):
                        yield tokens
        except httpx2.HTTPError as error:
            raise QueueUnavailable(f"the gateway broke off: {error!r}") from error


class _Error(msgspec.Struct):
    message: str
    code: str | None = None


class _Choice(msgspec.Struct):
    token_ids: list[int] = []


class _Event(msgspec.Struct):
    """What matters of an event, or of a refusal's body."""

    choices: list[_Choice] = []
    error: _Error | None = None


_read = msgspec.json.Decoder(_Event).decode


def _tokens(data: str) -> int:
    event = _read(data)
    if event.error is not None:
        raise JobFailed(event.error.message, code=event.error.code or "error")
    return sum(len(choice.token_ids) for choice in event.choices)


def _failure(body: bytes) -> PagestreamError:
    try:
        _tokens(body.decode())
    except JobFailed as error:
        return error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    return QueueUnavailable(f"the gateway answered {body[:200]!r}")


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
