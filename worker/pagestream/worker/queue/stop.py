"""How a worker is asked to end. This module knows no signals and no jobs."""


class StopFlag:
    """How the worker has been asked to end; set from signal handlers and control messages."""

    def __init__(self) -> None:
        self.drain = False
        """Take no new job, let the running ones finish."""
        self.now = False
        """Hand back what runs."""

    def request(self) -> None:
        """Drain at the first request, hand back at the second."""
        self.drain, self.now = True, self.drain
