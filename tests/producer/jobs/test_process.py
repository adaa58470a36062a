"""A jobs process ends when it is told to, whatever it is doing just then."""

import asyncio

from waiting import is_ended_by_cancel

from pagestream.producer.jobs.assembly import jobs_process
from pagestream.producer.jobs.settings import read_settings


def test_it_ends_at_every_turn_of_its_loop(redis_url):
    async def main() -> None:
        for turns in range(0, 100, 2):
            async with jobs_process(read_settings(redis_url=redis_url)) as process:
                working = asyncio.create_task(process.run())
                assert await is_ended_by_cancel(working, turns), f"after {turns} turns of the loop"

    asyncio.run(main())
