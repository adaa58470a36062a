"""The load generator, against a target of this process."""

import asyncio

import pytest

from pagestream.producer.errors import InvalidRequest, JobLost
from pagestream.worker.bench.client import drive
from pagestream.worker.bench.datasets import Sample


class FakeReply:
    def __init__(self, target, arrivals):
        self.queue_ms = None
        self._target = target
        self._arrivals = arrivals

    async def arrivals(self):
        for tokens in self._arrivals:
            await asyncio.sleep(0)
            if isinstance(tokens, Exception):
                raise tokens
            yield tokens
        self.queue_ms = 5.0
        self._target.open -= 1


class FakeTarget:
    """Answers requests of n tokens in pieces of two and one."""

    def __init__(self, special=None):
        self.sent = []
        self.open = self.most_open = 0
        self._special = special or {}

    async def send(self, samples):
        self.sent.append(len(samples))
        self.open += len(samples)
        self.most_open = max(self.most_open, self.open)
        return [self._reply(sample) for sample in samples]

    def _reply(self, sample):
        count = sample.output_tokens
        found = self._special.get(count, [2] * (count // 2) + [1] * (count % 2))
        return FakeReply(self, found) if isinstance(found, list) else found


def workload(*lengths):
    return [Sample([1], length) for length in lengths]


async def test_requests_of_one_moment_go_together_and_are_read_whole():
    target = FakeTarget()
    told = []
    samples = workload(5, 3, 1)
    lines = await drive(target, samples, [0, 0, 0.01], told=lambda *now: told.append(now))
    assert target.sent == [2, 1]
    assert [line.tokens for line in lines] == [[2, 2, 1], [2, 1], [1]]
    assert [line.queue_ms for line in lines] == [5.0] * 3
    assert lines[0].sent_s == lines[1].sent_s
    assert lines[2].sent_s - lines[0].sent_s >= 0.009
    assert all(line.sent_s < line.arrivals_s[0] <= line.ended_s for line in lines)
    assert told[-1] == (3, 9)


async def test_no_more_than_the_bound_are_unanswered():
    target = FakeTarget()
    lines = await drive(target, workload(*range(1, 20)), [0.0] * 19, max_concurrency=4)
    assert target.most_open == 4
    assert all(line.ended_s is not None for line in lines)
    assert lines[18].sent_s > lines[0].ended_s  # counted from when it was sent, not when due


@pytest.mark.parametrize(
    ("special", "error"),
    [
        (InvalidRequest("no"), "invalid_request: no"),
        ([2, JobLost("gone")], "job_lost: gone"),
        ([2], "2 of 7 tokens came"),
    ],
)
async def test_a_failure_is_its_own_requests(special, error):
    lines = await drive(FakeTarget({7: special}), workload(7, 2), [0.0, 0.0])
    assert (lines[0].error, lines[0].ended_s) == (error, None)
    assert lines[1].ended_s is not None
