"""What a request becomes: a job on its model's queue, for the tenant of its API key.

A job's id says what it answers (`chatcmpl-…`, `cmpl-…`, `resp_…`), so a stream can be taken up from
the id alone. Under an idempotency key the id is made from the key: asking again is reading again.
This module knows no answers.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends, Header, Request

from ..errors import InvalidRequest, UnsupportedParameter
from ..job import AsyncJob, JobStatus
from ..keys import DEFAULT_TENANT
from ..request import JobSpec
from ..sampling import MAX_SEED, SamplingParams
from .api_keys import ApiKey
from .bodies import Body, GenerationBody, Message, Part, Priority, ResponseBody
from .queues import Queues
from .settings import GatewaySettings

Kind = Literal["chatcmpl-", "cmpl-", "resp_"]

_SAMPLING = frozenset(SamplingParams.__struct_fields__)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and what the headers say: the body's fields win."""

    key: ApiKey
    queues: Queues
    settings: GatewaySettings
    priority: str | None = None
    deadline_ms: int | None = None
    idempotency_key: str | None = None
    on_disconnect: str | None = None
    last_event_id: str | None = None
    webhook: str | None = None

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self.key.tenant

    def can_ask_again(self, body: Body) -> bool:
        """Whether the same request again is the same job."""
        return bool(body.idempotency_key or self.idempotency_key)

    def last_event_of(self, body: GenerationBody | ResponseBody) -> str | None:
        """Return the last event that somebody has who asks again for a stream, or None.

        Raises:
            InvalidRequest: the request is a new one, and its answer another.
        """
        if not body.stream or self.last_event_id is None:
            return None
        if not self.can_ask_again(body):
            raise InvalidRequest(
                "Last-Event-ID: this is a new request; ask with the Idempotency-Key of the one "
                "that broke off, or for GET /v1/streams/<id>",
                param="Last-Event-ID",
            )
        return self.last_event_id

    async def submit(
        self, kind: Kind, body: Body, question: JobSpec, *, place: int = 0, keep: bool = False
    ) -> AsyncJob:
        """Submit a job: `question` is its prompt, `place` which of the request's jobs it is.

        Args:
            kind: what the job's id begins with.
            body: the request's.
            question: the prompt and sampling parameters.
            place: a request may be several jobs.
            keep: nobody has to read it for it to go on.

        Raises:
            PagestreamError: as `AsyncClient.submit`.
        """
        client = await self.queues.of_model(body.model)
        return await client.submit(**self._spec(kind, body, question, place, keep))

    def _spec(
        self, kind: Kind, body: Body, question: JobSpec, place: int, keep: bool
    ) -> Mapping[str, Any]:
        check_neutral(body)
        spec: dict[str, Any] = {
            **question,
            "id": self._id(kind, body.idempotency_key or self.idempotency_key, place),
            "tenant": self.tenant,
            "lane": body.priority or _lane(self.priority) or "normal",
        }
        if self.key.queue_limit is not None:
            spec["queue_limit"] = self.key.queue_limit
        deadline_ms = body.deadline_ms or self.deadline_ms
        if deadline_ms is not None:
            spec["deadline_ms"] = deadline_ms
        webhook = body.webhook or self.webhook
        if webhook is not None:
            spec["webhook"] = webhook
        on_disconnect = body.on_disconnect or self.on_disconnect or "cancel"
        if on_disconnect not in ("cancel", "keep"):
            raise InvalidRequest(
                f"X-On-Disconnect: {on_disconnect!r} is neither cancel nor keep",
                param="X-On-Disconnect",
            )
        if on_disconnect == "cancel" and not keep:
            spec["reader_timeout_ms"] = round(self.settings.disconnect_grace * 1000)
        return spec

    def _id(self, kind: Kind, key: str | None, place: int) -> str:
        # As the client does: by their ids an ACL can keep tenants apart.
        owner = "" if self.tenant == DEFAULT_TENANT else f"{self.tenant}."
        if key is None:
            return f"{owner}{kind}{secrets.token_hex(16)}"
        text = f"{self.tenant}\n{key}\n{place}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
        return f"{owner}{kind}{digest.hexdigest()}"


def accepted_s(status: JobStatus) -> int:
    """Return when a job was accepted, in Redis's seconds since 1970."""
    return (status.queued_ms or 0) // 1000


def caller(
    request: Request,
    authorization: Annotated[str | None, Header()] = None,
    x_priority: Annotated[str | None, Header()] = None,
    x_deadline_ms: Annotated[int | None, Header(ge=1, le=2**42)] = None,
    idempotency_key: Annotated[str | None, Header(max_length=512)] = None,
    x_on_disconnect: Annotated[str | None, Header()] = None,
    last_event_id: Annotated[str | None, Header()] = None,
    x_webhook: Annotated[str | None, Header(max_length=2048)] = None,
) -> Caller:
    """Return who asks.

    Raises:
        InvalidKey: nobody who is known here.
    """
    state = request.app.state
    return Caller(
        key=state.api_keys.of(authorization),
        queues=state.queues,
        settings=state.settings,
        priority=x_priority,
        deadline_ms=x_deadline_ms,
        idempotency_key=idempotency_key or None,
        on_disconnect=x_on_disconnect,
        last_event_id=last_event_id or None,
        webhook=x_webhook or None,
    )


Asking = Annotated[Caller, Depends(caller)]


def check_neutral(body: Body) -> None:
    """Refuse what is not built yet and would change the answer.

    Raises:
        UnsupportedParameter: it names the field.
    """
    for name, neutral in body.NEUTRAL.items():
        field = getattr(body, name)
        if field is not None and field not in neutral:
            raise UnsupportedParameter(
                f"{name}={field!r} is not supported yet; leave it out", param=name
            )


def sampling_of(body: Body, **more: Any) -> SamplingParams:
    """Return the sampling parameters that a body names; null is as if left out.

    Raises:
        InvalidRequest: a value has the wrong type.
    """
    given = {
        name: value
        for name in type(body).model_fields.keys() & _SAMPLING
        if (value := getattr(body, name)) is not None
    } | {name: value for name, value in more.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    if given.get("seed", 0) < 0:
        given["seed"] &= MAX_SEED
    try:
        return msgspec.convert(given, SamplingParams)
    except msgspec.ValidationError as error:
        place = re.search(r"`\$\.(\w+)", str(error))
        raise InvalidRequest(
            f"a sampling parameter has the wrong type: {error}", param=place and place[1]
        ) from error


def chat_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as a chat template takes them: texts of parts joined."""
    return [
        {**(message.model_extra or {}), "role": message.role, "content": text_of(message.content)}
        for message in messages
    ]


def text_of(content: str | Sequence[Part] | None) -> str:
    """Return the text of a message's content."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def _lane(header: str | None) -> Priority | None:
    match header:
        case None | "high" | "normal" | "low":
            return header
        case _:
            raise InvalidRequest(
                f"X-Priority: {header!r} is not one of high, normal, low", param="X-Priority"
            )
