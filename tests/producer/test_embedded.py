"""The embedded server: real, private, durable, and gone with its owner, however that went."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from waiting import until

from pagestream.producer import embedded
from pagestream.producer.embedded import EmbeddedRedis, default_url, find_server, running_url
from pagestream.producer.errors import QueueUnavailable

OWNER = """
import sys, time
from pagestream.producer.embedded import EmbeddedRedis
server = EmbeddedRedis(*sys.argv[1:]).start()
print(server.url, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def connect(url):
    return redis.Redis.from_url(url, protocol=2, socket_timeout=5)


def config(client, name):
    ((_, value),) = client.config_get(name).items()
    return value.decode() if isinstance(value, bytes) else value  # redis-py's versions differ


def server_pid(url):
    with connect(url) as client:
        return client.info("server")["process_id"]


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[1])


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def start_owner(*arguments):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    return owner, owner.stdout.readline().strip()


def test_it_is_private_durable_and_never_evicts(folder):
    with EmbeddedRedis(folder) as server, connect(server.url) as client:
        wanted = ("appendonly", "appendfsync", "maxmemory-policy", "save", "port")
        assert [config(client, name) for name in wanted] == [
            *("yes", "everysec", "noeviction"),
            *("", "0"),
        ]
        path = server.url.removeprefix("unix://").split("?")[0]
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_it_keeps_its_data_between_runs(folder):
    with EmbeddedRedis(folder) as server, connect(server.url) as client:
        client.set("key", "value")
    with EmbeddedRedis(folder, fsync="always") as server, connect(server.url) as client:
        assert client.get("key") == b"value"
        assert config(client, "appendfsync") == "always"


def test_a_temporary_one_leaves_nothing(folder):
    server = EmbeddedRedis().start()
    pid = server_pid(server.url)
    place = Path(server.url.removeprefix("unix://").split("?")[0]).parent
    server.stop()
    server.stop()
    assert not is_alive(pid)
    assert not place.exists()


def test_a_loopback_port_where_a_socket_will_not_do():
    with EmbeddedRedis(transport="tcp") as server, connect(server.url) as client:
        assert server.url.startswith("redis://127.0.0.1:")
        assert config(client, "bind") == "127.0.0.1"


def test_a_long_path_gets_a_short_socket(tmp_path):
    deep = tmp_path / ("long" * 30)
    with EmbeddedRedis(deep) as server, connect(server.url) as client:
        client.set("key", "value")
        assert running_url(deep) == server.url
        assert list((deep / "appendonlydir").iterdir())
        place = Path(server.url.removeprefix("unix://").split("?")[0]).parent
    assert not place.exists()


def test_a_killed_owner_takes_its_server_with_it(folder):
    owner, url = start_owner(folder)
    pid = server_pid(url)
    guard = parent_of(pid)
    owner.kill()
    owner.communicate()
    until(lambda: not is_alive(pid) and not is_alive(guard), "the end of server and guard")
    # And what it knew is there for the next one, which need not wait for the first to be gone.
    owner, url = start_owner(folder)
    owner.kill()
    owner.communicate()
    with EmbeddedRedis(folder) as server:
        assert server_pid(server.url)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_killed_guard_takes_its_server_with_it():
    owner, url = start_owner()
    pid = server_pid(url)
    os.kill(parent_of(pid), signal.SIGKILL)
    until(lambda: not is_alive(pid), "the end of the server")
    owner.kill()
    owner.communicate()


def test_a_server_that_dies_is_started_again(folder):
    with EmbeddedRedis(folder) as server:
        with connect(server.url) as client:
            client.set("key", "value")
            client.wait(0, 0)
            pid = server_pid(server.url)
        time.sleep(1.1)  # everysec: a second may be forgotten
        os.kill(pid, signal.SIGKILL)
        until(lambda: running_url(folder), "an answer from the new server")
        assert server_pid(server.url) != pid
        with connect(server.url) as client:
            assert client.get("key") == b"value"


def test_an_interrupt_meant_for_the_owner_leaves_the_server():
    with EmbeddedRedis() as server:
        pid = server_pid(server.url)
        assert os.getpgid(pid) != os.getpgid(0)
        os.kill(parent_of(pid), signal.SIGINT)
        assert server_pid(server.url) == pid


def test_two_owners_cannot_share_a_folder(folder):
    with EmbeddedRedis(folder) as server:
        with pytest.raises(QueueUnavailable, match="already runs") as caught:
            EmbeddedRedis(folder).start()
        assert server.url in str(caught.value)
        assert server_pid(server.url)


def test_a_server_that_cannot_start_shows_its_log(folder, monkeypatch):
    folder.mkdir()
    (folder / "appendonlydir").write_text("in the way")
    with pytest.raises(QueueUnavailable, match="did not start") as caught:
        EmbeddedRedis(folder).start()
    assert "appendonly" in str(caught.value).lower()


def test_without_a_server_the_three_ways_to_get_one_are_named(monkeypatch):
    assert os.access(find_server(), os.X_OK)
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(QueueUnavailable) as caught:
        EmbeddedRedis().start()
    for way in ("pagestream[embedded]", "on PATH", "--redis-url", "PAGESTREAM_REDIS_URL"):
        assert way in str(caught.value)


def test_a_server_on_path_will_do(tmp_path, monkeypatch):
    (tmp_path / "redis-server").symlink_to(find_server())
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == str(tmp_path / "redis-server")
    with EmbeddedRedis() as server:
        assert server_pid(server.url)


def test_a_client_finds_the_server_of_pagestream_up(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("PAGESTREAM_REDIS_URL", raising=False)
    assert default_url() == "redis://localhost:6379/0"
    with EmbeddedRedis(embedded.default_directory()) as server:
        assert default_url() == server.url
        monkeypatch.setenv("PAGESTREAM_REDIS_URL", "redis://elsewhere:1/0")
        assert default_url() == "redis://elsewhere:1/0"
        monkeypatch.delenv("PAGESTREAM_REDIS_URL")
    assert default_url() == "redis://localhost:6379/0"
