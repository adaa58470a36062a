"""OpenTelemetry spans of a job's life: its wait in the queue, its prefill, its decoding.

They are children of the span that submitted the job, made at once when it ends, from the times that
are known then: a step pays nothing. Only jobs that came with a trace context have any.
This module knows a job's times and OpenTelemetry: no Redis, no engine.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pagestream.producer.tracing import TRACER, api

from .errors import ConfigError
from .queue.reply import Job

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of OpenTelemetry, either of which makes a worker export its spans."""


@contextmanager
def exporting() -> Iterator[None]:
    """Export spans by OTLP over HTTP while the block runs, if a variable says where to.

    Raises:
        ConfigError: a variable does, and OpenTelemetry's SDK is not installed.
    """
    named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if named is None:
        yield
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"{named} is set, but spans need {error.name}: pip install 'pagestream[trace]'"
        ) from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield  # `opentelemetry-instrument` has done it
        return
    name = os.environ.get("OTEL_SERVICE_NAME", "pagestream-worker")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


def trace_job(job: Job, queue: str, worker: str) -> None:
    """Make the spans of a job that has ended, if it is traced and this process is."""
    trace = api()
    if trace is None or not job.claim.traceparent:
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {"traceparent": job.claim.traceparent, "tracestate": job.claim.tracestate}
    parent = TraceContextTextMapPropagator().extract(carrier)
    tracer = trace.get_tracer(TRACER)
    common = {
        "pagestream.job_id": job.id,
        "pagestream.worker": worker,
        "pagestream.epoch": job.epoch,
        "pagestream.lane": job.lane,
        "pagestream.tenant": job.tenant,
        "gen_ai.request.model": queue,
    }
    now_s = time.monotonic()

    def redis_ns(at_s: float) -> int:
        # Redis's time: that of this host may be anything.
        return int((job.claim.queued_ms + (at_s - job.accepted_s) * 1000) * 1e6)

    def span(name: str, begin_s: float, end_s: float, **attributes: Any) -> Any:
        began = tracer.start_span(
            f"pagestream {name}",
            context=parent,
            kind=trace.SpanKind.CONSUMER,
            start_time=redis_ns(begin_s),
            attributes={**common, **attributes},
        )
        if job.reason == "error" and end_s == now_s:
            began.set_status(trace.StatusCode.ERROR)
        began.end(end_time=redis_ns(end_s))
        return began

    first_s = job.first_token_s
    span("queue", job.accepted_s, job.claimed_s)
    usage = {
        "gen_ai.usage.input_tokens": job.prompt_tokens,
        "pagestream.cached_tokens": job.cached_tokens,
    }
    span("prefill", job.claimed_s, first_s or now_s, **usage)
    if first_s is not None:
        ends = {
            "gen_ai.usage.output_tokens": len(job.ids),
            "gen_ai.response.finish_reasons": [job.reason or ""],
        }
        span("decode", first_s, now_s, **ends)
