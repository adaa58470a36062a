"""A line in the log for each job that comes and goes, for who asks for it.

Prompts are in it only where that is asked for by name. This module knows jobs and the log.
"""

import logging
import time

import msgspec

from pagestream.producer.errors import PagestreamError
from pagestream.producer.protocol import decode_payload

from .queue.reply import Job

logger = logging.getLogger(__name__)


class JobLog:
    """Logs claims and ends, with the job's id as a field."""

    def __init__(self, *, prompts: bool) -> None:
        """`prompts` adds what was asked to the line of each claim."""
        self._prompts = prompts

    def claimed(self, job: Job) -> None:
        """A job was claimed."""
        fields = {"job_id": job.id, "tenant": job.tenant, "lane": job.lane, "epoch": job.epoch}
        if self._prompts:
            fields["prompt"] = _prompt(job.claim.payload)
        logger.info("job claimed", extra=fields)

    def ended(self, job: Job) -> None:
        """A job's end was written."""
        logger.info(
            "job ended",
            extra={
                "job_id": job.id,
                "tenant": job.tenant,
                "reason": job.reason,
                "prompt_tokens": job.prompt_tokens,
                "output_tokens": len(job.ids),
                "cached_tokens": job.cached_tokens,
                "seconds": round(time.monotonic() - job.accepted_s, 3),
            },
        )


def _prompt(data: bytes) -> str:
    try:
        payload = decode_payload(data)
    except PagestreamError:
        return "(cannot be read)"
    asked = payload.prompt or payload.messages or payload.prompt_ids
    return asked if isinstance(asked, str) else msgspec.json.encode(asked).decode()
