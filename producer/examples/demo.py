"""`make demo`: a server, a worker and a producer on this machine, each a process of its own.

Starts an embedded Valkey, waits until a worker serves the model, then runs `demo_producer.py`: that
sends the prompts, shows their tokens as they stream, and sums up. All of it ends with this process.
Knows processes only: what is sent and shown is the producer's.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from redis import Redis
from rich.console import Console

from pagestream.producer.embedded import EmbeddedRedis
from pagestream.producer.keys import Keys

START_S = 150
"""How long a worker may take to load the model; on a GPU the first start compiles kernels."""
DRAIN_S = 40

console = Console()


@contextlib.contextmanager
def worker(model: str, url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker for the length of the block, and let it drain."""
    command = [str(Path(sys.executable).with_name("pagestream")), "worker", "--model", model]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--redis-url", url], stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_served(process: subprocess.Popen[bytes], url: str, queue: str, log: Path) -> None:
    """Wait until a worker has announced the model."""
    keys = Keys(queue)
    deadline = time.monotonic() + START_S
    with Redis.from_url(url) as redis, console.status(f"Loading {queue} ..."):
        while not redis.hlen(keys.model):
            if process.poll() is not None or time.monotonic() > deadline:
                print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
                sys.exit(f"The worker did not come up (exit {process.poll()}); its log is above.")
            time.sleep(0.05)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Redis, a worker and a producer on this machine.")
    parser.add_argument("--model", default="demo", help="the demo model, a folder or a hub id")
    parser.add_argument("--redis-url", help="a running server instead of the embedded one")
    arguments, rest = parser.parse_known_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pagestream-demo-")))
        url = arguments.redis_url or stack.enter_context(EmbeddedRedis()).url
        console.print(
            f"[dim]redis    {'given' if arguments.redis_url else 'embedded'}: {url}[/]",
            soft_wrap=True,
        )
        began = time.monotonic()
        log = folder / "worker.log"
        process = stack.enter_context(worker(arguments.model, url, log))
        wait_until_served(process, url, arguments.model, log)
        ready_s = time.monotonic() - began
        console.print(f"[dim]worker   pid {process.pid}, ready in {ready_s:.1f} s[/]")
        script = Path(__file__).with_name("demo_producer.py")
        producer = [sys.executable, str(script), "--redis-url", url, "--model", arguments.model]
        with contextlib.suppress(KeyboardInterrupt):
            sys.exit(subprocess.run([*producer, *rest]).returncode)


if __name__ == "__main__":
    main()
