"""Asyncio connections that lose no cancellation while they send.

Before Python 3.12 `asyncio.wait_for`, under which redis-py sends, can swallow one: who is told to
end goes on, and who waits for its end does so for ever. It also makes a task of every command.
This module knows how a command is sent: no URLs, no options.
"""

import asyncio
from typing import Any

from redis.exceptions import TimeoutError as RedisTimeoutError


def send_at_once(pool: Any) -> None:
    """Have an asyncio pool's connections, of which it has made none yet, send without `wait_for`.

    They are bound by their `socket_timeout` as before.
    """
    kind = pool.connection_class

    class Connection(kind):
        async def send_packed_command(self: Any, command: Any, check_health: bool = True) -> None:
            # Both wait for answers, under a timeout that is not there while a command is sent.
            if not self.is_connected:
                await self.connect()
            elif check_health:
                await self.check_health()
            timeout_s, self.socket_timeout = self.socket_timeout, None
            try:
                async with asyncio.timeout(timeout_s):
                    await kind.send_packed_command(self, command, check_health=False)
            except TimeoutError:
                raise RedisTimeoutError("Timeout writing to socket") from None
            finally:
                self.socket_timeout = timeout_s

    pool.connection_class = Connection
