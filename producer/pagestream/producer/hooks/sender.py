"""Sends webhooks, again and again until somebody has taken them or three days have passed.

A webhook is delivered when it is answered 2xx within ten seconds. No redirect is followed and no
answer is read. This module knows HTTP and signatures; not what the events tell.
"""

import asyncio
import email.utils
import logging
import random
import ssl
from collections.abc import Callable, Sequence
from typing import Literal

import httpx2

from ..errors import PagestreamError
from .addresses import Allowed, NotAllowed
from .events import Hook
from .signing import signed_headers
from .store import GIVE_UP_MS, HookStore

TIMEOUT_S = 10.0
FIRST_RETRY_MS, RETRY_MS_MAX = 5_000, 3_600_000

_JSON = {"content-type": "application/json"}

Outcome = Literal["delivered", "failed", "dead"]

log = logging.getLogger(__name__)


class _Refused(PagestreamError):
    """The receiver did not take it; it may later."""

    def __init__(self, message: str, *, retry_after_ms: int = 0, is_final: bool = False) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms
        self.is_final = is_final


class Sender:
    """Sends webhooks; belongs to one event loop."""

    def __init__(
        self,
        store: HookStore,
        keys: Sequence[bytes],
        allowed: Allowed,
        *,
        count: Callable[[Outcome], None],
    ) -> None:
        """Without `keys` nothing is sent: nobody could tell ours from a stranger's.

        `count` is told of each attempt.
        """
        self._store = store
        self._keys = keys
        self._allowed = allowed
        self._count = count
        self._http = httpx2.AsyncClient(
            follow_redirects=False,
            trust_env=False,  # a proxy of the environment would look the host up again
            timeout=TIMEOUT_S,
            headers={"user-agent": "pagestream"},
        )

    async def send(self, hook_id: str) -> int | None:
        """Try to deliver a webhook; return in how many ms to try again, if it has to be.

        Raises:
            QueueUnavailable: Redis cannot be reached.
        """
        pending = await self._store.get(hook_id)
        if pending is None:
            return None
        now_ms = await self._store.now_ms()
        try:
            await self._post(pending.hook, now_ms // 1000)
        except _Refused as refused:
            attempts = await self._store.failed(hook_id, str(refused))
            delay_ms = max(retry_ms(attempts), refused.retry_after_ms)
            if refused.is_final or now_ms - pending.since_ms + delay_ms > GIVE_UP_MS:
                await self._store.bury(hook_id)
                self._count("dead")
                log.error("webhook %s of %s is given up: %s", hook_id, pending.hook.about, refused)
                return None
            self._count("failed")
            log.info("webhook %s of %s failed: %s", hook_id, pending.hook.about, refused)
            return delay_ms
        await self._store.forget(hook_id)
        self._count("delivered")
        return None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _post(self, hook: Hook, now_s: int) -> None:
        if not self._keys:
            raise _Refused("no PAGESTREAM_WEBHOOK_SECRET is set: nothing is signed", is_final=True)
        headers = signed_headers(self._keys, hook.id, now_s, hook.body) | _JSON
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._exchange(hook, headers, now_s)
        except NotAllowed as error:
            raise _Refused(str(error), is_final=True) from error
        except TimeoutError as error:
            raise _Refused(f"no answer in {TIMEOUT_S:.0f} s") from error
        except (httpx2.HTTPError, OSError, ssl.SSLError) as error:
            raise _Refused(f"{type(error).__name__}: {error}") from error

    async def _exchange(self, hook: Hook, headers: dict[str, str], now_s: int) -> None:
        url = httpx2.URL(hook.url)
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        address = await self._allowed.address(url.host, port)
        async with self._http.stream(
            "POST",
            url.copy_with(host=address),
            content=hook.body,
            headers=headers | {"host": url.netloc.decode()},
            extensions={"sni_hostname": url.host},
        ) as answer:
            if not answer.is_success:
                raise _Refused(
                    f"answered {answer.status_code}",
                    retry_after_ms=_retry_after_ms(answer.headers.get("retry-after"), now_s),
                    is_final=answer.status_code == 410,  # gone, says Standard Webhooks
                )


def retry_ms(attempts: int) -> int:
    """Return the pause after so many failed attempts: doubling, and not the same for everybody."""
    pause_ms = min(FIRST_RETRY_MS * 2 ** (attempts - 1), RETRY_MS_MAX)
    return round(pause_ms * random.uniform(0.75, 1.25))


def _retry_after_ms(header: str | None, now_s: int) -> int:
    """Return what a `Retry-After` asks for; 0 if it is none."""
    if header is None:
        return 0
    try:
        return max(0, int(header)) * 1000
    except ValueError:
        pass
    try:
        at_s = email.utils.parsedate_to_datetime(header).timestamp()
    except ValueError:
        return 0
    return max(0, round((at_s - now_s) * 1000))
