"""The server that a run starts stays as quick to start again, however long the run."""

import os
from pathlib import Path

from redis_server import server_binary

from pagestream.producer.connection import connect_async
from pagestream.worker.chaos.processes import OwnServer
from pagestream.worker.chaos.stage import LOG_BYTES, Options, Stage

VALUE = os.urandom(1 << 20)


async def test_a_long_log_is_rewritten_and_a_short_one_left(tmp_path: Path) -> None:
    stage = Stage(Options())
    # With "everysec" the server writes up to two seconds later, where a disk is slow.
    stage.server = OwnServer(server_binary(), tmp_path, fsync="always")
    stage.server.start()
    stage.redis = connect_async(f"unix://{stage.server.socket}", client_name="chaos")
    try:
        await stage.server_answers()
        await stage.redis.set("often", VALUE)
        before = stage.server.log_bytes
        await stage.shorten_log()
        assert stage.server.log_bytes == before > len(VALUE)
        for _ in range(LOG_BYTES // len(VALUE)):
            await stage.redis.set("often", VALUE)
        assert stage.server.log_bytes > LOG_BYTES
        await stage.shorten_log()
        assert stage.server.log_bytes < 2 * len(VALUE)
        stage.server.kill()
        stage.server.start()
        await stage.server_answers()
        assert await stage.redis.get("often") == VALUE
    finally:
        await stage.redis.aclose()
        stage.server.kill()
        stage.folder.rmdir()
