"""A cancel at any moment: one terminal entry, and the room is free within a step."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_engine import StubOptions
from wire_tools import ALL_TOKENS, Wire, end, row
from wire_tools import Worker as WireWorker
from worker_harness import Client, Worker

from pagestream.worker.queue.calls import Claim, StepCall, Victim

# ---- every order of what may happen to one job


class Life:
    """One job and the worker that holds it, if one does; every move may be made at any time."""

    def __init__(self, wire: Wire, job_id: str) -> None:
        self.wire = wire
        self.id = job_id
        self.worker = WireWorker(wire)
        self.claim_: Claim | None = None
        self.published = 0
        self.told = False

    def cancel(self) -> None:
        self.wire.cancel(self.id)

    def claim(self) -> None:
        claims = self._step(slots=1, tokens=ALL_TOKENS).claims
        if claims:
            (self.claim_,) = claims
            entries = self.worker.lease.replay(self.id)
            self.published = sum(len(entry.ids) for entry in entries)

    def publish(self) -> None:
        if self.claim_:
            written = row(self.claim_, self.published, 5)
            if self._step(rows=[written]).row_codes == "k":
                self.published += 1
            else:
                self.claim_ = None

    def finish(self) -> None:
        if self.claim_:
            reason = "cancelled" if self.told else "stop"
            self._step(ends=[end(self.claim_, self.published, reason)])
            self.claim_ = None

    def hand_back(self) -> None:
        if self.claim_:
            self._step(returns=[(self.id, self.claim_.epoch)])
            self.claim_ = None

    def make_room(self) -> None:
        """For a job that does not wait, or for itself: nothing may come of it but order."""
        if self.claim_:
            victim = Victim(self.id, self.claim_.epoch, "normal", "default", 10)
            if self._step(victim=victim).victim_left:
                self.claim_ = None

    def die(self) -> None:
        self.worker.die()
        self.worker = WireWorker(self.wire)
        self.worker.lease.reap(())
        self.claim_, self.told = None, False

    def _step(self, **call):
        reply = self.worker.lease.step(StepCall(**call))
        if any(control.job_id == self.id for control in reply.controls):
            self.told = True
        return reply


MOVES = ("claim", "publish", "finish", "hand_back", "make_room", "die")


def lives() -> list[tuple[str, ...]]:
    """Every order of up to three other moves, with one cancel or two somewhere in it."""
    orders = []
    for length in range(4):
        for moves in itertools.product(MOVES, repeat=length):
            for place in range(length + 1):
                orders.append((*moves[:place], "cancel", *moves[place:]))
    twice = ("claim", "publish", "cancel", "cancel")
    return orders + [(*twice, *tail) for tail in itertools.product(MOVES, repeat=2)]


def test_every_order_ends_the_job_once(wire: Wire) -> None:
    orders = lives()
    assert len(orders) > 900
    for number, order in enumerate(orders):
        job_id = f"job-{number}"
        wire.submit(job_id)
        life = Life(wire, job_id)
        for move in order:
            getattr(life, move)()
        # Whoever holds it hears of the cancel at its next step.
        life._step()
        life.finish()
        ends = [entry for entry in wire.reply(job_id) if entry.event == "end"]
        assert len(ends) == 1, order
        assert wire.reply(job_id)[-1].event == "end", order
        state = wire.state(job_id)
        assert state == ("done" if ends[0].reason == "stop" else "cancelled"), order
        if "finish" not in order:
            assert state == "cancelled", order
        assert wire.cancel(job_id) == "finished"
        assert wire.lane_entries() == 0, order
        life.worker.lease.leave()


def test_unknown_jobs_cannot_be_cancelled(wire: Wire) -> None:
    assert wire.cancel("unknown") == "unknown"


# ---- a worker with one slot: the next job is the proof that it is free


@pytest.fixture
def start(start: Callable[..., Worker]) -> Callable[..., Worker]:
    def make(**options) -> Worker:
        return start(StubOptions(max_running=1, max_model_tokens=4_096, num_blocks=300, **options))

    return make


ENDLESS = {"max_tokens": 4_000, "ignore_eos": True}


def cancel_and_look(client: Client, job_id: str) -> int:
    """Cancel, and return how many tokens there were at that moment."""
    client.cancel("unknown")  # the server knows the script now
    with client.redis.pipeline(transaction=True) as pipeline:
        pipeline.xrevrange(client.keys.out(job_id), count=1)
        pipeline.evalsha(client.cancel_script.sha, 1, client.keys.bell, job_id)
        (last,), outcome = pipeline.execute()
    assert outcome == b"cancelling"
    return int(last[0].split(b"-")[1])


@pytest.mark.parametrize("when", ["queued", "prefilling", "decoding", "decoding, twice"])
def test_the_slot_and_the_blocks_are_free_at_once(
    start: Callable[..., Worker], client: Client, tmp_path: Path, when: str
) -> None:
    stall = tmp_path / "stall"
    start(step_s=0.02, stall_file=stall)
    # It fills the cache: nothing runs beside it, and the next one needs its blocks.
    if when == "queued":
        client.submit("first", prompt_ids=[1], sampling=ENDLESS)
        client.wait_tokens("first", 1)
    elif when == "prefilling":
        stall.touch()
    client.submit("job", prompt_ids=[2] * 3_000, sampling={**ENDLESS, "max_tokens": 1_000})
    client.submit("next", prompt_ids=[3] * 3_000, sampling={"max_tokens": 3, "ignore_eos": True})
    if when == "queued":
        assert client.cancel("job") == b"cancelled"
        client.cancel("first")
    elif when == "prefilling":
        client.wait_for("job", lambda entries: entries[-1].event == "start")
        assert client.cancel("job") == b"cancelling"
        stall.unlink()
    else:
        client.wait_tokens("job", 3)
        at_cancel = cancel_and_look(client, "job")
        if when.endswith("twice"):
            assert client.cancel("job") in (b"cancelling", b"finished")
    reply = client.result("job")
    assert reply.end.reason == "cancelled"
    assert client.result("next").end.reason == "length"
    if when.startswith("decoding"):
        # The step that ran at the time, and the one that had begun when its tokens came.
        assert len(reply.ids) - at_cancel <= 2
    assert client.cancel("job") == client.cancel("next") == b"finished"
    assert client.state("job") == "cancelled"


def test_a_cancel_at_the_last_token_is_one_end_or_the_other(
    start: Callable[..., Worker], client: Client
) -> None:
    start(step_s=0.001)
    reasons = []
    for number in range(30):
        job_id = f"job-{number}"
        tokens = 5
        client.submit(
            job_id, prompt_ids=[number], sampling={"max_tokens": tokens, "ignore_eos": True}
        )
        client.wait_tokens(job_id, tokens - 1)
        client.cancel(job_id)
        reply = client.result(job_id)
        assert (len(reply.ids) == tokens) or reply.end.reason == "cancelled"
        reasons.append(reply.end.reason)
    assert set(reasons) <= {"length", "cancelled"}
