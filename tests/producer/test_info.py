"""`pagestream info`: once, as a stream of lines, and on a real terminal through an outage."""

import json
import signal
import subprocess
import sys

import redis
from typer.testing import CliRunner
from wire_tools import Wire, Worker

from pagestream.producer.cli import build
from pagestream.producer.keys import QUEUES

INFO = [sys.executable, "-m", "pagestream.producer.cli", "info"]


def test_without_a_terminal_it_is_shown_once(redis_url, wire, queue_name):
    wire.submit("job", lane="high")
    Worker(wire, "w-1")
    arguments = ["info", "--watch", "--redis-url", redis_url, "--queue", queue_name]
    done = CliRunner(env={"COLUMNS": "120"}).invoke(build(arguments), arguments)
    assert done.exit_code == 0
    lines = [line.split() for line in done.output.splitlines()]
    assert [queue_name, "1", "0", "0", "0", "0", "0"] in lines
    assert [queue_name, "w-1", "yes", "0", "–", "–"] in lines


def test_json_is_an_object_a_line_through_an_outage(own_server, keys):
    server = own_server()
    with redis.Redis.from_url(server.url, protocol=2) as client:
        client.sadd(QUEUES, keys.queue)
        Wire(client, keys).submit("job")
    command = [*INFO, "--json", "--watch", "--interval", "0.1", "--redis-url", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        (queue,) = first["queues"]
        assert (queue["name"], queue["unfinished"]["normal"]) == (keys.queue, 1)
        assert second["at_ms"] > first["at_ms"]
        server.kill()
        while "error" not in (line := json.loads(process.stdout.readline())):
            pass
        assert "queues" not in line
        assert "Redis at unix://" in line["error"]
        server.start()
        while "queues" not in (line := json.loads(process.stdout.readline())):
            pass
        assert line["queues"] == first["queues"]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, b"")


def test_a_terminal_is_drawn_again_and_again(own_server, keys, terminal):
    server = own_server()
    with redis.Redis.from_url(server.url, protocol=2) as client:
        client.sadd(QUEUES, keys.queue)
    process, wait_for = terminal(*INFO, "--watch", "--redis-url", server.url, "--interval", "0.1")
    wait_for(keys.queue)
    server.kill()
    wait_for("Redis at unix://")
    server.start()
    with redis.Redis.from_url(server.url, protocol=2) as client:
        Worker(Wire(client, keys), "w-late")
    wait_for("w-late")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_an_interval_too_short_is_refused(redis_url):
    arguments = ["info", "--watch", "--interval", "0", "--redis-url", redis_url]
    assert CliRunner().invoke(build(arguments), arguments).exit_code == 2
