"""Memory that runs out within a step: tokens stay the same, and whoever cannot go on is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stub_engine import StubOptions, expected_ids
from tiny_engine import assert_greedy, engine_for, expected, greedy, ragged_prompts, run
from tiny_models import make_checkpoint
from worker_harness import Client, Worker

from pagestream.producer.keys import Keys
from pagestream.worker.engine.batch import Batch
from pagestream.worker.engine.engine import Engine
from pagestream.worker.engine.runner import Runner
from pagestream.worker.engine.sampler import Sampler
from pagestream.worker.engine.step_limit import LAUNCHES_TO_RAISE
from pagestream.worker.errors import OutOfMemory
from pagestream.worker.messages import Add, Sampling
from pagestream.worker.models.decoder import Model
from pagestream.worker.service import ENGINE_FAILED

HUNGRY = 77
LONG = {"max_tokens": 150, "ignore_eos": True}


class Memory:
    """Stands in for a GPU's: a forward pass of more tokens than there is room for fails midway."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room_tokens: int) -> None:
        self.room_tokens = room_tokens
        self.passes: list[int] = []
        """Tokens of each pass that had room."""
        forward = Model.forward

        def limited(model, inputs, cache, only=None):
            tokens = len(inputs.input_ids)
            if tokens > self.room_tokens:
                forward(model, inputs, cache, [0])
                raise torch.OutOfMemoryError(f"planted: {tokens} tokens")
            self.passes.append(tokens)
            return forward(model, inputs, cache, only)

        monkeypatch.setattr(Model, "forward", limited)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some_adds(name: str = "r") -> list[Add]:
    """Greedy and drawn, in one chunk and in several, with a prefix that is shared in a step."""
    prefix, *ends = ragged_prompts([48, 1, 9, 20])
    prompts = [*(prefix + end for end in ends), *ragged_prompts([1, 30, 70], seed=1)]
    return [
        Add(
            request_id=f"{name}{n}",
            prompt_ids=prompt,
            sampling=Sampling(temperature=0.9 * (n % 2), seed=n, max_tokens=12 + n),
        )
        for n, prompt in enumerate(prompts)
    ]


def times_out_of_memory(engine: Engine) -> int:
    return engine.step().load.out_of_memory


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("room_tokens", [1, 7, 33])
def test_a_step_in_parts_gives_the_same_tokens(tmp_path, monkeypatch, room_tokens, in_flight):
    make_checkpoint("qwen3", tmp_path)
    monkeypatch.setattr(Runner, "max_in_flight", in_flight)
    plain = engine_for(tmp_path)
    want = run(plain, some_adds())
    hits = plain.scheduler.num_prefix_hit_tokens
    memory = Memory(monkeypatch, room_tokens)
    engine = engine_for(tmp_path)
    assert run(engine, some_adds()) == want
    assert engine.scheduler.num_prefix_hit_tokens == hits > 0
    assert max(memory.passes) <= room_tokens
    assert times_out_of_memory(engine) > 0
    assert times_out_of_memory(plain) == 0


def test_whole_steps_run_again_once_there_is_memory(tmp_path, monkeypatch):
    make_checkpoint("qwen3", tmp_path)
    memory = Memory(monkeypatch, 1)
    engine = engine_for(tmp_path, prefix_cache=False)
    run(engine, some_adds())
    failed = times_out_of_memory(engine)
    memory.room_tokens = 64
    for n in range(7):  # from 1 to 64 tokens
        memory.passes.clear()
        while len(memory.passes) < LAUNCHES_TO_RAISE:
            run(engine, some_adds(f"{n}-{len(memory.passes)}-"))
    assert max(memory.passes) == 64
    assert times_out_of_memory(engine) == failed


@pytest.mark.parametrize(
    ("owner", "method", "call"),
    [
        *((Batch, "_to_device", call) for call in range(2)),
        *((Batch, "inputs", call) for call in range(4)),
        *((Sampler, "admit", call) for call in range(1)),
        *((Sampler, "draw", call) for call in range(4)),
    ],
)
def test_wherever_it_runs_out_nothing_is_lost(tmp_path, monkeypatch, owner, method, call):
    """Rows are written again, and so are blocks: four tables grow in the last of these steps."""
    make_checkpoint("qwen3", tmp_path)
    sampling = Sampling(max_tokens=12)
    adds = [
        Add(request_id=f"r{n}", prompt_ids=prompt, sampling=sampling)
        for n, prompt in enumerate(ragged_prompts([30, 30, 30, 30, 70]))
    ]
    want = run(engine_for(tmp_path, max_step_tokens=256), adds)
    engine = engine_for(tmp_path, max_step_tokens=256)
    original, calls = getattr(owner, method), []

    def failing(*args):
        calls.append(len(calls))
        if calls[-1] == call:
            raise torch.OutOfMemoryError("planted")
        return original(*args)

    monkeypatch.setattr(owner, method, failing)
    assert run(engine, adds) == want
    assert times_out_of_memory(engine) == 1


def test_without_room_for_a_token_the_request_is_named(tmp_path, monkeypatch):
    make_checkpoint("qwen3", tmp_path)
    Memory(monkeypatch, 0)
    engine = engine_for(tmp_path)
    engine.add(some_adds("big")[0])
    with pytest.raises(OutOfMemory, match="--gpu-memory-utilization") as raised:
        engine.step()
    assert (raised.value.request_id, raised.value.code) == ("big0", "out_of_memory")
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)


# ---- whole workers


def ids_for(prompt_ids: list[int], tokens: int = LONG["max_tokens"]) -> list[int]:
    return expected_ids(prompt_ids, Sampling(max_tokens=tokens))


def crashes(client: Client, job_id: str) -> int:
    return int(client.redis.hget(client.keys.job(job_id), "crashes") or 0)


def test_a_request_alone_without_memory_ends_with_an_error(
    client: Client, start: Callable[..., Worker]
) -> None:
    worker = start(StubOptions(hungry_token=HUNGRY))
    client.submit("hungry", prompt_ids=[HUNGRY, 1], sampling=LONG)
    reply = client.result("hungry")
    assert reply.ids == ids_for([HUNGRY, 1])[:2]
    assert (reply.end.reason, reply.end.error) == ("error", "out_of_memory")
    assert "--gpu-memory-utilization" in reply.end.message
    client.submit("next", prompt_ids=[5], sampling=LONG)
    assert client.result("next").ids == ids_for([5])
    assert worker.end() == 0
    assert crashes(client, "hungry") == 0


def test_its_neighbours_count_no_crash(
    client: Client, keys: Keys, start: Callable[..., Worker]
) -> None:
    """It counts them alone, becomes a suspect, and ends once it has been alone."""
    start(StubOptions(hungry_token=HUNGRY, step_s=0.01))
    for n in range(3):
        client.submit(f"n{n}", prompt_ids=[n + 1], sampling=LONG)
    client.wait_tokens("n2", 1)
    client.submit("hungry", prompt_ids=[HUNGRY, 1], sampling=LONG)
    for n in range(3):
        assert client.result(f"n{n}").ids == ids_for([n + 1])
        assert crashes(client, f"n{n}") == 0
    reply = client.result("hungry")
    assert reply.ids == ids_for([HUNGRY, 1])[:2]
    assert reply.end.error == "out_of_memory"
    assert crashes(client, "hungry") == 2
    assert client.redis.xlen(keys.dead) == 0


def test_an_engine_that_cannot_keep_its_word_hands_everything_back(
    client: Client, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """The next one's context is shorter than what jobs were accepted for: nobody is refused."""
    blocks = tmp_path / "blocks"
    worker = start(StubOptions(hungry_token=HUNGRY, step_s=0.01, blocks_file=blocks))
    client.submit("neighbour", prompt_ids=[1], sampling=LONG)
    client.wait_tokens("neighbour", 1)
    blocks.write_text("9")  # 128 tokens: the neighbour wants 151
    client.submit("hungry", prompt_ids=[HUNGRY, 1], sampling=LONG)
    assert worker.wait() == ENGINE_FAILED
    assert client.state("neighbour") == client.state("hungry") == "queued"
    assert crashes(client, "neighbour") == 0
    start()
    assert client.result("neighbour").ids == ids_for([1])
    assert client.result("hungry").ids == ids_for([HUNGRY, 1])


# ---- on a GPU


def fill_gpu() -> list[torch.Tensor]:
    """Take all of the GPU's memory but a few MiB: there is none for a tensor of 2 MiB."""
    held: list[torch.Tensor] = []
    size_bytes = 2**34
    while size_bytes >= 2**21:
        try:
            held.append(torch.empty(size_bytes, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size_bytes //= 2
    return held


@pytest.mark.gpu
def test_running_requests_end_right_on_a_gpu_that_is_full(tmp_path):
    """The second step, of 5,808 tokens, has more prompts than its graph holds: it needs memory."""
    model = make_checkpoint("qwen3", tmp_path)
    prompts = ragged_prompts([100] * 70)
    wanted = [expected(model, prompt, 10) for prompt in prompts]
    prompts, wanted = 2 * prompts, 2 * wanted
    engine = engine_for(
        tmp_path, device="cuda", dtype="float32", max_running=140, max_step_tokens=8192,
        num_blocks=1200, prefix_cache=False,
    )  # fmt: skip
    for n, prompt in enumerate(prompts):
        engine.add(greedy(f"r{n}", prompt, 10))
    assert engine.step().outputs == []  # launched, and not read yet
    torch.cuda.empty_cache()
    full = fill_gpu()
    tokens = run(engine, [])
    failed = times_out_of_memory(engine)
    full.clear()
    torch.cuda.empty_cache()
    assert failed > 0
    for n, want in enumerate(wanted):
        assert tokens[f"r{n}"][: len(want)] == want, f"request {n} differs"
        assert len(tokens[f"r{n}"]) == 10
    assert_greedy(engine, prompts, wanted, 10)
    assert times_out_of_memory(engine) == failed
