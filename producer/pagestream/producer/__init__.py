"""The light client of pagestream: enqueue LLM jobs on Redis Streams, read their tokens.

    async with AsyncClient("redis://localhost:6379/0", model="demo") as client:
        job = await client.submit("def fibonacci(n):", max_tokens=64)
        async for chunk in job.stream():
            print(chunk.text, end="")

`Client` is the same without asyncio. This room knows Redis, not GPUs: importing it loads no torch.
"""

from .client import AsyncClient
from .errors import (
    InvalidRequest,
    JobCancelled,
    JobConflict,
    JobExpired,
    JobFailed,
    JobLost,
    JobNotFound,
    NotDurable,
    PagestreamError,
    QueueFull,
    QueueUnavailable,
    RateLimited,
    RedisFull,
    UnknownModel,
    UnsupportedParameter,
    UnsupportedVersion,
)
from .job import AsyncJob, Chunk, JobStatus, Result, TokenStream
from .protocol import ModelInfo, Timings, Usage
from .request import JobSpec, SubmitOptions
from .sampling import SamplingParams
from .sync import Client, Job
from .tenants import TenantLimits

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Chunk",
    "Client",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobConflict",
    "JobExpired",
    "JobFailed",
    "JobLost",
    "JobNotFound",
    "JobSpec",
    "JobStatus",
    "ModelInfo",
    "NotDurable",
    "PagestreamError",
    "QueueFull",
    "QueueUnavailable",
    "RateLimited",
    "RedisFull",
    "Result",
    "SamplingParams",
    "SubmitOptions",
    "TenantLimits",
    "Timings",
    "TokenStream",
    "UnknownModel",
    "UnsupportedParameter",
    "UnsupportedVersion",
    "Usage",
]
