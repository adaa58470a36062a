"""What a process takes for its settings: unknown, contradicting and foreign ones, and `check`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pagestream.producer import settings as settings_module
from pagestream.producer.calls import mask_password
from pagestream.producer.errors import BadSettings
from pagestream.producer.gateway.settings import GatewaySettings
from pagestream.producer.gateway.settings import read_settings as read_gateway
from pagestream.producer.jobs.settings import JobsSettings
from pagestream.producer.settings import KNOWN
from pagestream.worker.errors import ConfigError
from pagestream.worker.settings import WorkerSettings
from pagestream.worker.settings import read_settings as read_worker

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (settings_module.WORKER, WorkerSettings),
        (settings_module.GATEWAY, GatewaySettings),
        (settings_module.JOBS, JobsSettings),
    ],
    ids=["worker", "gateway", "jobs"],
)
def test_the_names_written_down_are_the_settings(names, kind):
    assert sorted(names.split()) == sorted(name.upper() for name in kind.model_fields)


def test_every_variable_that_is_used_anywhere_is_known():
    places = ["docker-compose.yml", ".env.example", "Makefile", "README.md"]
    paths = [ROOT / name for name in places]
    paths += [*ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*"), *ROOT.glob("tests/**/*.py")]
    used = {
        name
        for path in paths
        if path.is_file() and path != Path(__file__).resolve()
        for name in re.findall(r"\bPAGESTREAM_[A-Z_]*[A-Z]\b", path.read_text(errors="replace"))
    }
    assert used <= KNOWN


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("PAGESTREAM_MAX_NUM_SEQ", "did you mean PAGESTREAM_MAX_NUM_SEQS?"),
        ("PAGESTREAM_QUEUE_LIMITS", "did you mean PAGESTREAM_QUEUE_LIMIT?"),
        ("PAGESTREAM_XYZZY_PLUGH_FROBOZZ", "is no setting: unset it"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(monkeypatch, variable, said):
    monkeypatch.setenv(variable, "3")
    for read, error in ((read_worker, ConfigError), (read_gateway, BadSettings)):
        with pytest.raises(error, match=re.escape(said)) as caught:
            read()
        assert variable in str(caught.value)


def test_one_file_of_variables_serves_every_process(monkeypatch):
    """Each takes its own, and what only Compose or Kubernetes knows is nobody's mistake."""
    for name in KNOWN - {name for name in KNOWN if name.removeprefix("PAGESTREAM_") in FIELDS}:
        monkeypatch.setenv(name, "info")
    for name, value in {
        "PAGESTREAM_MAX_NUM_SEQS": "7",
        "PAGESTREAM_PORT": "8123",
        "PAGESTREAM_REDIS_PORT": "tcp://10.0.0.1:6379",
        "PAGESTREAM_GATEWAY_SERVICE_HOST": "10.0.0.2",
        "PAGESTREAM_GATEWAY_SERVICE_PORT_HTTP": "80",
        "PAGESTREAM_GATEWAY_PORT_80_TCP_ADDR": "10.0.0.2",
    }.items():
        monkeypatch.setenv(name, value)
    assert read_worker().max_num_seqs == 7
    assert read_gateway().port == 8123


FIELDS = {
    name.upper() for kind in (WorkerSettings, GatewaySettings, JobsSettings)
    for name in kind.model_fields
}  # fmt: skip


def test_what_kubernetes_put_in_place_of_a_port_says_so(monkeypatch):
    monkeypatch.setenv("PAGESTREAM_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(BadSettings, match=r"--port: .*say enableServiceLinks: false"):
        read_gateway()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"max_mixed_tokens": 9000}, "lower it, or raise --max-num-batched-tokens"),
        ({"num_blocks": 9, "max_model_len": 129}, "--num-blocks 9 hold 128 tokens"),
        ({"served_model_name": "a b"}, "choose another with --served-model-name"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_worker(**flags)


def test_what_just_fits_together_is_taken():
    assert read_worker(max_mixed_tokens=8192).max_mixed_tokens == 8192
    assert read_worker(num_blocks=9, max_model_len=128).num_blocks == 9


def test_everything_that_is_wrong_is_said_at_once(monkeypatch):
    monkeypatch.setenv("PAGESTREAM_LOG_LEVEL", "loud")
    monkeypatch.setenv("PAGESTREAM_GRACES", "3")
    with pytest.raises(ConfigError) as caught:
        read_worker(dtype="int3")
    for words in ("--dtype", "LOG_LEVEL 'loud' is not one of DEBUG", "mean PAGESTREAM_GRACE?"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:se/cr@et@h:1/0", "redis://u:***@h:1/0"),
        ("redis://:secret@h", "redis://:***@h"),
        ("redis://h/0?password=secret&db=1", "redis://h/0?password=***&db=1"),
        ("redis+sentinel://h/s/0?sentinel_password=secret", "redis+sentinel://h/s/0?sentinel_password=***"),
        ("redis://h:6379/0", "redis://h:6379/0"),
    ],
)  # fmt: skip
def test_a_password_is_never_shown(url, shown):
    assert mask_password(url) == shown


# ---- the command


def check(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAGESTREAM")}
    return subprocess.run(
        [sys.executable, "-m", "pagestream.producer.cli", "config", "check", *arguments],
        capture_output=True,
        text=True,
        env={**kept, "COLUMNS": "120", **variables},
        timeout=60,
    )


def test_each_setting_its_value_and_where_it_comes_from():
    told = check(
        *("worker", "--step-stall", "4", "--no-enable-prefix-caching"),
        PAGESTREAM_REDIS_URL="redis://u:secret@h/0",
        PAGESTREAM_STEP_STALL="9",
    )
    assert (told.returncode, told.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in told.stdout.splitlines()}
    assert rows["--step-stall"] == ["4.0", "flag"]
    assert rows["--enable-prefix-caching"] == ["False", "flag"]
    assert rows["--redis-url"] == ["redis://u:***@h/0", "PAGESTREAM_REDIS_URL"]
    assert rows["--max-num-seqs"] == ["1024", "default"]
    assert len(rows) == 1 + len(WorkerSettings.model_fields)


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "said"),
    [
        (["worker"], {"PAGESTREAM_GRAC": "1"}, 78, "did you mean PAGESTREAM_GRACE?"),
        (["worker", "--dtype", "int3"], {}, 78, "--dtype"),
        (["gateway"], {"PAGESTREAM_PORT": "0"}, 78, "--port"),
        (["gateway", "--redis-url", "http://u:hidden@h"], {}, 78, "begins with redis://"),
        (["jobs"], {"PAGESTREAM_REDIS_URL": "redis://u:hidden@h:port"}, 78, "--redis-url"),
        (["gateway", "--step-stall", "4"], {}, 2, "No such option: --step-stall"),
        (["cook"], {}, 2, "'cook' is not one of worker, gateway, jobs"),
    ],
)
def test_what_is_wrong_is_said_and_is_the_exit_status(arguments, variables, status, said):
    told = check(*arguments, **variables)
    assert told.returncode == status
    assert said in told.stderr
    assert "hidden" not in told.stdout + told.stderr
    assert "Traceback" not in told.stderr


def test_the_check_as_json():
    told = check("jobs", "--json", PAGESTREAM_QUEUE_LIMIT="9", PAGESTREAM_GRAC="1")
    answer = json.loads(told.stdout)
    assert told.returncode == 78
    assert answer["problems"] == ["PAGESTREAM_GRAC is no setting: did you mean PAGESTREAM_GRACE?"]
    (limit,) = [one for one in answer["settings"] if one["name"] == "queue-limit"]
    assert (limit["value"], limit["source"]) == ("9", "variable")


def test_a_gateway_that_is_told_something_unknown_does_not_start():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAGESTREAM")}
    told = subprocess.run(
        [sys.executable, "-m", "pagestream.producer.cli", "gateway"],
        capture_output=True,
        text=True,
        env={**kept, "PAGESTREAM_PROT": "9"},
        timeout=60,
    )
    assert told.returncode == 78
    assert told.stderr == "error: PAGESTREAM_PROT is no setting: did you mean PAGESTREAM_PORT?\n"
