"""One trace from the producer through the queue to the last token, and none where nobody asked."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis
from stub_engine import StubOptions
from wire_tools import Wire
from wire_tools import Worker as WireWorker
from worker_harness import Worker

from pagestream.producer import AsyncClient, JobFailed
from pagestream.producer.keys import Keys
from pagestream.worker import tracing
from pagestream.worker.errors import ConfigError

SLOW = StubOptions(step_s=0.004)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is traced in this process: the client's spans and those of a worker on a thread."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@pytest.fixture
def start(redis_url: str, keys: Keys, tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    (tmp_path / "config.json").write_text("{}")
    workers: list[Worker] = []

    def make() -> Worker:
        workers.append(Worker(redis_url, keys, tmp_path, SLOW).start())
        return workers[-1]

    yield make
    for worker in workers:
        worker.end()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    found = {span.name.removeprefix("pagestream "): span for span in exporter.get_finished_spans()}
    assert len(found) == len(exporter.get_finished_spans())
    return found


async def test_one_trace_from_submit_to_the_last_token(
    spans: InMemorySpanExporter, start: Callable[[], Worker], redis_url: str, keys: Keys
) -> None:
    async with AsyncClient(redis_url, queue=keys.queue) as client:
        with trace.get_tracer("app").start_as_current_span("pagestream app") as root:
            job = await client.submit(prompt_ids=[1, 2, 3], max_tokens=20, ignore_eos=True)
        worker = start()
        await job.result()
    assert worker.end() == 0  # its spans are made when the end is written
    found = by_name(spans)
    assert set(found) == {"app", "submit", "queue", "prefill", "decode"}
    assert {span.context.trace_id for span in found.values()} == {root.get_span_context().trace_id}
    submit = found["submit"]
    assert submit.parent.span_id == root.get_span_context().span_id
    assert submit.attributes["pagestream.job_id"] == job.id
    for name in ("queue", "prefill", "decode"):
        assert found[name].parent.span_id == submit.context.span_id
        assert found[name].attributes["pagestream.job_id"] == job.id
        assert found[name].attributes["gen_ai.request.model"] == keys.queue
    assert found["prefill"].attributes["gen_ai.usage.input_tokens"] == 3
    assert found["decode"].attributes["gen_ai.usage.output_tokens"] == 20
    assert list(found["decode"].attributes["gen_ai.response.finish_reasons"]) == ["length"]
    # They follow each other without a gap; the worker came after the job.
    for before, after in (("queue", "prefill"), ("prefill", "decode")):
        assert abs(found[before].end_time - found[after].start_time) < 1_000
    assert abs(found["queue"].start_time - submit.start_time) < 1_000_000_000
    decode = found["decode"]
    assert decode.end_time - decode.start_time >= 19 * 4_000_000
    assert not any("1, 2, 3" in str(span.attributes) for span in found.values())


async def test_many_jobs_share_the_span_of_their_submit(
    spans: InMemorySpanExporter, redis_url: str, keys: Keys, wire: Wire
) -> None:
    async with AsyncClient(redis_url, queue=keys.queue) as client:
        jobs = await client.submit_many(["a", "b"])
    (submit,) = spans.get_finished_spans()
    assert submit.attributes["pagestream.jobs"] == 2
    (context,) = {wire.record(job.id)["traceparent"] for job in jobs}
    assert context.startswith(f"00-{submit.context.trace_id:032x}-{submit.context.span_id:016x}-")


async def test_a_failed_job_ends_its_last_span_with_an_error(
    spans: InMemorySpanExporter, start: Callable[[], Worker], redis_url: str, keys: Keys
) -> None:
    worker = start()
    async with AsyncClient(redis_url, queue=keys.queue) as client:
        job = await client.submit(prompt_ids=[1] * 512)  # no room for an output
        with pytest.raises(JobFailed):
            await job.result()
    assert worker.end() == 0
    found = by_name(spans)
    assert set(found) == {"submit", "queue", "prefill"}
    assert found["prefill"].status.status_code is trace.StatusCode.ERROR
    assert found["queue"].status.status_code is trace.StatusCode.UNSET


async def test_a_resubmission_under_another_trace_attaches(
    spans: InMemorySpanExporter, redis_url: str, keys: Keys, wire: Wire
) -> None:
    async with AsyncClient(redis_url, queue=keys.queue) as client:
        first = await client.submit("hi", id="same")
        again = await client.submit("hi", id="same")
    assert (first.attached, again.attached) == (False, True)
    assert len({span.context.trace_id for span in spans.get_finished_spans()}) == 2
    assert len(wire.record("same")["traceparent"]) == 55


def test_the_context_travels_with_every_claim(wire: Wire) -> None:
    context = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "tracestate": "x=1"}
    wire.submit("traced", **context)
    wire.submit("plain")
    claims = {claim.job_id: claim for claim in WireWorker(wire).claim(slots=2)}
    assert (claims["traced"].traceparent, claims["traced"].tracestate) == tuple(context.values())
    assert (claims["plain"].traceparent, claims["plain"].tracestate) == ("", "")
    answer = wire.submit_raw  # what is no trace context is refused by name
    with pytest.raises(Exception, match="INVALID traceparent"):
        answer("bad", b"{}", json.dumps({"traceparent": "x" * 513}))


def test_without_opentelemetry_nothing_is_loaded_or_sent(
    redis_url: str, keys: Keys, redis_client: Redis
) -> None:
    code = f"""
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
from pagestream.producer import Client
with Client({redis_url!r}, queue={keys.queue!r}) as client:
    client.submit("hi", id="untraced")
assert not [name for name in sys.modules if name.startswith("opentelemetry.")]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert redis_client.hget(keys.job("untraced"), "traceparent") is None


def test_a_worker_told_to_export_needs_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    with tracing.exporting():
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"pagestream\[trace\]"), tracing.exporting():
        pass


def test_a_worker_exports_by_otlp() -> None:
    """In a process of its own: the provider is the process's."""
    code = """
import http.server, os, threading
received = []
class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from pagestream.worker.tracing import exporting
with exporting():
    from opentelemetry import trace
    trace.get_tracer("t").start_span("the span").end()
server.shutdown()
(path, body), = received
assert path == "/v1/traces" and b"the span" in body and b"pagestream-worker" in body, received
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
