"""The traffic of `vllm bench serve`: its requests, and answers that its reader can read.

The requests are what the backends `openai` and `openai-chat` send, field by field. The reader knows
less of server-sent events than a browser: what arrives at once is stripped and added to what there
is, blank lines part messages, those with a colon first are dropped, and each of the others is
`data: ` and JSON. So an `id:` line, or a comment that arrives alone, is the end of it.

Source: vLLM's main branch of 2026, `vllm/benchmarks/serve.py` and
`vllm/benchmarks/lib/endpoint_request_func.py`; not compared with 0.25.1's.
"""

import json

import httpx2
import pytest
from stub_worker import answer

TOKENS = 6
HEADERS = {"x-request-id": "bench-17-0"}
# `random` and `timed_trace` ignore the end token; a temperature is sent only if it was given.
MORE = [{"ignore_eos": True}, {"ignore_eos": True, "temperature": 0.0, "top_p": 0.9, "top_k": 20}]


def completion(model, prompt):
    return "/v1/completions", {
        "model": model,
        "prompt": prompt,
        "repetition_penalty": 1.0,
        "max_tokens": TOKENS,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def chat(model, prompt):
    return "/v1/chat/completions", {
        "model": model,
        "messages": [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
        "max_completion_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def heard(parts) -> list[dict]:
    """What the reader makes of a stream, part by part as it arrives."""
    waiting, events = "", []
    for part in filter(None, (part.strip() for part in parts)):
        waiting += part
        *messages, waiting = waiting.split("\n\n")
        if waiting.startswith("data: ") and is_whole(waiting.removeprefix("data: ")):
            messages, waiting = [*messages, waiting], ""
        for message in (one.strip() for one in messages):
            if message and not message.startswith(":"):
                data = message.removeprefix("data: ")
                events.append(None if data == "[DONE]" else json.loads(data))
    assert waiting == ""
    return events


def is_whole(data: str) -> bool:
    try:
        return data == "[DONE]" or bool(json.loads(data))
    except ValueError:
        return False


def text_of(event) -> str:
    (choice,) = event["choices"]
    return choice["text"] if "text" in choice else choice["delta"].get("content") or ""


@pytest.mark.parametrize(
    ("asks", "prompt"), [(completion, "hello"), (completion, [1, 2, 3]), (chat, "hello")]
)
@pytest.mark.parametrize("more", MORE)
def test_its_requests_are_answered_so_that_it_understands(
    http, worker, queue_name, asks, prompt, more
):
    path, body = asks(queue_name, prompt)
    body |= {**more, "seed": 7}  # vLLM sends none; a test wants to know the answer
    with http.stream("POST", path, json=body, headers=HEADERS) as told:
        assert told.status_code == 200, told.read()
        *events, usage, done = heard(told.iter_text())
    assert done is None
    assert "".join(map(text_of, events)) == answer(7, TOKENS)[1]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == TOKENS


@pytest.mark.parametrize("asks", [completion, chat])
def test_it_waits_for_its_first_token_and_takes_nothing_else_for_one(
    http, worker, queue_name, asks
):
    """Headers come before the first token, and what keeps the connection is no event."""
    path, body = asks(queue_name, "hold")
    with http.stream("POST", path, json=body, headers=HEADERS) as told:
        parts = told.iter_text()
        assert heard([next(parts)]) == []
        worker.released.set()
        first, *_ = heard(parts)
    assert first["choices"]


def test_it_asks_which_model_there_is(http, worker, queue_name):
    """Without `--model` it takes the first one, and the name of its tokenizer from `root`."""
    models = httpx2.get(f"{http.base_url}/v1/models").json()["data"]
    (ours,) = (model for model in models if model["id"] == queue_name)
    assert ours["root"] == "stub"
