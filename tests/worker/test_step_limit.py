import logging

from pagestream.worker.engine import step_limit
from pagestream.worker.engine.step_limit import LAUNCHES_TO_RAISE, StepLimit


def test_it_halves_what_did_not_fit():
    limit = StepLimit(64)
    limit.lower(64, "")
    assert limit.tokens == 32
    limit.lower(7, "")
    assert (limit.tokens, limit.times_lowered) == (3, 2)


def test_it_comes_back_by_doubling():
    limit = StepLimit(64)
    limit.lower(40, "")
    seen = []
    for _ in range(4 * LAUNCHES_TO_RAISE):
        limit.fitted()
        seen.append(limit.tokens)
    assert list(dict.fromkeys(seen)) == [20, 40, 64]
    assert seen.index(40) == LAUNCHES_TO_RAISE - 1


def test_a_failed_try_counts_anew():
    limit = StepLimit(64)
    limit.lower(64, "")
    for _ in range(LAUNCHES_TO_RAISE - 1):
        limit.fitted()
    limit.lower(32, "")
    limit.fitted()
    assert limit.tokens == 16


def test_it_logs_the_reason_and_not_each_time(caplog, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(step_limit.time, "monotonic", lambda: now_s[0])
    limit = StepLimit(64)
    with caplog.at_level(logging.WARNING):
        limit.lower(64, "tried to allocate much")
        limit.lower(32, "tried to allocate less")
        now_s[0] = 11.0
        limit.lower(16, "tried again")
    assert [record.args for record in caplog.records] == [
        (64, "tried to allocate much"),
        (16, "tried again"),
    ]
