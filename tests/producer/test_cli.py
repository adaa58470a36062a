"""The command line as a user meets it: a process, a terminal's text, an exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import msgspec
import pytest
from stub_worker import StubWorker, answer

from pagestream.producer.cli import ROOMS
from pagestream.producer.help_groups import COMMANDS

WITHOUT = """
import sys
absent = set(sys.argv.pop(1).split(","))
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}")
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.split(".")[0] in absent else found(name, package)
)
sys.meta_path.insert(0, Absent())
from pagestream.producer.cli import main
main()
"""


def environment(**extra):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAGESTREAM")}
    return {**kept, "COLUMNS": "100", "TERM": "dumb", **extra}


def pagestream(*arguments, text="", **env):
    command = [sys.executable, "-m", "pagestream.producer.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, input=text, env=environment(**env), timeout=60
    )


def without(modules, *arguments):
    command = [sys.executable, "-c", WITHOUT, modules, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)


def test_generate_prints_the_tokens(redis_url, queue_name, worker):
    place = ("--redis-url", redis_url, "--queue", queue_name)
    done = pagestream("generate", "hi", *place, "--seed", "4", "--max-tokens", "12")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == answer(4, 12)[1] + "\n"
    piped = pagestream(
        *("generate", "-", "--seed", "4", "--temperature", "0", "--stop", "a", "--stop", "b"),
        text="hi",
        PAGESTREAM_REDIS_URL=redis_url,
        PAGESTREAM_QUEUE=queue_name,
    )
    assert piped.stdout == answer(4)[1] + "\n"


def test_generate_says_whose_job_it_is_and_how_long_it_may_take(
    redis_url, queue_name, wire, worker
):
    place = ("--redis-url", redis_url, "--queue", queue_name, "--id", "one")
    whose = ("--lane", "high", "--tenant", "acme")
    times = ("--deadline-ms", "90000", "--reader-timeout-ms", "5000")
    assert pagestream("generate", "hi", *place, *whose, *times).returncode == 0
    record = wire.record("one")
    assert (record["lane"], record["tenant"], record["state"]) == ("high", "acme", "done")
    assert int(record["deadline_ms"]) == int(record["queued_ms"]) + 90_000
    assert record["reader_timeout_ms"] == "5000"
    wire.redis.hset(wire.keys.limits, "acme:jobs_per_s", 0.01)
    for number in range(2):
        last = pagestream("generate", "hi", *place[:-1], f"more-{number}", *whose)
    assert last.returncode == 75
    assert last.stderr.startswith("error: tenant acme has used up its jobs a second")


def test_generate_gives_json_and_attaches_by_id(redis_url, queue_name, worker):
    place = ("--redis-url", redis_url, "--queue", queue_name, "--json", "--id", "one")
    done, again = (pagestream("generate", "hi", *place) for _ in range(2))
    assert done.stdout == again.stdout
    result = json.loads(done.stdout)
    assert result["id"] == "one"
    assert result["finish_reason"] == "length"
    assert result["usage"]["completion_tokens"] == len(result["ids"]) == 8
    conflict = pagestream("generate", "bye", *place)
    assert conflict.returncode == 1
    assert conflict.stderr.startswith("error: job one exists")


def test_generate_prints_tokens_as_they_come(redis_url, queue_name, worker):
    worker.steps_allowed = threading.Semaphore(3)
    begin = answer(1, 3)[1]
    command = [sys.executable, "-m", "pagestream.producer.cli", "generate", "hi", "--seed", "1"]
    with subprocess.Popen(
        [*command, "--redis-url", redis_url, "--queue", queue_name],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout.read(len(begin)) == begin  # the worker waits for us before the rest
        worker.steps_allowed.release(100)
        assert begin + process.communicate(timeout=20)[0] == answer(1)[1] + "\n"
    assert process.returncode == 0


def test_an_interrupt_cancels_the_job(redis_url, queue_name, worker):
    command = [sys.executable, "-m", "pagestream.producer.cli", "generate", "hold", "--id", "held"]
    with subprocess.Popen(
        [*command, "--redis-url", redis_url, "--queue", queue_name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert worker.claimed.wait(20)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    shown = pagestream(
        "generate", "hold", "--id", "held", "--redis-url", redis_url, "--queue", queue_name
    )
    assert (shown.returncode, "cancelled" in shown.stderr) == (1, True)


def test_chat_remembers_what_was_said(redis_url, redis_client, queue_name, worker, keys):
    talk = "hello\n\nagain\n/clear\nnew\n/exit\nnever\n"
    done = pagestream(
        *("chat", "--redis-url", redis_url, "--queue", queue_name, "--seed", "2"),
        *("--system", "Be brief."),
        text=talk,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{answer(2)[1]}\n" * 3
    said = [
        [one["content"] for one in msgspec.msgpack.decode(payload)["messages"]]
        for key in redis_client.scan_iter(f"{keys.prefix}job:*", count=1000)
        if (payload := redis_client.hget(key, "payload"))
    ]
    assert sorted(said) == [
        ["Be brief.", "hello"],
        ["Be brief.", "hello", answer(2)[1], "again"],
        ["Be brief.", "new"],
    ]


def test_the_only_queue_is_found(own_server):
    server = own_server()
    lonely = pagestream("generate", "hi", "--redis-url", server.url)
    assert (lonely.returncode, "no worker" in lonely.stderr) == (69, True)
    with StubWorker(server.url, "first"):
        done = pagestream("generate", "hi", "--seed", "1", "--redis-url", server.url)
        assert done.stdout == answer(1)[1] + "\n"
        with StubWorker(server.url, "second"):
            several = pagestream("generate", "hi", "--redis-url", server.url)
            assert several.returncode == 2
            assert "first, second" in several.stderr
        # A queue whose worker has gone is not a choice.
        again = pagestream("generate", "hi", "--seed", "1", "--redis-url", server.url)
        assert again.stdout == answer(1)[1] + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["generate", "hi", "--queue", "q", "--redis-url", "redis://x:pw@127.0.0.1:1"],
            69,
            "answer",
        ),
        (["generate", "", "--queue", "q", "--redis-url", "unix:///none"], 2, "empty"),
        (
            ["generate", "hi", "--queue", "q", "--top-p", "7", "--redis-url", "unix:///none"],
            2,
            "top_p",
        ),
        (["generate", "hi", "--queue", "q", "--redis-url", "http://x"], 2, "http"),
        (["generate"], 2, "prompt"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_a_mistake_is_a_sentence_and_an_exit_code(arguments, code, said):
    done = pagestream(*arguments)
    assert done.returncode == code
    assert said in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert "pw@" not in done.stderr


def test_a_failed_job_keeps_what_was_printed(redis_url, queue_name, worker):
    done = pagestream(
        "generate", "fail", "--seed", "4", "--redis-url", redis_url, "--queue", queue_name
    )
    assert done.returncode == 1
    assert done.stdout.startswith(answer(4, 2)[1])
    assert "asked to fail" in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("generate", "chat", "worker", "up")),
        (("generate",), ("--model", "--queue", "--redis-url", "--json", "--temperature")),
        (("chat",), ("--system", "--redis-url", "--top-p")),
        (("worker",), ("--model", "--max-num-seqs", "--redis-url")),
        (("up",), ("--model", "--data")),
    ],
)
def test_help_says_what_there_is(command, words):
    done = pagestream(*command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert [word for word in words if word not in done.stdout] == []


def groups_of(help_text: str) -> dict[str, str]:
    """Heading -> what stands below it."""
    parts = re.split(r"^(\S[^:\n]*):\n", help_text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_overview_is_in_groups():
    done = pagestream("--help")
    groups = groups_of(done.stdout)
    assert list(groups) == ["Options", *COMMANDS]
    for heading, names in COMMANDS.items():
        assert re.findall(r"^  (\w+)", groups[heading], re.MULTILINE) == list(names)
    known = [name for room in ROOMS for name in room.commands]
    assert sorted(known) == sorted(name for names in COMMANDS.values() for name in names)


@pytest.mark.parametrize(
    ("command", "flag", "group", "shown"),
    [
        ("worker", "grace", "Faults and stopping", "--grace SECONDS "),
        ("worker", "max-num-seqs", "Batch and memory", "--max-num-seqs REQUESTS "),
        ("worker", "max-model-len", "Model", "[default: the model's]"),
        ("up", "data", "Queue and Redis", "--data DIR "),
        ("up", "port", "Gateway", "--port PORT "),
        ("up", "num-blocks", "Batch and memory", "[default: what memory allows]"),
        ("gateway", "port", "HTTP", "--port PORT "),
        ("gateway", "redis-url", "Redis and logs", "[default: the server of `pagestream up`, else"),
    ],
)
def test_flags_are_in_groups_with_units_and_defaults(command, flag, group, shown):
    groups = groups_of(pagestream(command, "--help").stdout)
    assert [heading for heading, text in groups.items() if f"  --{flag} " in text] == [group]
    assert shown in " ".join(groups[group].split()) + " "
    assert groups["Options"].split()[0] == "--help", "nothing is left without a group"


def test_without_the_cli_extra_there_is_a_sentence():
    done = without("typer", "generate", "hi")
    assert done.returncode == 78
    assert done.stderr == (
        "`pagestream` needs typer, which is not installed: pip install 'pagestream[cli]'\n"
    )


@pytest.mark.parametrize(
    ("command", "extra"), [("worker", "worker"), ("up", "worker"), ("bench", "bench")]
)
def test_without_the_worker_extra_its_commands_are_a_sentence(command, extra):
    done = without("torch", command, "--model", "some/model")
    assert done.returncode == 78
    assert done.stderr == (
        f"`pagestream {command}` needs torch, which is not installed: "
        f"pip install 'pagestream[{extra}]'\n"
    )
    overview = without("torch", "--help")
    assert overview.returncode == 0
    assert "pagestream[worker]" in overview.stdout


def test_generate_loads_nothing_of_the_worker():
    code = (
        "import sys; from pagestream.producer.cli import build; build(['generate']);"
        "print(*{name.split('.')[0] for name in sys.modules} & {'torch', 'transformers'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("\n", "")
