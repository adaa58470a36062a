"""Probes and metrics of a real jobs process."""

import re
import socket

import httpx2
import redis
from jobs_process import JobsProcess
from loopback import free_port
from waiting import until
from webhook_receiver import SECRET
from wire_tools import Wire

from pagestream.producer import Client
from pagestream.producer.batch.due import Due
from pagestream.producer.calls import Calls
from pagestream.producer.connection import connect_async
from pagestream.producer.keys import Around, Keys


def sample(page: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    assert found, f"{name} is not in\n{page}"
    return float(found[1])


def test_a_process_shows_what_it_does_and_whether_redis_answers(own_server, hooked, tmp_path):
    server, port = own_server(), free_port()
    flags = ("--health-port", str(port), "--webhook-allow", "127.0.0.1")
    with (
        redis.Redis.from_url(server.url) as client,
        JobsProcess(server.url, tmp_path, *flags, PAGESTREAM_WEBHOOK_SECRET=SECRET) as jobs,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http,
    ):

        def status(path: str) -> int:
            try:
                return http.get(path).status_code
            except httpx2.TransportError:
                return 0

        until(lambda: status("/ready") == 200, "the start")
        assert status("/health") == 200
        client.sadd("ps:queues", "q")
        wire = Wire(client, Keys("q"))
        hooked.answers = [(204, {}), (410, {})]
        for job in ("a", "b"):
            wire.submit(job, webhook=hooked.url)
            wire.cancel(job)
        with Client(server.url, queue="q") as producer:
            producer.schedule("x", delay_ms=60_000)
        until(lambda: client.zcard(Around.DEAD_HOOKS) == 1, "the dead webhook")
        until(lambda: len(hooked.requests) == 2, "both webhooks")

        def page() -> str:
            return http.get("/metrics").text

        until(
            lambda: sample(page(), 'pagestream_webhooks_total{outcome="delivered"}') == 1,
            "the count",
        )
        shown = page()
        assert sample(shown, 'pagestream_webhooks_total{outcome="dead"}') == 1
        assert sample(shown, "pagestream_webhooks_dead") == 1
        assert sample(shown, 'pagestream_jobs_due{kind="prompt"}') == 1
        assert sample(shown, 'pagestream_jobs_due{kind="hook"}') == 0
        assert sample(shown, "pagestream_jobs_due_late_seconds") < 30
        assert sample(shown, "pagestream_redis_up") == 1
        server.kill()
        assert status("/ready") == 503
        assert status("/health") == 200
        assert sample(page(), "pagestream_redis_up") == 0
        server.start()
        until(lambda: status("/ready") == 200, "the way back")
        assert jobs.end() == 0


def test_a_port_that_is_taken_is_said_in_a_sentence(redis_url, tmp_path):
    with socket.create_server(("", 0)) as taken:
        flags = ("--health-port", str(taken.getsockname()[1]))
        jobs = JobsProcess(redis_url, tmp_path, *flags).start()
        assert jobs.process.wait(20) == 78
        assert "--health-port" in jobs.log
        assert "Traceback" not in jobs.log


async def test_the_list_says_how_late_it_is(own_server):
    server = own_server()
    client = connect_async(server.url, client_name="test")
    due = Due(Calls(client, server.url, 5_000))
    await due.keep(["hooks:"])
    assert await due.look() == ({"hooks": 1}, 0)
    await due.take(1)
    await due.put("hook:a", -9_000)
    await due.put("hook:b", 9_000)
    kinds, late_ms = await due.look()
    assert kinds == {"hooks": 1, "hook": 2}
    assert 9_000 <= late_ms < 20_000
    await client.aclose()
