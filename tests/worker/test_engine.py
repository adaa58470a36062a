"""The whole engine against transformers' `generate()`, token for token, for every family."""

import pytest
import torch
import triton
from tiny_engine import assert_greedy, engine_for, expected, greedy, ragged_prompts, run
from tiny_models import FAMILIES, make_checkpoint

from pagestream.worker.engine.graphs import StepGraphs
from pagestream.worker.messages import Add, Sampling

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_greedy_tokens_equal_transformers(family, device, tmp_path):
    """Ragged prompts together, beyond window and trained length: in chunks, then from the cache."""
    model = make_checkpoint(family, tmp_path)
    prompts = ragged_prompts([1, 7, 40, 55, 70, 16])
    wanted = [expected(model, prompt, 10) for prompt in prompts]
    engine = engine_for(tmp_path, device=device, dtype="float32", max_step_tokens=24)
    assert_greedy(engine, prompts, wanted, 10)
    assert engine.scheduler.num_chunked_prefills > 0
    hits_before = engine.scheduler.num_prefix_hit_tokens
    assert_greedy(engine, prompts, wanted, 10)
    assert engine.scheduler.num_prefix_hit_tokens > hits_before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_a_prefix_is_shared_within_the_step_that_computes_it(family, device, tmp_path):
    model = make_checkpoint(family, tmp_path)
    prefix, *ends = ragged_prompts([48, 1, 9, 20])
    prompts = [prefix + end for end in ends]
    wanted = [expected(model, prompt, 10) for prompt in prompts]
    engine = engine_for(tmp_path, device=device, dtype="float32", max_step_tokens=256)
    for n, prompt in enumerate(prompts):
        engine.add(greedy(f"before-{n}", prompt, 1))
    engine.step()
    assert engine.scheduler.num_prefix_hit_tokens == 2 * 48
    engine = engine_for(tmp_path, device=device, dtype="float32", max_step_tokens=256)
    assert_greedy(engine, prompts, wanted, 10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_preemption_changes_no_greedy_token(family, device, tmp_path):
    model = make_checkpoint(family, tmp_path)
    prompts = ragged_prompts([1, 7, 40])
    wanted = [expected(model, prompt, 40) for prompt in prompts]
    engine = engine_for(tmp_path, device=device, dtype="float32", num_blocks=9)
    assert_greedy(engine, prompts, wanted, 40)
    assert engine.scheduler.num_preemptions > 0


def assert_the_same_alone_and_among_64(path, sampling_of, every, **settings):
    """Every so-many-th of 64 requests draws alone what it drew among them; returns all tokens."""
    prompts = ragged_prompts([(7 * n) % 50 + 1 for n in range(64)])
    adds = [
        Add(request_id=f"r{n}", prompt_ids=prompt, sampling=sampling_of(n))
        for n, prompt in enumerate(prompts)
    ]
    settings |= {"max_running": 64, "num_blocks": 512}
    together = run(engine_for(path, **settings), adds)
    alone = engine_for(path, prefix_cache=False, **settings)
    for add in adds[::every]:
        assert run(alone, [add])[add.request_id] == together[add.request_id]
    return together


def test_a_seeded_request_draws_the_same_alone_and_among_64(tmp_path):
    make_checkpoint("llama", tmp_path)

    def sampling_of(n):
        return Sampling(temperature=0.9, top_p=0.95, top_k=40, seed=n, max_tokens=24)

    together = assert_the_same_alone_and_among_64(tmp_path, sampling_of, 8)
    assert len({tuple(tokens) for tokens in together.values()}) == 64


@pytest.mark.gpu
def test_on_a_gpu_deterministic_makes_a_request_know_no_other(tmp_path):
    make_checkpoint("qwen3", tmp_path)

    def sampling_of(n):
        return Sampling(temperature=0.9 * (n % 2), seed=n, max_tokens=24)

    assert_the_same_alone_and_among_64(
        tmp_path, sampling_of, 7, device="cuda", dtype="bfloat16", deterministic=True
    )


@pytest.mark.gpu
def test_a_step_full_of_prompts_replays_a_graph_of_its_size(tmp_path, monkeypatch):
    model = make_checkpoint("qwen3", tmp_path)
    prompts = ragged_prompts([100 + 4 * n for n in range(30)])
    wanted = [expected(model, prompt, 10) for prompt in prompts]
    engine = engine_for(
        tmp_path, device="cuda", dtype="float32", max_running=30, max_step_tokens=8192,
        num_blocks=600,
    )  # fmt: skip
    replay, replayed = StepGraphs.replay, []

    def replay_and_note(graphs, shape):
        replayed.append(shape.num_tokens)
        return replay(graphs, shape)

    monkeypatch.setattr(StepGraphs, "replay", replay_and_note)
    assert_greedy(engine, prompts, wanted, 10)
    assert sum(map(len, prompts)) == 4740
    assert replayed == [6144, *[30] * 9]


@pytest.mark.gpu
def test_nothing_is_compiled_once_the_engine_is_ready(tmp_path, monkeypatch):
    """A kernel compiled while requests run would hold all of them up for half a second."""
    make_checkpoint("qwen3", tmp_path)
    engine = engine_for(
        tmp_path, device="cuda", dtype="bfloat16", max_running=80, max_step_tokens=4096,
        num_blocks=900,
    )  # fmt: skip
    compiled: list[str] = []
    monkeypatch.setattr(
        triton.knobs.runtime,
        "jit_post_compile_hook",
        lambda *, repr, **_: compiled.append(repr),
    )
    prompts = ragged_prompts([1, 2, 3, 16, 33, 64, 65, 70, 5, 9, 11, 40] * 5)

    def adds(name, count):
        return [
            Add(
                request_id=f"{name}-{n}",
                prompt_ids=prompt,
                sampling=Sampling(temperature=n % 2, top_k=n % 3, max_tokens=9 + n),
            )
            for n, prompt in enumerate(prompts[:count])
        ]

    # Prefills beside one decode, some and many: few of them, then more than a graph holds.
    for decodes in (1, 7, 20):
        for prefills in (1, 5, 50):
            for add in adds(f"{decodes}-before-{prefills}", decodes):
                engine.add(add)
            engine.step()
            run(engine, adds(f"{prefills}-after-{decodes}", prefills))
    assert compiled == []


def test_deterministic_asks_nothing_of_a_cpu(tmp_path):
    make_checkpoint("llama", tmp_path)
    add = Add(request_id="r", prompt_ids=[5, 6], sampling=Sampling(max_tokens=5))
    plain, fixed = (engine_for(tmp_path, deterministic=on) for on in (False, True))
    assert run(fixed, [add]) == run(plain, [add])


def test_a_resumed_request_continues_as_if_it_had_never_stopped(tmp_path):
    make_checkpoint("qwen3", tmp_path)
    (prompt,) = ragged_prompts([30])
    sampling = Sampling(temperature=1.0, seed=7, max_tokens=20)
    engine = engine_for(tmp_path)
    whole = run(engine, [Add(request_id="whole", prompt_ids=prompt, sampling=sampling)])["whole"]
    rest = Add(request_id="rest", prompt_ids=prompt, sampling=sampling, output_ids=whole[:9])
    assert run(engine, [rest])["rest"] == whole[9:]


def test_stop_tokens_and_min_tokens(tmp_path):
    model = make_checkpoint("llama", tmp_path)
    (prompt,) = ragged_prompts([12])
    ids = expected(model, prompt, 12)
    end = ids[2]
    engine = engine_for(tmp_path)

    def draw(**sampling) -> list[int]:
        add = Add(request_id="r", prompt_ids=prompt, sampling=Sampling(max_tokens=12, **sampling))
        return run(engine, [add])["r"]

    assert draw(stop_token_ids=(end,)) == ids[: ids.index(end) + 1]
    held = draw(stop_token_ids=(end,), min_tokens=8)
    assert end not in held[:7]
    assert len(held) >= 8


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "reason"),
    [([], 4, "empty"), ([5] * 250, 10, "260 tokens"), ([128], 4, "vocabulary")],
)
def test_what_can_never_run_ends_with_a_sentence(prompt, max_tokens, reason, tmp_path):
    make_checkpoint("llama", tmp_path)
    engine = engine_for(tmp_path)
    engine.add(greedy("bad", prompt, max_tokens))
    engine.add(greedy("good", [5, 6, 7], 4))
    outputs = [output for _ in range(6) for output in engine.step().outputs]
    bad = [output for output in outputs if output.request_id == "bad"]
    assert [(output.finish, output.token_ids) for output in bad] == [("error", [])]
    assert reason in bad[0].message
    assert sum(len(o.token_ids) for o in outputs if o.request_id == "good") == 4
