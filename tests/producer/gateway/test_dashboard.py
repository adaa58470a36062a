"""The dashboard's page and what it reads and does, over HTTP, and who may."""

import re

import httpx2
import msgspec
import pytest
from gateway_process import GatewayProcess
from wire_tools import SNAPSHOT, Worker, end, row

from pagestream.producer.gateway.dashboard import STATIC
from pagestream.producer.snapshot import SlowJob

SECRET = "Xyzzy-plugh"
SECRET_PAYLOAD = msgspec.msgpack.encode({"v": 1, "prompt": SECRET})


@pytest.fixture
def keyed(keyed_gateway):
    """`keyed("sk-anna")`: plain HTTP to a gateway that wants keys, with one or without."""
    clients = []

    def make(key: str | None) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        clients.append(httpx2.Client(base_url=keyed_gateway.url, headers=headers, timeout=20))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def queue_of(http, queue_name: str) -> dict:
    told = http.get("/dashboard/api/live")
    assert told.status_code == 200
    (queue,) = [one for one in told.json()["queues"] if one["name"] == queue_name]
    return queue


def letters_of(http, queue_name: str) -> list[dict]:
    told = http.get("/dashboard/api/dead")
    assert told.status_code == 200
    return [one for one in told.json()["letters"] if one["queue"] == queue_name]


def retry(http, queue: str, letter: str, **options):
    return http.post(
        "/dashboard/api/dead/retry", json={"queue": queue, "letter": letter}, **options
    )


# ---- the page


def test_the_page_may_run_its_own_files_and_nothing_else(http):
    page = http.get("/dashboard")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    named = re.findall(r'(?:src|href)="dashboard/([^"]+)"', page.text)
    assert {"app.js", "style.css", "icon.svg"} <= set(named)
    for path in STATIC.iterdir():
        if path.name != "index.html":
            file = http.get(f"/dashboard/{path.name}")
            assert (file.status_code, file.content) == (200, path.read_bytes())
            assert file.headers["x-content-type-options"] == "nosniff"


def test_the_page_needs_no_internet_and_parses_no_html():
    for path in STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b", text), path
        assert not re.search(r"<script(?! type=\"module\" src)|\son\w+=|\sstyle=", text), path


@pytest.mark.parametrize("name", ["app.py", "..%2fdashboard.py", "index.html%00", "api"])
def test_there_are_no_other_files(http, name):
    assert http.get(f"/dashboard/{name}").status_code == 404


# ---- what is there


def test_queues_with_their_lanes_and_workers(http, wire, queue_name):
    wire.submit("h", lane="high", tenant="acme")
    wire.submit("n")
    worker = Worker(wire, "w-1", heartbeat_ms=0, heartbeat_ttl_ms=60_000)
    snapshot = msgspec.json.encode(SNAPSHOT).decode()
    worker.step(slots=1, tokens=100, aged_slots=1, snapshot=snapshot)
    queue = queue_of(http, queue_name)
    lanes = [(one["lane"], one["waiting"], one["running"]) for one in queue["lanes"]]
    assert lanes == [("high", 0, 1), ("normal", 1, 0), ("low", 0, 0)]
    assert {one["tenant"] for one in queue["tenants"]} == {"acme", "default"}
    (found,) = queue["workers"]
    assert (found["name"], found["is_alive"], found["jobs"]) == ("w-1", True, 1)
    assert found["snapshot"]["kv"]["block_map"] == "us..c..."


def test_a_jobs_timeline_by_its_id_alone(http, wire, queue_name):
    wire.submit("tl-1")
    worker = Worker(wire, "w-1")
    claim = worker.claim_one()
    worker.step(rows=[row(claim, 0, 7, 8)], prefills=[("tl-1", claim.epoch, 5, True)])
    worker.step(ends=[end(claim, 2)])
    for path in ("tl-1", f"tl-1?queue={queue_name}"):
        (job,) = http.get(f"/dashboard/api/jobs/{path}").json()["jobs"]
        assert (job["queue"], job["state"], job["output_tokens"]) == (queue_name, "done", 2)
        assert [name for name, *_ in job["phases"]] == ["queue", "prefill", "decode"]
        assert job["queued_ms"] <= job["claimed_ms"] <= job["first_token_ms"] <= job["finished_ms"]
        assert job["at_ms"] >= job["finished_ms"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("jobs/none", 404),
        ("jobs/%F0%9F%92%A5", 400),
        ("jobs/none?queue=no%20queue", 400),
        ("jobs/none?queue=none", 404),
        ("nothing", 404),
    ],
)
def test_what_is_not_there(http, queue_name, wire, path, status):
    wire.submit("some")
    told = http.get(f"/dashboard/api/{path}")
    assert told.status_code == status
    assert told.json()["error"]["message"]


def test_no_prompt_and_no_text_is_told(http, wire, bury, queue_name):
    bury("poison", 7, payload=SECRET_PAYLOAD)
    wire.submit("asked", SECRET_PAYLOAD)
    worker = Worker(wire, "w-1", heartbeat_ms=0)
    claim = worker.claim_one()
    worker.step(rows=[row(claim, 0, 7, text=SECRET)])
    for path in ("live", "dead", "jobs/asked", "jobs/poison"):
        told = http.get(f"/dashboard/api/{path}")
        assert told.status_code == 200
        assert SECRET not in told.text
        assert "payload" not in told.text
        assert told.headers["cache-control"] == "no-store"


def test_an_outage_is_a_503(own_server, tmp_path):
    server = own_server()
    with GatewayProcess(server.url, tmp_path) as gateway:
        assert httpx2.get(f"{gateway.url}/dashboard/api/live").json()["queues"] == []
        server.kill()
        for path in ("live", "dead", "jobs/any"):
            told = httpx2.get(f"{gateway.url}/dashboard/api/{path}", timeout=20)
            assert (told.status_code, told.json()["error"]["code"]) == (503, "queue_unavailable")
        assert httpx2.get(f"{gateway.url}/dashboard").status_code == 200


# ---- what can be done


def test_a_dead_letter_is_queued_again(http, wire, bury, queue_name):
    bury("first")
    bury("poison", 7, lane="low")
    newest, oldest = letters_of(http, queue_name)
    assert (newest["id"], oldest["id"]) == ("poison", "first")
    assert (newest["reason"], newest["crashes"], newest["lane"]) == ("crashed", 3, "low")
    assert newest["error"] == "Traceback\nRuntimeError: boom"
    assert retry(http, queue_name, newest["letter"]).json() == {"id": "poison"}
    assert wire.state("poison") == "queued"
    assert [one["id"] for one in letters_of(http, queue_name)] == ["first"]
    assert retry(http, queue_name, newest["letter"]).status_code == 404


def test_what_never_was_a_job_cannot_be_retried(http, wire, queue_name, redis_client):
    redis_client.sadd("ps:queues", queue_name)
    redis_client.xadd(wire.keys.dead, {"id": "", "reason": "malformed", "message": ""})
    (letter,) = letters_of(http, queue_name)
    told = retry(http, queue_name, letter["letter"])
    assert told.status_code == 400
    assert "only purge it" in told.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/jsonp"}]
)
def test_what_a_form_of_another_site_can_send_does_nothing(http, wire, bury, queue_name, headers):
    bury("poison")
    wire.submit("waiting")
    (letter,) = letters_of(http, queue_name)
    body = msgspec.json.encode({"queue": queue_name, "letter": letter["letter"]})
    for path in ("dead/retry", "jobs/waiting/cancel"):
        told = http.post(f"/dashboard/api/{path}", content=body, headers=headers)
        assert told.status_code == 400
        assert "application/json" in told.json()["error"]["message"]
    assert (wire.state("poison"), wire.state("waiting")) == ("dead", "queued")


def test_a_job_is_cancelled(http, wire, queue_name):
    Worker(wire)
    wire.submit("waiting")
    told = http.post("/dashboard/api/jobs/waiting/cancel", json={})
    assert told.json() == {"outcome": "cancelled"}
    assert wire.state("waiting") == "cancelled"
    assert http.post("/dashboard/api/jobs/none/cancel", json={}).status_code == 404


@pytest.mark.parametrize("body", [{}, {"queue": "q"}, {"queue": "", "letter": "x"}, [], 1])
def test_a_retry_of_nonsense_is_refused(http, body):
    assert http.post("/dashboard/api/dead/retry", json=body).status_code == 400


# ---- who may


@pytest.mark.parametrize("key", [None, "sk-nobody"])
def test_nobody_looks_without_a_key(keyed, key):
    http = keyed(key)
    for path in ("live", "dead", "jobs/any"):
        assert http.get(f"/dashboard/api/{path}").status_code == 401
    assert retry(http, "q", "1-1").status_code == 401
    assert http.post("/dashboard/api/jobs/any/cancel", json={}).status_code == 401
    assert http.get("/dashboard").status_code == 200, "the page asks for the key"


def test_a_tenant_sees_and_touches_what_is_its_own(keyed, wire, bury, queue_name):
    anna, ben = keyed("sk-anna"), keyed("sk-ben")
    for tenant in ("anna", "ben"):
        bury(f"{tenant}.bad", tenant=tenant)
    for tenant in ("anna", "ben"):
        wire.submit(f"{tenant}.job", tenant=tenant)
    (letter,) = letters_of(anna, queue_name)
    assert letter["id"] == "anna.bad"
    assert queue_of(anna, queue_name)["dead_letters"] == 2, "figures of the queue are everybody's"
    assert [one["tenant"] for one in queue_of(anna, queue_name)["tenants"]] == ["anna"]
    assert anna.get("/dashboard/api/live").json()["tenant"] == "anna"
    assert anna.get("/dashboard/api/jobs/anna.job").status_code == 200

    refused = retry(ben, queue_name, letter["letter"])
    missing = retry(ben, queue_name, "1-1")
    assert refused.status_code == missing.status_code == 404
    assert refused.text == missing.text.replace("1-1", letter["letter"])
    assert ben.get("/dashboard/api/jobs/anna.job").status_code == 404
    assert ben.post("/dashboard/api/jobs/anna.job/cancel", json={}).status_code == 404
    assert (wire.state("anna.bad"), wire.state("anna.job")) == ("dead", "queued")

    assert retry(anna, queue_name, letter["letter"]).status_code == 200
    assert wire.state("anna.bad") == "queued"


def test_a_workers_oldest_jobs_are_shown_to_their_tenants(keyed, http, wire, queue_name):
    slowest = [
        SlowJob(
            id=f"{tenant}.1",
            lane="low",
            tenant=tenant,
            state="decode",
            age_ms=1.0,
            prompt_tokens=1,
            output_tokens=1,
        )
        for tenant in ("anna", "ben")
    ]
    snapshot = msgspec.structs.replace(SNAPSHOT, slowest=slowest)
    worker = Worker(wire, "w-1", heartbeat_ms=0, heartbeat_ttl_ms=60_000)
    worker.step(snapshot=msgspec.json.encode(snapshot).decode())

    def shown(client) -> list[str]:
        (found,) = queue_of(client, queue_name)["workers"]
        return [one["id"] for one in found["snapshot"]["slowest"]]

    assert shown(keyed("sk-anna")) == ["anna.1"]
    assert shown(http) == ["anna.1", "ben.1"]
