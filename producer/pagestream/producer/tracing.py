"""OpenTelemetry, where the program has it: a span for each submit; its context travels in the job.

A program that is traced has imported `opentelemetry.trace` by itself. Where it is not loaded,
nothing is imported and nothing is done, so the light client costs the same with or without.
This module knows spans and W3C trace context: no Redis, no queue's state.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

TRACER = "pagestream"


def api() -> Any:
    """Return the module `opentelemetry.trace` if this program has loaded it, else None."""
    return sys.modules.get("opentelemetry.trace")


@contextmanager
def submit_span(queue: str, jobs: int, job_id: str | None) -> Generator[dict[str, str]]:
    """Wrap a submit in a span and yield its W3C context: `traceparent` and perhaps `tracestate`.

    Nothing is in it where the program is not traced.
    """
    trace = api()
    if trace is None:
        yield {}
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    attributes: dict[str, str | int] = {"gen_ai.request.model": queue, "pagestream.jobs": jobs}
    if job_id is not None:
        attributes["pagestream.job_id"] = job_id
    tracer = trace.get_tracer(TRACER)
    with tracer.start_as_current_span(
        "pagestream submit", kind=trace.SpanKind.PRODUCER, attributes=attributes
    ):
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        yield carrier
