"""A state machine: anything may happen to a queue in any order, and the promise holds.

Producers submit, cancel and delete; workers claim, publish, finish, hand back, die, wake up again
and reap each other; answers get lost, groups and replies are deleted, and Redis forgets what it had
acknowledged. After every rule each reply is gap-free and ends at most once, and each unfinished job
is in exactly one place; at the end every job has one terminal entry and the lanes are empty.
"""

import os
import uuid
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from wire_tools import ALL_TOKENS, Wire, Worker, end, row

from pagestream.producer.keys import LANES, SUSPECT_CRASHES, Keys
from pagestream.producer.lua import Script
from pagestream.worker.queue.calls import Prefill, Victim
from pagestream.worker.queue.lease import Claim, Return, StepCall

TENANTS = ("a", "b")
UNFINISHED = {"queued", "running"}
HOUR_MS = 3_600_000

renew = Script("renew")

index = st.integers(0, 10**6)


class Runner:
    """A worker that writes token i at index i, and believes only what Redis answers."""

    def __init__(self, wire: Wire) -> None:
        self.worker = Worker(wire)
        self.lease = self.worker.lease
        self.held: dict[str, Claim] = {}
        self.published: dict[str, int] = {}

    def step(self, call: StepCall, lose_answer: bool) -> None:
        reply = self.lease.step(call)
        if lose_answer and reply.status == "applied":
            self.lease._step -= 1
            reply = self.lease.step(call)
            assert reply.status == "already"
        if reply.status == "rollback":
            self.resync()
            return
        for written, code in zip(call.rows, reply.row_codes, strict=True):
            assert code in "kfg", f"{written} was published before"
            if code == "k":
                self.published[written.job_id] = written.offset
            else:
                self.drop(written.job_id)
        for ended in call.ends:
            self.drop(ended.job_id)
        for returned in call.returns:
            self.drop(returned[0])
        if call.victim is not None and reply.victim_left:
            self.drop(call.victim.job_id)
        for claim in reply.claims:
            held = self.held.get(claim.job_id)
            if held is None or held.epoch != claim.epoch:
                self.hold(claim)

    def hold(self, claim: Claim) -> None:
        entries = self.lease.replay(claim.job_id)
        self.held[claim.job_id] = claim
        self.published[claim.job_id] = sum(len(entry.ids) for entry in entries)

    def drop(self, job_id: str) -> None:
        self.held.pop(job_id, None)
        self.published.pop(job_id, None)

    def resync(self) -> None:
        running = [(claim.job_id, claim.epoch) for claim in self.held.values()]
        for tail in self.lease.resync(running):
            if tail.owned:
                self.published[tail.job_id] = tail.offset
            else:
                self.drop(tail.job_id)

    def rows(self, which: int, count: int) -> list:
        claims = [claim for i, claim in enumerate(self.held.values()) if which >> i & 1]
        starts = [self.published[claim.job_id] for claim in claims]
        return [
            row(claim, start, *range(start, start + count))
            for claim, start in zip(claims, starts, strict=True)
        ]


class WireMachine(RuleBasedStateMachine):
    """Rules are what the world may do."""

    def __init__(self, redis_client) -> None:
        super().__init__()
        self.redis = redis_client
        self.keys = Keys(f"machine-{uuid.uuid4().hex[:12]}")
        self.wire = Wire(redis_client, self.keys)
        self.runners: list[Runner] = []
        self.dead: set[str] = set()
        self.jobs: dict[str, tuple[str, str]] = {}
        self.gone: set[str] = set()
        self.old: dict[bytes, bytes] | None = None

    @initialize()
    def start(self) -> None:
        self.runners = [Runner(self.wire), Runner(self.wire)]

    # ---- producers

    @rule(
        lane=st.sampled_from(LANES),
        tenant=st.sampled_from(TENANTS),
        times=st.sampled_from([{}, {"queue_timeout_ms": HOUR_MS}, {"reader_timeout_ms": HOUR_MS}]),
    )
    def submit(self, lane: str, tenant: str, times: dict[str, int]) -> None:
        job_id = f"job-{len(self.jobs)}"
        assert self.wire.submit(job_id, lane=lane, tenant=tenant, **times) == "accepted"
        self.jobs[job_id] = (lane, tenant)

    @precondition(lambda self: self.jobs)
    @rule(which=index)
    def submit_again(self, which: int) -> None:
        job_id = list(self.jobs)[which % len(self.jobs)]
        lane, tenant = self.jobs[job_id]
        known = bool(self.wire.record(job_id))
        status = self.wire.submit(job_id, lane=lane, tenant=tenant)
        assert status == ("attached" if known else "accepted")
        if not known:
            self.gone.discard(job_id)

    @precondition(lambda self: self.jobs)
    @rule(which=index)
    def time_passes(self, which: int) -> None:
        """The reader of a job has been gone for an hour, or it has waited for so long."""
        job_id = list(self.jobs)[which % len(self.jobs)]
        for name in ("queue_deadline_ms", "reader_due_ms"):
            if self.redis.hexists(self.keys.job(job_id), name):
                self.redis.hset(self.keys.job(job_id), name, 1)
                self.redis.zadd(self.keys.due, {job_id: 1}, xx=True)

    @precondition(lambda self: self.jobs)
    @rule(which=index)
    def read(self, which: int) -> None:
        renew(self.redis, self.keys.bell, list(self.jobs)[which % len(self.jobs)])

    @rule(tenant=st.sampled_from((*TENANTS, "*")), weight=st.sampled_from([0.5, 1, 3]))
    def set_weight(self, tenant: str, weight: float) -> None:
        self.redis.hset(self.keys.limits, f"{tenant}:weight", weight)

    @precondition(lambda self: self.jobs)
    @rule(which=index)
    def cancel(self, which: int) -> None:
        self.wire.cancel(list(self.jobs)[which % len(self.jobs)])

    @precondition(lambda self: self.jobs)
    @rule(which=index)
    def delete(self, which: int) -> None:
        job_id = list(self.jobs)[which % len(self.jobs)]
        if self.wire.delete(job_id) == "deleted":
            self.gone.add(job_id)

    @precondition(lambda self: self.jobs)
    @rule(which=index)
    def delete_reply(self, which: int) -> None:
        job_id = list(self.jobs)[which % len(self.jobs)]
        if self.redis.delete(self.keys.out(job_id)):
            self.gone.add(job_id)

    # ---- workers

    def runner(self, which: int) -> Runner:
        return self.runners[which % len(self.runners)]

    @rule(
        which=index,
        slots=st.integers(0, 4),
        tokens=st.sampled_from([0, 15, ALL_TOKENS]),
        lose=st.booleans(),
    )
    def claim(self, which: int, slots: int, tokens: int, lose: bool) -> None:
        self.runner(which).step(StepCall(slots=slots, tokens=tokens), lose)

    @rule(
        which=index,
        job=index,
        lane=st.sampled_from(LANES),
        tenant=st.sampled_from(TENANTS),
        lose=st.booleans(),
    )
    def make_room(self, which: int, job: int, lane: str, tenant: str, lose: bool) -> None:
        """A full worker offers a job for one that waits, if it still does."""
        runner = self.runner(which)
        if not runner.held:
            return
        claim = list(runner.held.values())[job % len(runner.held)]
        victim = Victim(claim.job_id, claim.epoch, lane, tenant, 10)
        prefills = [Prefill(claim.job_id, claim.epoch, 3)]
        runner.step(StepCall(victim=victim, prefills=prefills), lose)

    @rule(which=index, jobs=st.integers(1, 15), count=st.integers(1, 3), lose=st.booleans())
    def publish(self, which: int, jobs: int, count: int, lose: bool) -> None:
        runner = self.runner(which)
        runner.step(StepCall(rows=runner.rows(jobs, count)), lose)

    @rule(
        which=index,
        jobs=st.integers(1, 15),
        count=st.integers(1, 3),
        back=st.integers(0, 15),
        lose=st.booleans(),
    )
    def publish_and_end(self, which: int, jobs: int, count: int, back: int, lose: bool) -> None:
        runner = self.runner(which)
        rows = runner.rows(jobs, count)
        leaving = [runner.held[row.job_id] for row in rows]
        call = StepCall(rows=rows, slots=1, tokens=ALL_TOKENS)
        for i, claim in enumerate(leaving):
            if back >> i & 1:
                call.returns = [*call.returns, (claim.job_id, claim.epoch)]
            else:
                call.ends = [*call.ends, end(claim, rows[i].offset)]
        runner.step(call, lose)

    @rule(which=index)
    def reap(self, which: int) -> None:
        runner = self.runner(which)
        self.wire.watch()
        runner.lease.reap(runner.held)

    @precondition(lambda self: len(self.runners) < 5)
    @rule(which=index)
    def die(self, which: int) -> None:
        """Its heart stops and another starts; the dead one may yet come back and act."""
        name = self.runner(which).worker.name
        if self.redis.delete(self.keys.heartbeat(name)):
            self.dead.add(name)
        self.runners.append(Runner(self.wire))

    @precondition(lambda self: len(self.runners) > 2)
    @rule(which=index)
    def leave(self, which: int) -> None:
        runner = self.runners.pop(which % len(self.runners))
        if runner.lease.leave() is None:
            self.dead.discard(runner.worker.name)

    @rule(which=index)
    def engine_crash(self, which: int) -> None:
        runner = self.runner(which)
        running = [(c.job_id, c.epoch, c.crashes) for c in runner.held.values()]
        for crash in runner.lease.crashed(running):
            if crash.outcome == "kept":
                held = runner.held[crash.job_id]
                runner.held[crash.job_id] = held._replace(crashes=crash.crashes)
            else:
                runner.drop(crash.job_id)
        suspects = [c for c in runner.held.values() if c.crashes >= SUSPECT_CRASHES]
        if len(runner.held) > 1 and suspects:
            runner.step(StepCall(returns=[(c.job_id, c.epoch) for c in suspects]), False)

    @precondition(lambda self: self.redis.exists(self.keys.suspects))
    @rule(cleared=st.booleans(), which=index)
    def run_suspect(self, cleared: bool, which: int) -> None:
        """A back-off passes; a worker that has nothing else takes the suspect, and may clear it."""
        self.redis.zadd(self.keys.suspects, {self.redis.zrange(self.keys.suspects, 0, 0)[0]: 0})
        runner = self.runner(which)
        was_idle = not runner.held
        runner.step(StepCall(slots=4, tokens=ALL_TOKENS), False)
        for claim in list(runner.held.values()):
            if claim.crashes >= SUSPECT_CRASHES and was_idle:
                assert len(runner.held) == 1, "a suspect has company"
                if cleared:
                    back = Return(claim.job_id, claim.epoch, None, True)
                    runner.step(StepCall(returns=[back]), False)

    # ---- the server

    @rule()
    def flush_scripts(self) -> None:
        self.redis.script_flush()

    @rule(lane=st.sampled_from(LANES), tenant=st.sampled_from(TENANTS))
    def destroy_group(self, lane: str, tenant: str) -> None:
        if self.redis.exists(self.keys.jobs(lane, tenant)):
            self.redis.xgroup_destroy(self.keys.jobs(lane, tenant), "workers")

    @rule()
    def remember(self) -> None:
        self.old = {key: self.redis.dump(key) for key in self.all_keys()}

    @precondition(lambda self: self.old is not None)
    @rule()
    def forget(self) -> None:
        """An old append-only file is loaded: everything since `remember` never happened."""
        for key in self.all_keys():
            self.redis.delete(key)
        for key, dump in self.old.items():
            self.redis.restore(key, 0, dump)
        for name in self.dead:
            self.redis.delete(self.keys.heartbeat(name))
        self.gone = {job_id for job_id in self.jobs if not self.redis.exists(self.keys.out(job_id))}
        self.old = None

    def all_keys(self) -> list[bytes]:
        return list(self.redis.scan_iter(match=f"{self.keys.prefix}*", count=1000))

    # ---- what holds at any time

    @invariant()
    def replies_are_whole(self) -> None:
        for job_id in self.jobs:
            entries = self.wire.reply(job_id)
            assert not (entries and job_id in self.gone), f"{job_id} was resurrected"
            ids = [token for entry in entries for token in entry.ids]
            assert ids == list(range(len(ids))), f"{job_id} has a gap or a repeat: {ids}"
            offset = 0
            for entry in entries:
                if entry.event == "tokens":
                    offset += len(entry.ids)
                    assert entry.offset == offset
            ends = [entry for entry in entries if entry.event == "end"]
            assert ends in ([], entries[-1:]), f"{job_id} ends {len(ends)} times"
            if ends:
                assert ends[0].offset == offset + 1
            state = self.wire.state(job_id)
            if entries and state is not None:
                assert bool(ends) == (state not in UNFINISHED), f"{job_id} is {state}"

    @invariant()
    def each_unfinished_job_is_in_one_place(self) -> None:
        entries = Counter()
        for lane in LANES:
            for tenant in TENANTS:
                stream = self.keys.jobs(lane, tenant)
                for entry_id, fields in self.redis.xrange(stream):
                    job_id = fields[b"id"].decode()
                    entries[job_id] += 1
                    record = self.wire.record(job_id)
                    assert record["entry"] == entry_id.decode()
                    if record["state"] == "queued":
                        self.check_reachable(lane, tenant, entry_id, job_id)
                    else:
                        lease = self.redis.hget(self.keys.running(record["owner"]), job_id)
                        assert lease.split()[0].decode() == record["epoch"]
        unfinished = [job_id for job_id in self.jobs if self.wire.state(job_id) in UNFINISHED]
        assert entries == Counter(unfinished)

    def check_reachable(self, lane: str, tenant: str, entry_id: bytes, job_id: str) -> None:
        """A queued job is on the shelf or undelivered, and its tenant is known to wait.

        Or it is a suspect, and known as one.
        """
        if self.redis.zscore(self.keys.suspects, job_id) is not None:
            return
        assert self.redis.zscore(self.keys.ready(lane), tenant) is not None
        stream = self.keys.jobs(lane, tenant)
        for group in self.redis.xinfo_groups(stream):
            shelf = self.redis.xpending_range(stream, "workers", "-", "+", 1000, "returned")
            is_shelved = entry_id in [item["message_id"] for item in shelf]
            last = tuple(map(int, group["last-delivered-id"].split(b"-")))
            assert is_shelved or tuple(map(int, entry_id.split(b"-"))) > last, f"{job_id} is stuck"

    @invariant()
    def what_is_due_is_known_to_be(self) -> None:
        for job_id in self.redis.zrange(self.keys.due, 0, -1):
            state = self.wire.state(job_id.decode())
            assert state in UNFINISHED, f"{job_id} is {state} and due"

    @invariant()
    def no_lease_is_stale(self) -> None:
        for key in self.redis.scan_iter(match=f"{self.keys.prefix}running:*", count=1000):
            owner = key.decode().rpartition("running:")[2]
            for job_id in self.redis.hkeys(key):
                record = self.wire.record(job_id.decode())
                assert (record["state"], record["owner"]) == ("running", owner)

    # ---- the end

    def teardown(self) -> None:
        try:
            if self.jobs:
                self.finish_everything()
        finally:
            for key in self.all_keys():
                self.redis.delete(key)

    def finish_everything(self) -> None:
        """Every worker dies but a last one, which runs what there is to its end."""
        for name in self.redis.hkeys(self.keys.model):
            self.redis.delete(self.keys.heartbeat(name.decode()))
        for job_id, (lane, tenant) in self.jobs.items():
            if not self.wire.record(job_id):
                self.wire.submit(job_id, lane=lane, tenant=tenant)
                self.gone.discard(job_id)
        last = Runner(self.wire)
        for _ in range(5 + len(self.jobs)):
            self.wire.watch()
            last.lease.reap(last.held)
            for job_id in self.redis.zrange(self.keys.suspects, 0, -1):
                self.redis.zadd(self.keys.suspects, {job_id: 0})  # their back-off passes
            last.step(StepCall(slots=100, tokens=ALL_TOKENS), lose_answer=False)
            rows = last.rows(-1, 1)
            ends = [end(last.held[row.job_id], row.offset) for row in rows]
            last.step(StepCall(rows=rows, ends=ends), lose_answer=False)
        self.replies_are_whole()
        self.each_unfinished_job_is_in_one_place()
        states = {job_id: self.wire.state(job_id) for job_id in self.jobs}
        assert not UNFINISHED & set(states.values()), f"left over: {states}"
        ended = [j for j in self.jobs if j in self.gone or self.wire.reply(j)[-1].event == "end"]
        assert ended == list(self.jobs)
        for lane in LANES:
            streams = [self.keys.jobs(lane, tenant) for tenant in TENANTS]
            assert not self.redis.exists(*streams, self.keys.ready(lane))
        assert not self.redis.exists(self.keys.suspects)


def run_machine(server, examples: int, begin=lambda keys: None) -> None:
    """Let anything happen, so many times; `begin` is told the keys each time."""

    def machine() -> WireMachine:
        made = WireMachine(server)
        begin(made.keys)
        return made

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize="PAGESTREAM_MACHINE_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
