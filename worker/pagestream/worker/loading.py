"""Shows how far the weights are: a bar on a terminal, lines in a log.

Runs in the engine process, which is the one that loads. This module knows no models.
"""

import logging

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

logger = logging.getLogger(__name__)

LOG_EVERY_PERCENT = 25


class LoadingBar:
    """Called with (bytes loaded, bytes in all); picklable until it is first called."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._logged_percent = 0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Show the progress; the bar ends when everything is loaded."""
        if self._progress is None:
            self._progress = Progress(
                TextColumn("loading weights"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.add_task("weights", total=total_bytes)
        if not self._progress.console.is_terminal:
            self._log(done_bytes, total_bytes)
            return
        self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=done_bytes, total=total_bytes)
        if done_bytes >= total_bytes:
            self._progress.stop()

    def _log(self, done_bytes: int, total_bytes: int) -> None:
        percent = 100 * done_bytes // max(total_bytes, 1)
        if percent >= self._logged_percent + LOG_EVERY_PERCENT:
            self._logged_percent = percent
            logger.info("weights: %d %% of %.2f GB", percent, total_bytes / 1e9)
