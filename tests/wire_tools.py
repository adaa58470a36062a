"""Short ways to say things over the wire, for the tests of both its ends."""

import json
import uuid

import msgspec
import redis

from pagestream.producer.keys import LANES, Keys
from pagestream.producer.lua import Script
from pagestream.producer.protocol import Entry, ModelInfo, Timings, Usage, decode_entry
from pagestream.producer.snapshot import KvCache, WorkerSnapshot
from pagestream.worker.queue.lease import Claim, End, Lease, Row, StepCall, StepReply

MODEL = ModelInfo(
    name="m",
    context_tokens=1_000,
    vocab_size=100,
    has_tokenizer=True,
    has_chat_template=False,
    max_running=64,
    kv_tokens=10_000,
)

PAYLOAD = msgspec.msgpack.encode({"v": 1, "prompt": "hello"})

SNAPSHOT = WorkerSnapshot(
    at_ms=1,
    uptime_s=2.0,
    device="cpu",
    running=3,
    waiting=1,
    slots=4,
    kv=KvCache(total_blocks=8, used_blocks=2, block_tokens=16, block_map="us..c..."),
    prefix_query_tokens=10,
    prefix_hit_tokens=4,
)

ALL_TOKENS = 10**9

_submit, _cancel, _delete = Script("submit"), Script("cancel"), Script("delete")


class Wire:
    """One queue seen from both ends."""

    def __init__(self, server: redis.Redis, keys: Keys) -> None:
        self.redis = server
        self.keys = keys

    # ---- a producer

    def submit(self, job_id: str, payload: bytes = b"{}", **options) -> str:
        options.setdefault("tokens_max", 10)
        return self.submit_raw(job_id, payload, json.dumps(options))[0].decode()

    def submit_raw(self, *args):
        return _submit(self.redis, self.keys.bell, *args)

    def cancel(self, job_id: str) -> str:
        return _cancel(self.redis, self.keys.bell, job_id).decode()

    def delete(self, job_id: str) -> str:
        return _delete(self.redis, self.keys.bell, job_id).decode()

    # ---- what is there

    def reply(self, job_id: str) -> list[Entry]:
        return [decode_entry(*entry) for entry in self.redis.xrange(self.keys.out(job_id))]

    def ids(self, job_id: str) -> list[str]:
        return [entry.id for entry in self.reply(job_id)]

    def record(self, job_id: str) -> dict[str, str]:
        fields = self.redis.hgetall(self.keys.job(job_id))
        return {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}

    def state(self, job_id: str) -> str | None:
        return self.record(job_id).get("state")

    def lane_entries(self, tenant: str = "default") -> int:
        return sum(self.redis.xlen(self.keys.jobs(lane, tenant)) for lane in LANES)

    def pending(self, consumer: str, lane: str = "normal", tenant: str = "default") -> int:
        stream = self.keys.jobs(lane, tenant)
        return len(self.redis.xpending_range(stream, "workers", "-", "+", 1000, consumer))

    def dead_letters(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.redis.xrange(self.keys.dead)]

    # ---- what time and death do, without waiting for them

    def age(self, job_id: str, waited_ms: int) -> None:
        """Let the only entry of a lane stream have waited for so long."""
        record = self.record(job_id)
        stream = self.keys.jobs(record["lane"], record["tenant"])
        assert self.redis.xlen(stream) == 1, "other entries would be lost"
        ms, _, sequence = record["entry"].partition("-")
        entry = f"{int(ms) - waited_ms}-{sequence}"
        self.redis.delete(stream)
        self.redis.xgroup_create(stream, "workers", "0", mkstream=True)
        self.redis.xadd(stream, {"id": job_id, "tokens_max": record["tokens_max"]}, id=entry)
        self.redis.hset(self.keys.job(job_id), "entry", entry)

    def pass_deadline(self, job_id: str, which: str) -> None:
        assert self.redis.hexists(self.keys.job(job_id), which), f"the job has no {which}"
        self.redis.hset(self.keys.job(job_id), which, 1)

    def watch(self, *, last_ms_ago: int = 0, since_ms_ago: int = 3_600_000) -> None:
        """As if workers had been reaping without a break, and last so long ago."""
        seconds, microseconds = self.redis.time()
        now_ms = seconds * 1000 + microseconds // 1000
        watched = {"last_ms": now_ms - last_ms_ago, "since_ms": now_ms - since_ms_ago}
        self.redis.hset(self.keys.watch, mapping=watched)

    def stop_heart(self, worker: str) -> None:
        self.watch()
        assert self.redis.delete(self.keys.heartbeat(worker)) == 1, f"{worker} has no heartbeat"


class Worker:
    """A worker that publishes what the test says."""

    def __init__(self, wire: Wire, name: str | None = None, **options) -> None:
        self.wire = wire
        self.lease = Lease(wire.redis, wire.keys, name or f"w-{uuid.uuid4().hex[:8]}", **options)
        self.lease.register(MODEL)

    @property
    def name(self) -> str:
        return self.lease.worker

    def step(self, **call) -> StepReply:
        return self.lease.step(StepCall(**call))

    def is_rung(self, bell_id: str, timeout_ms: int) -> bool:
        """Whether the bell, or a control message, comes by then; makes an empty step."""
        reply = self.lease.wait_and_step(StepCall(), bell_id, timeout_ms)
        return reply.bell_id != bell_id or bool(reply.controls)

    def claim(self, slots: int = 1, tokens: int = ALL_TOKENS) -> list[Claim]:
        return self.step(slots=slots, tokens=tokens, aged_slots=slots).claims

    def claim_one(self) -> Claim:
        (claim,) = self.claim()
        return claim

    def die(self) -> None:
        self.wire.stop_heart(self.name)


def row(claim: Claim, start: int, *ids: int, text: str = "x", choice: int = 0) -> Row:
    return Row(claim.job_id, claim.epoch, start + len(ids), choice, start, ids, text)


def end(claim: Claim, published: int, reason: str = "stop", **fields) -> End:
    usage = Usage(prompt_tokens=3, completion_tokens=published)
    fields = {"text": "", "usage": usage, "timings": Timings(total_ms=1.5)} | fields
    return End(claim.job_id, claim.epoch, published + 1, 0, reason, **fields)
