"""A gateway whose port is another's says so, and does not start."""

import socket
import subprocess
import sys

import pytest

from pagestream.producer.errors import BadSettings
from pagestream.producer.gateway.ports import check_free


def test_a_taken_port_is_a_sentence(redis_url):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = ["gateway", "--redis-url", redis_url, "--port", str(port)]
        done = subprocess.run(
            [sys.executable, "-m", "pagestream.producer.cli", *words],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (
        78,
        f"error: the gateway cannot listen on 127.0.0.1 port {port} (Address already in use): "
        "choose another --host or --port\n",
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
def test_a_free_one_stays_free(host):
    check_free(host, 0)


def test_a_host_that_is_none():
    with pytest.raises(BadSettings, match=r"192\.0\.2\.1 port 8000"):
        check_free("192.0.2.1", 8000)
