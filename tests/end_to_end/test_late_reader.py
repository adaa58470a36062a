"""A reader that leaves for a minute: `make soak` waits it out."""

import time
from pathlib import Path

import pytest
from stub_engine import StubOptions, expected_ids
from worker_harness import Worker

from pagestream.producer import Client
from pagestream.producer.keys import Keys
from pagestream.worker.messages import Sampling

AWAY_S = 60.0
READ_TOKENS = 10


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_reader_that_was_away_for_a_minute_goes_on_at_the_next_token(
    redis_url: str, keys: Keys, tmp_path: Path
) -> None:
    """One job has ended meanwhile, the other runs on; what comes next is the token after the last.

    The reader's process might as well have ended: nothing but the id and the cursor is kept.
    """
    (tmp_path / "config.json").write_text("{}")
    tokens = {"ended": 40, "running": 800}
    worker = Worker(redis_url, keys, tmp_path, StubOptions(step_s=0.1, max_model_tokens=1000))
    worker.start()
    cursors: dict[str, str] = {}
    ids: dict[str, list[int]] = {}
    try:
        with Client(redis_url, queue=keys.queue) as client:
            for index, (job_id, count) in enumerate(tokens.items()):
                client.submit(prompt_ids=[index], max_tokens=count, ignore_eos=True, id=job_id)
            for job_id in tokens:
                ids[job_id] = []
                stream = client.job(job_id).stream()
                while len(ids[job_id]) < READ_TOKENS:
                    chunk = next(stream)
                    ids[job_id] += chunk.ids
                    cursors[job_id] = chunk.id
        time.sleep(AWAY_S)
        with Client(redis_url, queue=keys.queue) as client:
            assert client.job("ended").status().state == "done"
            assert client.job("running").status().state == "running"
            for index, (job_id, count) in enumerate(tokens.items()):
                for chunk in client.job(job_id).stream(after=cursors[job_id]):
                    assert chunk.index == len(ids[job_id])
                    ids[job_id] += chunk.ids
                assert ids[job_id] == expected_ids([index], Sampling(max_tokens=count))
    finally:
        assert worker.end() == 0
