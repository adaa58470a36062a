"""The table of exit statuses in docs/operations.md is what the code exits with."""

import re
from pathlib import Path

import pytest

from pagestream.producer import cli, commands, doctor_command, errors
from pagestream.producer.commands import exit_code
from pagestream.worker import service, stalls
from pagestream.worker.bench import cli as bench
from pagestream.worker.chaos import cli as chaos

ROOT = Path(__file__).resolve().parents[2]
DONE, FLAGS = 0, 2
"""Of every command; the second one is the command line's own."""


def documented(column: int) -> set[int]:
    """The statuses with something in a column of the table."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (section,) = re.findall(r"## Exit statuses\n(.*?)\n## ", page, re.DOTALL)
    rows = [line.split("|") for line in section.splitlines() if re.match(r"\| \d+ \|", line)]
    return {int(row[1]) for row in rows if row[column].strip()}


def test_those_of_a_worker():
    ends = {service.OK, service.REDIS_UNAVAILABLE, service.ENGINE_FAILED, service.TRY_AGAIN}
    ends |= {service.BAD_CONFIG, stalls.STALLED, commands.INTERRUPTED, FLAGS}
    assert documented(2) == ends


def test_those_of_a_gateway():
    assert documented(3) == {DONE, FLAGS, commands.BAD_SETTINGS}


def test_those_of_the_other_commands():
    mine = {commands.FAILED, commands.WRONG, commands.UNAVAILABLE, commands.LATER}
    mine |= {commands.BAD_SETTINGS, commands.INTERRUPTED, cli.MISSING_EXTRA}
    mine |= {doctor_command.SOMETHING_IS_WRONG, bench.FAILED, bench.UNAVAILABLE, bench.BAD_CONFIG}
    mine |= {chaos.BROKEN, chaos.UNAVAILABLE, chaos.BAD_FLAGS}
    assert documented(4) == {DONE, FLAGS, *mine}


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PagestreamError)
    ],
)
def test_every_error_has_one_of_them(kind):
    retried = issubclass(kind, errors.QueueFull | errors.RateLimited)
    error = kind("x", retry_after_ms=1) if retried else kind("x")
    assert exit_code(error) in documented(4)


def test_the_readme_says_the_same_of_a_worker():
    readme = (ROOT / "README.md").read_text()
    (said,) = re.findall(r"Exit status: (.*?)\n\n", readme, re.DOTALL)
    listed = {int(number) for number in re.findall(r"(?:^|[ \n])(\d+) [a-z]", said)}
    assert listed == documented(2) - {commands.INTERRUPTED}
