"""`pagestream top`: one frame as text, its parts, and a real terminal through an outage."""

import os
import signal
import sys
from collections.abc import Callable

import msgspec
import redis
from redis_server import RedisServer
from rich.console import Console
from typer.testing import CliRunner
from wire_tools import Wire, Worker

from pagestream.producer.cli import build
from pagestream.producer.keys import QUEUES
from pagestream.producer.live import Live
from pagestream.producer.snapshot import KvCache, SlowJob, WorkerSnapshot
from pagestream.producer.top import CURVE_FRAMES, Top
from pagestream.producer.top_frame import duration, frame, spark

SNAPSHOT = WorkerSnapshot(
    at_ms=1,
    uptime_s=75.0,
    device="cpu",
    running=3,
    waiting=1,
    slots=4,
    kv=KvCache(
        total_blocks=8, used_blocks=2, cached_blocks=1, block_tokens=16, block_map="us..c..."
    ),
    prefill_tokens_per_s=1234.0,
    decode_tokens_per_s=567.0,
    prefix_query_tokens=10,
    prefix_hit_tokens=4,
    preemptions=9,
    slowest=[
        SlowJob(
            id="slow-one",
            lane="low",
            tenant="acme",
            state="decode",
            age_ms=61_000,
            prompt_tokens=12,
            output_tokens=345,
        )
    ],
)


def beat(wire: Wire, name: str = "w-1", **changes) -> Worker:
    worker = Worker(wire, name, heartbeat_ms=0)
    snapshot = msgspec.structs.replace(SNAPSHOT, **changes)
    worker.step(snapshot=msgspec.json.encode(snapshot).decode())
    return worker


def once(url: str, *more: str, width: int = 120) -> str:
    arguments = ["top", "--once", "--redis-url", url, *more]
    done = CliRunner(env={"COLUMNS": str(width)}).invoke(build(arguments), arguments)
    assert done.exit_code == 0, done.output
    return done.output


def line_with(text: str, *words: str) -> str:
    (line,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return line


def test_one_frame_shows_queue_worker_blocks_and_slowest(redis_url: str, wire: Wire) -> None:
    beat(wire)
    for number in range(3):
        wire.submit(f"j{number}", lane="high")
    text = once(redis_url, "--queue", wire.keys.queue)
    assert line_with(text, wire.keys.queue, "high").split()[3:5] == ["3", "0"]
    worker = line_with(text, "up 75.0 s")
    for words in ("w-1", "3/4", "25%", "1,234", "567", "40%", "9"):
        assert words in worker
    assert "2 used, 1 cached of 8 blocks of 16 tokens" in text
    assert "■■··▪···" in text
    assert line_with(text, "slow-one").split()[1:9] == [
        *("slow-one", "decode", "61.0", "s", "12", "345", "low", "acme"),
    ]


def test_a_narrow_terminal_keeps_the_numbers_whole(redis_url: str, wire: Wire) -> None:
    beat(wire)
    text = once(redis_url, "--queue", wire.keys.queue, width=80)
    worker = line_with(text, "up 75.0 s")
    assert "1,234" in worker
    assert "567" in worker
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_states_of_workers(redis_url: str, wire: Wire) -> None:
    beat(wire, "a", refuses="it is draining")
    Worker(wire, "b")
    gone = Worker(wire, "c")
    gone.die()
    text = once(redis_url, "--queue", wire.keys.queue)
    workers = [line.split()[1:3] for line in text.split("workers ─")[1].splitlines()]
    for words in (["a", "draining"], ["b", "starting"], ["c", "dead"]):
        assert words in workers


def test_nothing_to_show_says_what_to_do() -> None:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(frame([], {}, width=80))
    console.print(frame([], {}, width=80, trouble="Redis is away"))
    text = console.export_text()
    console.file.close()
    assert "no queue yet" in text
    assert "Redis is away" in text


def test_a_large_cache_is_shown_whole_in_few_lines(redis_url: str, wire: Wire) -> None:
    kv = KvCache(
        total_blocks=10_240,
        used_blocks=10,
        block_tokens=16,
        block_map="." * 1000 + "u" + "." * 23,
        blocks_per_cell=10,
    )
    beat(wire, kv=kv)
    text = once(redis_url, "--queue", wire.keys.queue, width=80)
    assert "a cell is 40 blocks" in text  # 1,024 cells in 4 lines of 76
    cells = [line for line in text.splitlines() if "···" in line]
    assert len(cells) == 4
    assert sum(line.count("■") for line in cells) == 1, "what is in use is never hidden"


def test_curves_and_times() -> None:
    assert spark([0, 5, 10]).plain == "▁▅█"
    assert spark([]).plain == spark([0, 0]).plain == ""
    shown = [duration(ms) for ms in (0, 850, 12_300, 250_000, 11_100_000, 300_000_000)]
    assert shown == ["0 ms", "850 ms", "12.3 s", "4m10s", "3h05m", "3d11h"]


def test_a_curve_forgets_what_is_old_and_workers_that_left(redis_url: str, wire: Wire) -> None:
    worker = beat(wire)
    with Live(redis_url) as live:
        top = Top(live, wire.keys.queue)
        for _ in range(CURVE_FRAMES + 5):
            top.read()
        assert len(top._rates["w-1"]) == CURVE_FRAMES
        worker.lease.leave()
        top.read()
        assert top._rates == {}


def test_without_redis_once_ends_with_69(tmp_path) -> None:
    arguments = ["top", "--once", "--redis-url", f"unix://{tmp_path}/none"]
    done = CliRunner().invoke(build(arguments), arguments)
    assert done.exit_code == 69
    assert "Redis at unix://" in done.stderr


def test_a_terminal_shows_an_outage_and_its_end(
    own_server: Callable[..., RedisServer], keys, terminal
) -> None:
    server = own_server()
    client = Wire(redis.Redis.from_url(server.url, protocol=2), keys)
    client.redis.sadd(QUEUES, keys.queue)
    client.submit("j")
    command = [sys.executable, "-m", "pagestream.producer.cli", "top"]
    process, wait_for = terminal(*command, "--redis-url", server.url, "--interval", "0.1")
    wait_for(keys.queue)
    server.kill()
    wait_for("Redis at unix://")
    server.start()
    wait_for("normal")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    client.redis.close()
