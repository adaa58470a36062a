"""OpenAI's own client against a real gateway: what it gets is what the worker wrote."""

import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from stub_worker import DEFAULT_TOKENS, answer

CHAT = [{"role": "user", "content": "hello"}]


def test_models(client, queue_name):
    listed = {model.id for model in client.models.list()}
    assert queue_name in listed
    assert client.models.retrieve(queue_name).id == queue_name
    with pytest.raises(openai.NotFoundError, match="no live worker serves 'nobody'"):
        client.models.retrieve("nobody")


def test_a_chat(client, queue_name):
    told = client.chat.completions.create(
        model=queue_name, messages=CHAT, max_completion_tokens=5, seed=7
    )
    assert told.choices[0].message.content == answer(7, 5)[1]
    assert told.choices[0].message.role == "assistant"
    assert told.choices[0].finish_reason == "length"
    assert told.usage.completion_tokens == 5
    assert told.usage.total_tokens == told.usage.prompt_tokens + 5
    assert told.model == queue_name
    assert told.id.startswith("chatcmpl-")


def test_a_chat_in_events(client, queue_name):
    stream = client.chat.completions.create(
        model=queue_name,
        messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        max_tokens=6,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == answer(3, 6)[1]
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 6
    assert len({one.id for one in chunks}) == 1


def test_completions_of_several_prompts(client, queue_name):
    told = client.completions.create(
        model=queue_name,
        prompt=["one", "two"],
        max_tokens=4,
        seed=5,
        extra_body={"return_token_ids": True},
    )
    assert [choice.index for choice in told.choices] == [0, 1]
    assert [choice.text for choice in told.choices] == [answer(5, 4)[1]] * 2
    assert [choice.token_ids for choice in told.choices] == [list(answer(5, 4)[0])] * 2
    assert told.usage.completion_tokens == 8


@pytest.mark.parametrize("prompt", ["text", [1, 2, 3], ["text"], [[1, 2, 3]]])
def test_a_completion_in_events(client, queue_name, prompt):
    stream = client.completions.create(
        model=queue_name, prompt=prompt, max_tokens=4, seed=2**63 - 1, stream=True
    )
    chunks = list(stream)
    assert "".join(one.choices[0].text for one in chunks) == answer(2**63 - 1, 4)[1]
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_the_asynchronous_client(gateways, worker, queue_name):
    async with openai.AsyncOpenAI(
        base_url=f"{gateways[1].url}/v1", api_key="none", max_retries=0, timeout=20
    ) as client:
        stream = await client.chat.completions.create(
            model=queue_name, messages=CHAT, max_tokens=3, seed=1, stream=True
        )
        text = "".join([one.choices[0].delta.content or "" async for one in stream])
    assert text == answer(1, 3)[1]


@pytest.mark.parametrize(
    ("given", "message", "param"),
    [
        ({"n": 2}, "n=2 is not supported yet", "n"),
        ({"logprobs": True}, "logprobs=True is not supported yet", "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools=", "tools"),
        ({"temperature": 3}, "temperature", "temperature"),
        ({"extra_body": {"top_k": -1}}, "top_k=-1 is out of range", "top_k"),
        ({"extra_body": {"min_tokens": 9}, "max_tokens": 8}, "min_tokens=9", "min_tokens"),
        ({"extra_body": {"best_of": 2}}, "best_of", "best_of"),
        ({"extra_body": {"presence_penalty": "much"}}, "wrong type", "presence_penalty"),
        ({"stop": [""]}, "a stop string has 0 characters", "stop"),
        ({"frequency_penalty": 0.5}, "frequency_penalty=0.5 is not supported", "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format"),
        ({"extra_body": {"colour": "red"}}, "colour", "colour"),
        ({"extra_headers": {"X-Priority": "urgent"}}, "X-Priority: 'urgent'", "X-Priority"),
        ({"extra_headers": {"X-Deadline-Ms": "0"}}, "x-deadline-ms", "x-deadline-ms"),
        ({"extra_headers": {"X-On-Disconnect": "run"}}, "X-On-Disconnect: 'ru", "X-On-Disconnect"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, queue_name, given, message, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=queue_name, messages=CHAT, **given)
    assert message in refused.value.message
    assert refused.value.type == "invalid_request_error"
    assert refused.value.param == param


@pytest.mark.parametrize("prompt", ["", [], [-1], ["a"] * 129, [1_000]])
def test_a_prompt_that_cannot_be_is_called_the_prompt(client, queue_name, prompt):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=queue_name, prompt=prompt)
    assert refused.value.param == "prompt"


def test_what_changes_nothing_is_taken(client, queue_name):
    told = client.chat.completions.create(
        model=queue_name,
        messages=CHAT,
        max_tokens=1,
        n=1,
        logprobs=False,
        presence_penalty=0,
        frequency_penalty=0,
        logit_bias={},
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        user="somebody",
        store=False,
        metadata={},
        stop=None,
    )
    assert told.choices[0].finish_reason == "length"


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-9", messages=CHAT)
    assert refused.value.code == "unknown_model"
    assert refused.value.param == "model"


def test_a_job_that_fails_has_a_status(client, queue_name):
    with pytest.raises(openai.InternalServerError, match="asked to fail") as failed:
        client.completions.create(model=queue_name, prompt="fail")
    assert failed.value.code == "stub_failure"


def test_a_stream_whose_job_fails_says_so(client, queue_name):
    stream = client.completions.create(model=queue_name, prompt="fail", stream=True)
    with pytest.raises(openai.APIError, match="asked to fail") as failed:
        list(stream)
    assert failed.value.code == "stub_failure"


def test_an_api_key_is_a_tenant(keyed_gateway, worker, queue_name):
    def client(key):
        url = f"{keyed_gateway.url}/v1"
        return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=20)

    with client("sk-anna") as anna, client("sk-ben") as ben, client("sk-eve") as eve:
        with pytest.raises(openai.AuthenticationError, match="no tenant has the API key"):
            eve.responses.create(model=queue_name, input="x")
        told = anna.responses.create(model=queue_name, input="x", max_output_tokens=2)
        assert told.id.startswith("anna.resp_")
        assert anna.responses.retrieve(told.id).output_text == told.output_text
        for ask in (ben.responses.retrieve, ben.responses.cancel, ben.responses.delete):
            with pytest.raises(openai.NotFoundError):
                ask(told.id)


def test_a_key_may_have_a_bound_of_its_own(keyed_gateway, worker, queue_name, redis_client, keys):
    def ask(key):
        url = f"{keyed_gateway.url}/v1"
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=20) as client:
            return client.responses.create(model=queue_name, input="hold", background=True).status

    assert ask("sk-anna") == "queued"
    with pytest.raises(openai.RateLimitError, match="1 unfinished"):
        ask("sk-anna-batches")
    assert ask("sk-anna") == ask("sk-ben") == "queued"
    redis_client.hset(keys.limits, "anna:queue_limit", 3)  # what an operator says wins
    assert ask("sk-anna-batches") == "queued"


def test_a_full_queue_says_when_to_come_again(client, queue_name, redis_client, keys):
    redis_client.hset(keys.limits, "default:queue_limit", 1)
    ask = {"model": queue_name, "input": "hold the only place", "background": True}
    assert client.responses.create(**ask).status == "queued"
    with pytest.raises(openai.RateLimitError) as refused:
        client.responses.create(**ask)
    assert refused.value.code == "queue_full"
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_the_example_of_the_page_runs(gateways, worker, queue_name):
    page = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    moved = example.replace("http://localhost:8000", gateways[0].url)
    moved = moved.replace('model="demo"', f'model="{queue_name}"')
    assert moved.count(gateways[0].url) == moved.count(queue_name) == 1
    done = subprocess.run([sys.executable, "-c", moved], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("·") == DEFAULT_TOKENS
