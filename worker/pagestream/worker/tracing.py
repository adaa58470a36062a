"""OpenTelemetry spans of a job's life: its wait in the queue, its prefill, its decoding.

They are children of the span that submitted the job, made at once when it ends, from the times that
are known then: a step pays nothing. Only jobs that came with a trace context have any.
This module knows a job's times and OpenTelemetry: no Redis, no engine.
"""

import os
import time
from collections.abc import Callable, Iterator
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


class JobTracer:
    """Makes the spans of jobs that are traced, where this process is."""

    def __init__(self, queue: str, worker: str) -> None:
        self._queue = queue
        self._worker = worker

    def claimed(self, job: Job) -> None:
        """Do nothing: the spans are made at the end."""

    def ended(self, job: Job) -> None:
        """Make the spans of a job's last claim."""
        trace = api()
        if trace is None or not job.claim.traceparent:
            return
        now_s, first_s = time.monotonic(), job.first_token_s
        span = self._spans(trace, job)
        span("queue", job.accepted_s, job.claimed_s, {})
        read = {
            "gen_ai.usage.input_tokens": job.prompt_tokens,
            "pagestream.cached_tokens": job.cached_tokens,
        }
        failed = job.reason == "error"
        span("prefill", job.claimed_s, first_s or now_s, read, failed=failed and first_s is None)
        if first_s is not None:
            written = {
                "gen_ai.usage.output_tokens": len(job.ids),
                "gen_ai.response.finish_reasons": [job.reason or ""],
            }
            span("decode", first_s, now_s, written, failed=failed)

    def _spans(self, trace: Any, job: Job) -> Callable[..., None]:
        """Return what makes one span of the job."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {"traceparent": job.claim.traceparent, "tracestate": job.claim.tracestate}
        parent = TraceContextTextMapPropagator().extract(carrier)
        tracer = trace.get_tracer(TRACER)
        common = {
            "pagestream.job_id": job.id,
            "pagestream.worker": self._worker,
            "pagestream.epoch": job.epoch,
            "pagestream.lane": job.lane,
            "pagestream.tenant": job.tenant,
            "gen_ai.request.model": self._queue,
        }

        def redis_ns(at_s: float) -> int:
            # Redis's time: that of this host may be anything.
            return int((job.claim.queued_ms + (at_s - job.accepted_s) * 1000) * 1e6)

        def span(
            name: str, begin_s: float, end_s: float, more: dict[str, Any], *, failed: bool = False
        ) -> None:
            made = tracer.start_span(
                f"pagestream {name}",
                context=parent,
                kind=trace.SpanKind.CONSUMER,
                start_time=redis_ns(begin_s),
                attributes={**common, **more},
            )
            if failed:
                made.set_status(trace.StatusCode.ERROR)
            made.end(end_time=redis_ns(end_s))

        return span
