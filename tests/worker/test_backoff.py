"""Calls go through outages, and only through outages."""

from collections.abc import Callable

import pytest
from redis.exceptions import (
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pagestream.worker.queue import backoff
from pagestream.worker.queue.backoff import Patience, RedisGone, is_passing


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(backoff.time, "sleep", pauses.append)
    return pauses


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [times]

    def call() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "done"

    return call


def test_pauses_grow_to_a_limit_and_are_random(no_pauses: list[float]) -> None:
    assert Patience(lambda: 60).call(failing(20, RedisConnectionError("gone"))) == "done"
    assert len(no_pauses) == 20
    assert no_pauses[0] <= backoff.FIRST_PAUSE_S
    assert 0.5 <= no_pauses[-1] <= backoff.LONGEST_PAUSE_S
    assert len(set(no_pauses[-5:])) == 5


def test_the_limit_ends_an_outage() -> None:
    with pytest.raises(RedisGone, match="gone"):
        Patience(lambda: -1).call(failing(1, RedisTimeoutError("gone")))


@pytest.mark.parametrize(
    "error",
    [
        RedisConnectionError("reset"),
        RedisTimeoutError("slow"),
        BusyLoadingError("loading"),
        ReadOnlyError("You can't write against a read only replica."),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ResponseError("MISCONF Errors writing to the AOF file"),
        ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL or …"),
        ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"),
        ResponseError("OOM command not allowed when used memory > 'maxmemory'. script: abc"),
    ],
)
def test_what_may_pass_is_tried_again(error: RedisError) -> None:
    assert is_passing(error)


@pytest.mark.parametrize(
    "error",
    [
        ResponseError("WRONGTYPE Operation against a key"),
        ResponseError("BUSYGROUP Consumer Group name already exists"),
        ResponseError("ERR user_script:1"),
    ],
)
def test_a_mistake_is_not_tried_again(error: RedisError) -> None:
    with pytest.raises(ResponseError):
        Patience(lambda: 60).call(failing(1, error))


def test_who_watches_hears_of_every_try() -> None:
    heard: list[str] = []
    patience = Patience(lambda: 60, lambda: heard.append("ok"), lambda: heard.append("failed"))
    patience.call(failing(2, RedisConnectionError("gone")))
    assert heard == ["failed", "failed", "ok"]
