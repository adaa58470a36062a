"""A producer and a reader as processes of their own, so that they can be killed: for `chaos`.

    python -m pagestream.worker.chaos.clients submit URL QUEUE   jobs as JSON lines in, ids out
    python -m pagestream.worker.chaos.clients read URL QUEUE JOB [CURSOR]   chunks out as JSON lines

A line is written once what it says has happened.
"""

import asyncio
import sys

import msgspec

from pagestream.producer.client import AsyncClient
from pagestream.producer.job import Chunk
from pagestream.producer.request import JobSpec


async def submit(client: AsyncClient) -> None:
    """Submit each job and print its id once it is accepted."""
    for line in sys.stdin:
        job = await client.submit(**msgspec.json.decode(line, type=JobSpec))
        sys.stdout.write(job.id + "\n")
        sys.stdout.flush()


async def read(client: AsyncClient, job_id: str, cursor: str | None) -> None:
    """Print each chunk of a job's reply from behind a cursor."""
    async with client.job(job_id).stream(after=cursor) as stream:
        async for chunk in stream:
            sys.stdout.write(msgspec.json.encode(chunk).decode() + "\n")
            sys.stdout.flush()


def read_chunk(line: str) -> Chunk:
    """Return the chunk that a reader printed."""
    return msgspec.json.decode(line, type=Chunk)


async def _main(what: str, url: str, queue: str, *more: str) -> None:
    async with AsyncClient(url, queue=queue) as client:
        if what == "submit":
            await submit(client)
        else:
            await read(client, more[0], more[1] if len(more) > 1 else None)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
