"""Runs a worker whose engines die of one job, each time a few tokens further: for `chaos`.

python -m pagestream.worker.chaos.poisoned JOB DEATHS -m pagestream.producer.cli worker …

Each death is a byte in the file DEATHS.
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..messages import Add, Ready, Step, View
from ..process import Died, EngineLike, EngineProcess
from .programs import run_program

LIFE_TOKENS = 3
"""What an engine gives of the job before it dies: too few for the job to be cleared."""


class PoisonedEngine:
    """An engine that one job kills."""

    def __init__(self, build: Callable[[], EngineLike], job_id: str, deaths: Path) -> None:
        """Called in the engine's process."""
        self._engine = build()
        self._job_id = job_id
        self._deaths = deaths
        self._given_tokens = 0

    def ready(self) -> Ready:
        """As the engine's."""
        return self._engine.ready()

    def add(self, request: Add) -> None:
        """As the engine's."""
        self._engine.add(request)

    def abort(self, request_ids: list[str]) -> None:
        """As the engine's."""
        self._engine.abort(request_ids)

    def view(self) -> View:
        """As the engine's."""
        return self._engine.view()

    @property
    def has_work(self) -> bool:
        """As the engine's."""
        return self._engine.has_work

    def step(self) -> Step:
        """As the engine's; or die, behind what was given."""
        if self._given_tokens >= LIFE_TOKENS:
            with self._deaths.open("ab") as file:
                file.write(b".")
            os.kill(os.getpid(), signal.SIGKILL)
        step = self._engine.step()
        for output in step.outputs:
            if output.request_id.startswith(f"{self._job_id}#"):
                self._given_tokens += len(output.token_ids)
        return step


def poison(job_id: str, deaths: Path) -> None:
    """Let this job kill every engine that this process starts."""
    start = EngineProcess.__init__

    def start_poisoned(
        self: EngineProcess,
        build: Callable[[], EngineLike],
        post: Callable[[Died], None],
        **options: Any,
    ) -> None:
        start(self, partial(PoisonedEngine, build, job_id, deaths), post, **options)

    EngineProcess.__init__ = start_poisoned


if __name__ == "__main__":
    # By its own name: the engine's process cannot find what it needs in a `__main__`.
    from pagestream.worker.chaos import poisoned

    poisoned.poison(sys.argv[1], Path(sys.argv[2]))
    run_program(sys.argv[3:])
