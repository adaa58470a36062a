"""A real gateway in a process of its own, for tests: started once, asked over HTTP."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx2
from loopback import free_port

START_S = 30.0


class GatewayProcess:
    """`pagestream gateway` on a free port of loopback; a context manager."""

    def __init__(self, redis_url: str, folder: Path, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / f"gateway-{self.port}.log"
        command = ["gateway", "--redis-url", redis_url, "--port", str(self.port), *flags]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pagestream.producer.cli", *command], stdout=log, stderr=log
            )

    def __enter__(self) -> "GatewayProcess":
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    return self
            except httpx2.TransportError:
                pass
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)

    @property
    def log(self) -> str:
        return self._log.read_text()


def events_of(text: str) -> list[tuple[str | None, dict | None]]:
    """The (id, data) of each server-sent event; the last one's data of a whole stream is None."""
    events: list[tuple[str | None, dict | None]] = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")
        )
        if "data" in fields:
            data = None if fields["data"] == "[DONE]" else json.loads(fields["data"])
            events.append((fields.get("id"), data))
    return events
