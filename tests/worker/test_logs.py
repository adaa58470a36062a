"""What a worker logs: in which form, and that prompts stay out of it."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_engine import StubOptions
from worker_harness import Client, Worker

from pagestream.producer.logs import JsonFormatter, PrettyFormatter
from pagestream.worker.settings import read_settings

SECRET = "Xyzzy-plugh"


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "a.b", "levelno": 30, "levelname": "WARNING", "msg": message, "args": args}
    )
    vars(made).update(extra)
    return made


def test_json_is_one_object_a_line_with_the_records_own_fields() -> None:
    line = JsonFormatter().format(record("two\nlines of %s", "é", job_id="j-1", path=Path("x")))
    assert "\n" not in line
    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert fields == {
        "level": "warning",
        "logger": "a.b",
        "message": "two\nlines of é",
        "job_id": "j-1",
        "path": "x",
    }
    try:
        raise ValueError("why")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
        assert "ValueError: why" in json.loads(JsonFormatter().format(made))["exception"]


def test_people_read_a_line_with_the_fields_behind_it() -> None:
    line = PrettyFormatter().format(record("job ended", job_id="j-1", reason="stop"))
    assert line.endswith("W a.b: job ended  [job_id=j-1 reason=stop]")
    assert PrettyFormatter().format(record("plain")).endswith("W a.b: plain")


def logged(flags: str, environment: dict[str, str]) -> str:
    """What a process of its own, and one that it starts, log as these flags say."""
    code = f"""
import logging, subprocess, sys
from pagestream.producer.logs import log_to_stderr
from pagestream.worker.settings import read_settings
log_to_stderr(read_settings({flags}).log_format)
logging.getLogger("parent").info("from the parent")
child = "import logging; from pagestream.producer.logs import log_to_stderr; log_to_stderr(); "
subprocess.run([sys.executable, "-c", child + "logging.getLogger('child').info('from the child')"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stderr


@pytest.mark.parametrize(
    ("flags", "environment"),
    [('log_format="json"', {}), ("", {"PAGESTREAM_LOG_FORMAT": "json"})],
)
def test_a_flag_or_a_variable_sets_the_form_for_the_engine_too(
    flags: str, environment: dict[str, str]
) -> None:
    lines = [json.loads(line) for line in logged(flags, environment).splitlines()]
    assert [line["message"] for line in lines] == ["from the parent", "from the child"]


def test_an_unknown_form_is_refused_by_name() -> None:
    with pytest.raises(Exception, match=r"--log-format: .*'pretty' or 'json'.*got 'xml'"):
        read_settings(log_format="xml")


def run_jobs(client: Client, worker: Worker) -> None:
    """Jobs of every kind that could carry the secret into a log."""
    fields = {"max_tokens": 3, "ignore_eos": True}
    client.submit("text", prompt=f"say {SECRET}", sampling={**fields, "stop": [SECRET]})
    client.submit("chat", messages=[{"role": "user", "content": SECRET}], sampling=fields)
    client.submit("role", messages=[{"role": SECRET, "content": {"odd": SECRET}}], sampling=fields)
    client.submit("long", prompt=SECRET * 500, sampling=fields)
    client.submit("wrong", prompt=SECRET, sampling={"temperature": SECRET})
    client.submit_bytes("broken", f'{{"v": 1, "prompt": "{SECRET}'.encode())
    for job_id in ("text", "chat", "role", "long", "wrong", "broken"):
        client.result(job_id)
    assert worker.end() == 0


def test_prompts_are_never_logged_unless_that_is_asked_for(
    start: Callable[..., Worker],
    client: Client,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.DEBUG):
        run_jobs(client, start(StubOptions(), flags={"log_jobs": True}))
    lines = [JsonFormatter().format(one) for one in caplog.records]
    assert SECRET not in "\n".join(lines)
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    named = [json.loads(line) for line in lines if '"job_id"' in line]
    ended = {line["job_id"]: line["reason"] for line in named if line["message"] == "job ended"}
    assert ended["text"] == ended["chat"] == "length"
    assert ended["broken"] == ended["wrong"] == ended["long"] == "error"
    assert {line["job_id"] for line in named if line["message"] == "job claimed"} == set(ended)


def test_a_prompt_is_logged_when_it_is_asked_for(
    start: Callable[..., Worker], client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run_jobs(client, start(StubOptions(), flags={"log_prompts": True}))
    prompts = {
        one.job_id: one.prompt for one in caplog.records if one.getMessage() == "job claimed"
    }
    assert prompts["text"] == f"say {SECRET}"
    assert SECRET in prompts["chat"]
    assert prompts["broken"] == "(cannot be read)"


def test_an_error_of_the_tokenizer_is_told_without_its_words(
    start: Callable[..., Worker],
    client: Client,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pagestream.worker.queue.tokenizer import Tokenizer

    def fail(self: Tokenizer, text: str) -> list[int]:
        raise RuntimeError(f"cannot tokenize {text}")

    monkeypatch.setattr(Tokenizer, "encode_prompt", fail)
    worker = start(StubOptions())
    client.submit("bad", prompt=SECRET)
    client.result("bad")
    worker.end()
    (line,) = [one for one in caplog.records if "could not be prepared" in one.getMessage()]
    assert "RuntimeError" in line.getMessage()
    assert SECRET not in JsonFormatter().format(line)
    assert line.job_id == "bad"


def test_without_the_flags_jobs_are_not_logged(
    start: Callable[..., Worker], client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run_jobs(client, start(StubOptions()))
    assert not [one for one in caplog.records if one.getMessage() in ("job claimed", "job ended")]
