"""`pagestream batch`: files in, files out, and on after an interrupt."""

import json
import signal
import subprocess
import sys
import threading

import pytest
from stub_worker import StubWorker, answer
from waiting import until

from pagestream.producer.keys import Around

pytestmark = pytest.mark.usefixtures("nothing_around")


@pytest.fixture
def asked(tmp_path, queue_name):
    """A function: writes a file of so many requests, and returns its path."""

    def write(count: int, **body: object):
        path = tmp_path / "in.jsonl"
        with path.open("w") as out:
            for n in range(count):
                request = {
                    "model": queue_name,
                    "prompt": f"{n}",
                    "max_tokens": 4,
                    "seed": n,
                    **body,
                }
                line = {"custom_id": f"{n}", "method": "POST", "url": "/v1/completions"}
                out.write(json.dumps({**line, "body": request}) + "\n")
        return path

    return write


def command(redis_url, *words: object) -> list[str]:
    module = "pagestream.producer.cli"
    return [sys.executable, "-m", module, "batch", *map(str, words), "--redis-url", redis_url]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60)


def test_a_file_is_answered(worker, redis_url, redis_client, asked, tmp_path):
    out = tmp_path / "out.jsonl"
    done = run(redis_url, asked(150), out)
    assert (done.returncode, done.stderr) == (0, f"150 answers: {out}\n")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [f"{n}" for n in range(150)]
    texts = [line["response"]["body"]["choices"][0]["text"] for line in lines]
    assert texts == [answer(n, 4)[1] for n in range(150)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    # The same command is the same batch: nothing runs.
    keys = set(redis_client.scan_iter(match="*"))
    done = run(redis_url, asked(150), out)
    assert done.returncode == 0
    assert done.stderr == (
        f"this file was answered before; --again answers it anew\n150 answers: {out}\n"
    )
    assert set(redis_client.scan_iter(match="*")) == keys


def test_what_has_ended_is_answered_anew(redis_url, redis_client, queue_name, asked, tmp_path):
    words = (redis_url, asked(20), tmp_path / "out.jsonl")
    assert run(*words).returncode == 1  # nobody has ever served the model
    with StubWorker(redis_url, queue_name):
        assert run(*words).returncode == 1
        assert not (tmp_path / "out.jsonl").exists()
        done = run(*words, "--again")
    assert (done.returncode, done.stderr) == (0, f"20 answers: {tmp_path / 'out.jsonl'}\n")
    assert not (tmp_path / "out.errors.jsonl").exists()
    # From now on that is the attempt that the command goes on with.
    assert "20 answers" in run(*words).stderr
    assert len(list(redis_client.scan_iter(match=f"{Around.PREFIX}batch:*"))) == 2


def test_what_has_not_ended_goes_on(worker, redis_url, redis_client, asked, tmp_path):
    words = (redis_url, asked(30), tmp_path / "out.jsonl", "--in-flight", 10, "--again")
    worker.steps_allowed = threading.Semaphore(0)
    first = subprocess.Popen(command(*words), stderr=subprocess.DEVNULL)
    assert worker.claimed.wait(30)
    first.kill()
    first.wait(10)
    worker.steps_allowed.release(10_000)
    assert run(*words).returncode == 0
    assert len(list(redis_client.scan_iter(match=f"{Around.PREFIX}batch:*"))) == 1


def test_what_fails_stands_beside(worker, redis_url, asked, tmp_path):
    done = run(redis_url, asked(3, prompt="fail"), tmp_path / "out.jsonl")
    errors = tmp_path / "out.errors.jsonl"
    assert (done.returncode, done.stderr) == (1, f"3 errors: {errors}\n")
    assert len(errors.read_text().splitlines()) == 3
    assert not (tmp_path / "out.jsonl").exists()


def test_it_goes_on_after_a_kill(worker, redis_url, redis_client, asked, tmp_path):
    out = tmp_path / "out.jsonl"
    words = (redis_url, asked(300), out, "--in-flight", 10)
    first = subprocess.Popen(command(*words), stderr=subprocess.DEVNULL)
    until(lambda: sum(map(redis_client.hlen, redis_client.scan_iter(match="*:output"))) >= 30)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    (kept,) = redis_client.scan_iter(match="*:output")
    before = redis_client.hgetall(kept)
    assert 30 <= len(before) < 300
    assert run(*words).returncode == 0
    lines = out.read_bytes().splitlines()
    assert len(lines) == 300
    assert set(before.values()) <= set(lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "the first line of"),
        ("", "the first line of"),
        ('{"url": "/v1/none"}', "url='/v1/none' is not one of"),
        ('{"url": "/v1/completions"}', "line 1: the line is no request"),
    ],
)
def test_a_file_that_is_none(redis_url, tmp_path, content, said):
    path = tmp_path / "in.jsonl"
    path.write_text(content)
    done = run(redis_url, path, tmp_path / "out.jsonl")
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_paths_that_are_none(redis_url, tmp_path, asked):
    done = run(redis_url, tmp_path / "none", tmp_path / "out.jsonl")
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path / 'none'} is not a file\n")
    done = run(redis_url, asked(1), tmp_path / "none" / "out.jsonl")
    assert done.returncode == 2
    assert "is not a folder" in done.stderr
    done = run(redis_url, asked(1), tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {tmp_path} is a folder: name a file for the answers\n",
    )
    done = run(redis_url, asked(1), "/proc/out.jsonl")
    assert done.returncode == 2
    assert "error: /proc/out.jsonl cannot be written" in done.stderr


def test_an_outage_is_a_sentence(own_server, tmp_path):
    server = own_server()
    path = tmp_path / "in.jsonl"
    with StubWorker(server.url, "m") as worker:
        worker.steps_allowed = threading.Semaphore(0)
        line = {"custom_id": "1", "method": "POST", "url": "/v1/completions"}
        path.write_text(json.dumps({**line, "body": {"model": "m", "prompt": "x"}}))
        words = command(server.url, path, tmp_path / "out.jsonl")
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert worker.claimed.wait(30)
        server.kill()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 69, said
    assert said.startswith("error: Redis at ")
    assert "Traceback" not in said
