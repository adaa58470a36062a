"""`durability="strict"`: accepted means on disk, or the server is refused."""

import asyncio
import contextlib

import pytest
import redis
from loopback import free_port
from waiting import until

from pagestream.producer import AsyncClient, InvalidRequest, JobLost, NotDurable, QueueUnavailable
from pagestream.producer.durability import check_fsync_always, check_on_disk, has_barrier

ALWAYS = ("--appendfsync", "always")


class OldServer:
    """What a server without WAITAOF answers."""

    def __init__(self, **settings: str) -> None:
        self.settings = settings

    async def execute_command(self, *words: object) -> None:
        raise redis.ResponseError(f"unknown command '{words[0]}', with args beginning with: ")

    async def config_get(self, pattern: str) -> dict[str, str]:
        if not self.settings:
            raise redis.exceptions.NoPermissionError("this user has no permissions to run 'config'")
        return self.settings


def submit(url, queue, count=1, **options):
    async def run():
        async with AsyncClient(url, queue=queue, **options) as client:
            if count == 1:
                return await client.submit("hi", id="j0")
            return await client.submit_many([{"prompt": "hi", "id": f"j{i}"} for i in range(count)])

    return asyncio.run(run())


@pytest.mark.usefixtures("waitaof")
@pytest.mark.parametrize("count", [1, 3])
def test_a_submit_waits_for_the_disk(own_server, count):
    server = own_server(*ALWAYS)
    submit(server.url, "q", count, durability="strict")
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        assert client.exists(*(f"{{ps:q}}:job:j{index}" for index in range(count))) == count
        # The check, one for the script that was not known yet, and the one that counts.
        assert client.info("commandstats")["cmdstat_waitaof"]["calls"] == 3


@pytest.mark.usefixtures("waitaof")
def test_a_job_that_no_disk_has_is_not_accepted(own_server):
    """A server that leaves syncing to the system never says that a write is on disk."""
    server = own_server("--appendfsync", "no")
    with pytest.raises(QueueUnavailable, match="under the same id"):
        submit(server.url, "q", durability="strict", timeout_ms=400)


@pytest.mark.usefixtures("waitaof")
def test_a_submit_waits_for_a_replicas_disk_too(own_server):
    port = str(free_port())
    master = own_server(*listening(port), *ALWAYS)
    replicas = [own_server("--appendonly", append) for append in ("yes", "no")]
    with contextlib.ExitStack() as open_clients:
        with_file, without = (
            open_clients.enter_context(redis.Redis.from_url(replica.url)) for replica in replicas
        )
        with pytest.raises(NotDurable, match="nothing was accepted: sync_replicas=1, and 0 repl"):
            submit(master.url, "q", durability="strict", sync_replicas=1)
        follow(with_file, port)
        submit(master.url, "q", 3, durability="strict", sync_replicas=1)
        assert with_file.exists("{ps:q}:job:j0", "{ps:q}:job:j1", "{ps:q}:job:j2") == 3
        follow(without, port)  # connected, and no disk
        with pytest.raises(NotDurable, match="1 of sync_replicas=2 replicas have it on disk"):
            submit(master.url, "r", durability="strict", sync_replicas=2, timeout_ms=4000)
        assert not submit(master.url, "s", durability="strict").attached
        with_file.replicaof("no", "one")
        with pytest.raises(NotDurable, match="0 of sync_replicas=1 replicas have it on disk"):
            submit(master.url, "t", durability="strict", sync_replicas=1, timeout_ms=400)


def listening(port):
    return "--port", port, "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"


def follow(replica, port):
    """Make it a replica, and wait until it has everything, in its file too."""
    replica.replicaof("127.0.0.1", port)

    def has_all():
        info = replica.info()
        busy = info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]
        return info["master_link_status"] == "up" and not busy

    until(has_all)


@pytest.mark.usefixtures("waitaof")
def test_a_replica_that_goes_later_is_missed(own_server):
    port = str(free_port())
    master = own_server(*listening(port), *ALWAYS)
    replica = own_server()

    async def run():
        async with AsyncClient(
            master.url, queue="q", durability="strict", sync_replicas=1, timeout_ms=4000
        ) as client:
            assert not (await client.submit("hi", id="j0")).attached
            replica.kill()
            with pytest.raises(NotDurable, match=r"accepted, but 0 of sync_replicas=1 .* same id"):
                await client.submit("hi", id="j1")
            replica.start()
            with contextlib.closing(redis.Redis.from_url(replica.url)) as admin:
                follow(admin, port)
            assert (await client.submit("hi", id="j1")).attached

    with contextlib.closing(redis.Redis.from_url(replica.url)) as admin:
        follow(admin, port)
    asyncio.run(run())


@pytest.mark.usefixtures("waitaof")
def test_an_attached_job_is_on_disk_too(own_server):
    """Another connection wrote it: the barrier has to cover that write as well."""
    server = own_server(*ALWAYS)
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        submit(server.url, "q")
        job = submit(server.url, "q", durability="strict")
        assert job.attached
        assert client.info("commandstats")["cmdstat_waitaof"]["calls"] == 2, (
            "the check, the barrier"
        )
        assert client.xlen("{ps:q}:bell") == 1


class NewServer:
    """What a server with WAITAOF answers."""

    def __init__(self, server: str, version: str, fsync: str | None) -> None:
        self.name = [b"server", server.encode(), b"version", version.encode(), b"proto", 2]
        self.fsync = fsync

    async def execute_command(self, *words: object) -> list[object]:
        return self.name if words == ("HELLO",) else [1, 0]

    async def config_get(self, pattern: str) -> dict[str, str]:
        if self.fsync is None:
            raise redis.exceptions.NoPermissionError("this user has no permissions to run 'config'")
        return {pattern: self.fsync}


@pytest.mark.parametrize(
    ("server", "is_early"),
    [
        (NewServer("redis", "7.2.4", "everysec"), False),
        (NewServer("redis", "7.4.1", "everysec"), True),
        (NewServer("redis", "7.4.1", "always"), False),
        (NewServer("redis", "7.4.1", None), False),
        (NewServer("redis", "8.0.0", "everysec"), False),
        (NewServer("valkey", "7.2.11", "everysec"), False),
        (NewServer("valkey", "9.1.2", "everysec"), True),
        (NewServer("valkey", "10.0.0-rc1", "always"), False),
    ],
)
def test_a_server_whose_word_comes_too_early_is_not_taken_at_it(server, is_early):
    if is_early:
        with pytest.raises(NotDurable, match="CONFIG SET appendfsync always"):
            asyncio.run(has_barrier(server))
    else:
        assert asyncio.run(has_barrier(server))


def check_refused(server, why):
    """The first submit is refused, and nothing is written."""
    with pytest.raises(NotDurable, match=why):
        submit(server.url, "q", durability="strict")
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        assert client.dbsize() == 0


@pytest.mark.usefixtures("waitaof")
def test_a_server_that_syncs_every_second_is_refused_before_anything_is_accepted(own_server):
    check_refused(own_server("--appendfsync", "everysec"), "with appendfsync everysec valkey")


def test_a_server_without_a_file_is_refused_before_anything_is_accepted(own_server):
    server = own_server("--appendonly", "no")
    check_refused(server, "appendonly")
    assert not submit(server.url, "q").attached


@pytest.mark.usefixtures("waitaof")
def test_a_server_that_loses_its_file_later_is_refused(own_server):
    server = own_server(*ALWAYS)

    async def run():
        async with AsyncClient(server.url, queue="q", durability="strict") as client:
            await client.submit("hi")
            with contextlib.closing(redis.Redis.from_url(server.url)) as admin:
                admin.config_set("appendonly", "no")
            with pytest.raises(NotDurable):
                await client.submit("hi")

    asyncio.run(run())


def test_a_lost_job_is_submitted_again_under_its_id(own_server):
    server = own_server()

    async def run():
        async with AsyncClient(server.url, queue="q") as client:
            job = await client.submit("hi", id="j0")
            reading = asyncio.create_task(job.result())
            await asyncio.sleep(0)
            with contextlib.closing(redis.Redis.from_url(server.url)) as admin:
                admin.flushall()  # all was in the window that was lost
            with pytest.raises(JobLost, match="submit"):
                await asyncio.wait_for(reading, 20)
            assert not (await client.submit("hi", id="j0")).attached

    asyncio.run(run())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"appendonly": "yes", "appendfsync": "everysec"}, "appendfsync everysec"),
        ({"appendonly": "no", "appendfsync": "always"}, "appendonly no"),
        ({}, "cannot be read"),
    ],
)
def test_an_old_server_has_to_sync_always(settings, said):
    with pytest.raises(NotDurable, match=said):
        asyncio.run(has_barrier(OldServer(**settings)))


def test_an_old_server_that_syncs_always_will_do():
    server = OldServer(appendonly="yes", appendfsync="always")
    assert asyncio.run(has_barrier(server)) is False
    check_fsync_always({"appendonly": "yes", "appendfsync": "always"})


def test_a_disk_that_is_too_slow_is_no_acceptance():
    with pytest.raises(QueueUnavailable, match="same id"):
        check_on_disk([0, 0])
    check_on_disk([1, 0])


def test_an_old_server_knows_nothing_of_its_replicas():
    server = OldServer(appendonly="yes", appendfsync="always")
    with pytest.raises(NotDurable, match="unknown command 'WAITAOF'"):
        asyncio.run(has_barrier(server, sync_replicas=1))


@pytest.mark.parametrize("options", [{"sync_replicas": 1}, {"sync_replicas": -1}])
def test_replicas_are_for_the_strict(options):
    with pytest.raises(InvalidRequest, match=f"sync_replicas={options['sync_replicas']} needs"):
        AsyncClient("redis://x", queue="q", **options)


def test_the_word_is_checked():
    with pytest.raises(InvalidRequest, match="'paranoid'"):
        AsyncClient("redis://x", queue="q", durability="paranoid")
