"""The promise holds whatever happens to a queue, in any order."""

import os

import pytest
from wire_machine import run_machine


@pytest.mark.timeout(1200)
def test_the_promise_holds_whatever_happens(redis_client):
    run_machine(redis_client, int(os.environ.get("PAGESTREAM_MACHINE_EXAMPLES", "60")))
