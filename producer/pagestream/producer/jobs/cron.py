"""When a schedule recurs, in UTC. This module knows expressions and times, no schedules."""

from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

from ..errors import InvalidRequest


def next_ms(cron: str, after_ms: int) -> int:
    """Return the first time of a cron expression behind `after_ms`, both in ms since 1970.

    Raises:
        InvalidRequest: it is no expression, or has no such time.
    """
    try:
        times = CronSim(cron, datetime.fromtimestamp(after_ms / 1000, UTC))
        return round(next(times).timestamp() * 1000)
    except (CronSimError, StopIteration) as error:
        raise InvalidRequest(
            f"--cron {cron!r} is not five fields like '0 7 * * 1-5' (UTC): {error}"
        ) from error
