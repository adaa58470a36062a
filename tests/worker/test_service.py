"""The worker as a process: its settings, its log, its signals and its exit statuses."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_engine import StubOptions, expected_ids
from stub_process import Process
from tiny_tokenizer import save_byte_level
from worker_harness import Client, Worker

from pagestream.producer import AsyncClient
from pagestream.producer.keys import Keys
from pagestream.worker.config import EngineConfig
from pagestream.worker.errors import ConfigError
from pagestream.worker.loading import LoadingBar
from pagestream.worker.messages import Sampling
from pagestream.worker.models.errors import ModelNotFound
from pagestream.worker.settings import read_settings


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_byte_level(tmp_path / "model")


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A model without a tokenizer: its worker starts faster."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    return str(tmp_path / "bare")


@pytest.fixture
def spawn(
    tmp_path: Path, model: Path, redis_url: str, keys: Keys
) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def start(options: dict[str, Any] | None = None, **flags: Any) -> Process:
        defaults = {
            "model": str(model),
            "served_model_name": keys.queue,
            "redis_url": redis_url,
        }
        made.append(Process(tmp_path, {**defaults, **flags}, options or {}))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.wait()


def test_banner_signals_and_hand_back(spawn: Callable[..., Process], client: Client) -> None:
    worker = spawn({"step_s": 0.01, "num_blocks": 65, "max_model_tokens": 512}, name="alpha")
    banner = worker.wait_log("serves")
    assert "worker alpha" in banner
    assert "KV cache 0.00 GB = 1,024 tokens" in banner
    assert "2.0 requests of full length fit" in banner
    client.submit("short", prompt="a", sampling={"max_tokens": 60, "ignore_eos": True})
    client.submit("long", prompt="b", sampling={"max_tokens": 500, "ignore_eos": True})
    info = json.loads(client.redis.hget(client.keys.model, "alpha") or b"{}")
    assert info["context_tokens"] == 512
    assert info["has_chat_template"] is True
    client.wait_tokens("long", 5)
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_log("draining: 2 jobs")
    assert client.result("short").end.reason == "length"  # a warm drain
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert client.state("long") == "queued"
    assert len([i for e in client.entries("long") for i in e.ids]) >= 30
    assert not client.redis.exists(client.keys.heartbeat("alpha"))


def test_a_killed_worker_is_replaced(
    spawn: Callable[..., Process], client: Client, redis_url: str, keys: Keys, bare: str
) -> None:
    first = spawn({"step_s": 0.01}, model=bare)
    client.submit("j", prompt_ids=[98], sampling={"max_tokens": 100, "ignore_eos": True})
    client.wait_tokens("j", 5)
    second = Worker(redis_url, keys, Path(bare), StubOptions()).start()
    try:
        engine = _children(first.process.pid)
        first.process.kill()
        reply = client.result("j")
        assert len(reply.ids) == 100
        assert reply.end.epoch == 2
        assert client.redis.hget(client.keys.job("j"), "crashes") == b"1"
        assert engine
        assert not [pid for pid in engine if _runs(pid)]  # it died with its parent
    finally:
        assert second.end() == 0


def test_a_rolling_restart_under_load_loses_and_repeats_nothing(
    spawn: Callable[..., Process], redis_url: str, keys: Keys, bare: str
) -> None:
    """Each worker drains and is replaced while jobs come in; a grace too short for some of them."""
    options = {"step_s": 0.01, "max_running": 16}

    async def read(client: AsyncClient, index: int) -> None:
        sampling = {"max_tokens": 20 + 40 * (index % 4), "ignore_eos": True}
        job = await client.submit(prompt_ids=[index], **sampling)
        chunks = [chunk async for chunk in job.stream()]  # raises what a reader would see
        ids = [token for chunk in chunks for token in chunk.ids]
        assert ids == expected_ids([index], Sampling(max_tokens=sampling["max_tokens"]))
        status = await job.status()
        assert (status.state, status.crashes) == ("done", 0)
        epochs.append(status.epoch)

    async def serve() -> None:
        async with AsyncClient(redis_url, queue=keys.queue) as client, asyncio.TaskGroup() as tasks:
            for index in range(256):
                tasks.create_task(read(client, index))
                if index % 64 == 63:  # half of the next 64 come while one is away
                    await asyncio.to_thread(replace, index // 64 % 2)
                await asyncio.sleep(0.005)

    def start() -> Process:
        made = spawn(options, model=bare, grace=0.2)
        made.wait_log("serves")
        return made

    def replace(place: int) -> None:
        old = workers[place]
        old.process.send_signal(signal.SIGTERM)
        assert old.wait() == 0
        workers[place] = start()

    epochs: list[int] = []
    workers = [start(), start()]
    asyncio.run(serve())
    assert len(epochs) == 256
    assert max(epochs) > 1, "no job was handed back: the restart met none in the middle"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and ") Z " not in stat.read_text()


def test_a_name_that_is_taken(spawn: Callable[..., Process], bare: str) -> None:
    spawn(name="alpha", model=bare).wait_log("serves")
    other = spawn(name="alpha", model=bare)
    assert other.wait() == 75
    assert "alpha" in other.log[-1]


def test_no_redis(spawn: Callable[..., Process]) -> None:
    worker = spawn(redis_url="redis://user:secret@127.0.0.1:1/0")
    assert worker.wait() == 69
    assert "no Redis at redis://127.0.0.1:1/0" in worker.log[-1]
    assert "secret" not in "".join(worker.log)


@pytest.mark.parametrize(
    ("options", "flags", "status", "text"),
    [
        ({"fail": "a bug"}, {}, 70, "RuntimeError: a bug"),
        ({"refuse": "cannot be served"}, {}, 78, "cannot be served"),
        ({}, {"model": "/nowhere/model"}, 78, "/nowhere/model"),
        ({}, {"redis_url": "http://x"}, 78, "http://"),
        ({}, {"served_model_name": "a b"}, 78, "--served-model-name"),
        ({}, {"durability": "strict"}, 78, "appendfsync everysec"),
    ],
)
def test_a_worker_that_cannot_start_says_why(
    spawn: Callable[..., Process],
    bare: str,
    options: dict[str, Any],
    flags: dict[str, Any],
    status: int,
    text: str,
) -> None:
    worker = spawn(options, **{"model": bare, **flags})
    assert worker.wait() == status
    assert text in "".join(worker.log)
    if status == 78:
        assert "Traceback" not in "".join(worker.log)


def test_flags_win_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGESTREAM_MODEL", "from-env")
    monkeypatch.setenv("PAGESTREAM_MAX_NUM_SEQS", "7")
    monkeypatch.setenv("PAGESTREAM_MAX_MODEL_LEN", "100")
    settings = read_settings(model=None, max_num_seqs=9, dtype="float32", load_format="dummy")
    assert settings.engine_config() == EngineConfig(
        model="from-env", max_running=9, max_model_tokens=100, dtype="float32", load_format="dummy"
    )
    assert settings.queue == "from-env"


def test_a_folder_is_served_under_its_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    for folder in (str(model), f"{model}/", f"~/{model.name}"):
        assert read_settings(model=folder).queue == "model"
    assert read_settings(model="Qwen/Qwen3-0.6B").queue == "Qwen/Qwen3-0.6B"
    assert read_settings().queue == "demo"
    with pytest.raises(ModelNotFound, match=r"there is no directory '\./absent'"):
        _ = read_settings(model="./absent").queue


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"model": "m", "max_num_seqs": 0}, "--max-num-seqs"),
        ({"model": "m", "dtype": "int3"}, "--dtype"),
        ({"model": "m", "gpu_memory_utilization": 1.5}, "1.5"),
    ],
)
def test_bad_settings_name_the_flag(flags: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(**flags)
    assert text in str(caught.value)


def test_loading_is_logged_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bar = LoadingBar()
    for done in range(0, 101, 5):
        bar(done, 100)
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [f"weights: {percent} % of 0.00 GB" for percent in (25, 50, 75, 100)]
