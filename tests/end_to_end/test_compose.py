"""docker-compose.yml and deploy/Dockerfile, checked as far as no container engine is needed.

Every service's command must be one that our command line knows, every variable one that something
reads, every version pinned; what the Dockerfile copies must exist. Then the services of a plain
`docker compose up` run as local processes, and answer.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from loopback import free_port
from our_processes import command_line, environment, ours, process
from redis import Redis
from redis.exceptions import RedisError
from waiting import until

from pagestream.producer.embedded import find_server
from pagestream.producer.gateway.cli import DRAIN_S
from pagestream.producer.gateway.settings import GatewaySettings
from pagestream.producer.jobs.settings import JobsSettings
from pagestream.worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()

DURATION_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}")


def substituted(value: str) -> str:
    """What compose makes of `${NAME:-default}` when no .env is there."""
    return _VARIABLE.sub(lambda match: match[2] or "", value)


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+)(ms|s|m|h)", duration)
    assert match, f"{duration!r} is not a duration"
    return int(match[1]) * DURATION_S[match[2]]


def variables(tree: object) -> dict[str, str | None]:
    """Every `${NAME:-default}` below a node, with its default."""
    if isinstance(tree, dict):
        return {k: v for value in tree.values() for k, v in variables(value).items()}
    if isinstance(tree, list):
        return {k: v for value in tree for k, v in variables(value).items()}
    return dict(_VARIABLE.findall(tree)) if isinstance(tree, str) else {}


def test_a_plain_up_needs_no_gpu_and_no_env_file() -> None:
    default = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert default == {"redis", "worker", "gateway", "jobs", "producer"}
    assert all("devices" not in str(SERVICES[name]) for name in default)
    # These are rightly empty unless set; everything else has a value.
    assert {name for name, value in variables(COMPOSE).items() if not value} <= {
        "HF_TOKEN",
        "PAGESTREAM_WEBHOOK_SECRET",
        "PAGESTREAM_WEBHOOK_ALLOW",
    }


def test_what_is_watched_from_is_reached_from_this_host_alone() -> None:
    watching = {name for name, one in SERVICES.items() if one.get("profiles") == ["observe"]}
    assert watching == {"prometheus", "grafana"}
    for name in watching:
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


def test_one_line_of_the_example_turns_the_gpu_on() -> None:
    assert "#COMPOSE_PROFILES=gpu" in EXAMPLE.splitlines()
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_example_names_exactly_the_variables_compose_reads() -> None:
    named = dict(re.findall(r"^#(\w+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert set(named) - {"COMPOSE_PROFILES"} == set(variables(COMPOSE))
    assert {name: named[name] for name in variables(COMPOSE)} == {
        name: default or "" for name, default in variables(COMPOSE).items()
    }


def test_images_and_bases_are_pinned() -> None:
    assert re.fullmatch(r"valkey/valkey:\d+\.\d+-alpine", SERVICES["redis"]["image"])
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert all(SERVICES[name]["image"].endswith(f":{version[1]}") for name in OURS)


def test_valkey_keeps_what_it_acknowledged() -> None:
    options = dict(shlex.split(line)[:2] for line in SERVICES["redis"]["command"][1:])
    assert options == {
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--save": "",
        "--maxmemory-policy": "noeviction",
    }
    assert any(volume.endswith(":/data") for volume in SERVICES["redis"]["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["redis"]["ports"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_healthchecks_and_volumes_parse(name: str) -> None:
    service = SERVICES[name]
    if check := service.get("healthcheck"):
        assert check["test"][0] in ("CMD", "CMD-SHELL")
        assert seconds(check["timeout"]) <= 5
        assert seconds(check["interval"]) >= 1
    for needed, condition in service.get("depends_on", {}).items():
        assert "profiles" not in SERVICES[needed], "would be started without its profile"
        if condition["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[needed]
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
            assert volume.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_build_targets_exist(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (ROOT / build["dockerfile"]).is_file()
    assert f" AS {build['target']}\n" in DOCKERFILE
    assert build["target"] in SERVICES[name]["image"]


def test_the_dockerfile_runs_as_nobody_special_and_copies_what_exists() -> None:
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    for path in (line[1:] for line in ignored if line.startswith("!")):
        assert (ROOT / path).exists(), path
    for words in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / source).exists() for source in words.split()[:-1]), words
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    final = {stage.split()[2]: stage for stage in stages}
    for target in ("runtime", "worker-gpu"):
        assert re.findall(r"^USER (\w+)$", final[target], re.MULTILINE)[-1] == "pagestream"
    assert 'ENTRYPOINT ["pagestream"]' in final["runtime"]
    assert "PYTHONSAFEPATH=1" in final["runtime"]


@pytest.mark.parametrize("name", OURS)
def test_commands_are_commands_of_ours(name: str) -> None:
    """The real command line parses the words compose would run, up to the point of running."""
    done = command_line(words_of(name), "--help")
    assert done.returncode == 0, done.stderr
    assert command_line(words_of(name), "--no-such-flag", "--help").returncode == 2


@pytest.mark.parametrize("name", OURS)
def test_settings_are_settings_of_ours(name: str) -> None:
    given = [key for key in SERVICES[name]["environment"] if key.startswith("PAGESTREAM_")]
    assert "PAGESTREAM_REDIS_URL" in given
    for key in given:
        kinds = {"gateway": GatewaySettings, "jobs": JobsSettings}
        settings = kinds.get(words_of(name)[0], WorkerSettings)
        assert key.removeprefix("PAGESTREAM_").lower() in settings.model_fields


@pytest.mark.parametrize("name", OURS)
def test_nothing_is_written_outside_of_volumes(name: str) -> None:
    assert SERVICES[name]["read_only"] is True
    assert SERVICES[name]["tmpfs"] == ["/tmp"]
    assert SERVICES[name]["init"] is True


def test_a_gateway_has_more_time_to_stop_than_it_takes() -> None:
    assert seconds(SERVICES["gateway"]["stop_grace_period"]) >= DRAIN_S + 5


def test_a_worker_has_more_time_to_stop_than_it_takes() -> None:
    drain_s = WorkerSettings.model_fields["grace"].default
    workers = [service for name, service in SERVICES.items() if name.startswith("worker")]
    assert len(workers) == 2
    assert all(seconds(worker["stop_grace_period"]) >= drain_s + 15 for worker in workers)


def words_of(name: str) -> list[str]:
    return [substituted(word) for word in SERVICES[name]["command"]]


def test_what_compose_would_start_answers_a_prompt(tmp_path: Path) -> None:
    """Every service of a plain `up`, as local processes: its own command, and its own settings."""
    with ExitStack() as stack:
        # Valkey's own command, with its port and files moved to where a test may have them.
        socket = tmp_path / "redis.sock"
        moved = ["--port 0", f"--unixsocket {socket}", f"--dir {tmp_path}"]
        command = [find_server(), *SERVICES["redis"]["command"][1:], *moved, "--logfile log"]
        stack.enter_context(process(command, dict(os.environ)))
        url = f"unix://{socket}?db=0"
        redis = stack.enter_context(Redis.from_url(url, decode_responses=True))
        until_answers(redis)
        for option, value in (
            ("appendonly", "yes"),
            ("maxmemory-policy", "noeviction"),
            ("save", ""),
        ):
            assert redis.config_get(option) == {option: value}

        # The producer may come first: the job waits.
        producer = stack.enter_context(process(ours(words_of("producer")), environment(url)))
        port = {"PAGESTREAM_HEALTH_PORT": str(free_port())}
        worker = stack.enter_context(process(ours(words_of("worker")), environment(url) | port))
        door = {"PAGESTREAM_PORT": str(free_port())}
        gateway = stack.enter_context(process(ours(words_of("gateway")), environment(url) | door))
        probe = {"PAGESTREAM_HEALTH_PORT": str(free_port())}
        given = {
            name: substituted(value) for name, value in SERVICES["jobs"]["environment"].items()
        }
        jobs = stack.enter_context(
            process(ours(words_of("jobs")), environment() | given | environment(url) | probe)
        )
        _, said = producer.communicate(timeout=100)
        assert producer.returncode == 0, said
        assert is_healthy("worker", port)
        assert not is_healthy("worker", {"PAGESTREAM_HEALTH_PORT": "1"})
        until(lambda: is_healthy("gateway", door))
        assert not is_healthy("gateway", {"PAGESTREAM_PORT": "1"})
        until(lambda: is_healthy("jobs", probe))
        assert not is_healthy("jobs", {"PAGESTREAM_HEALTH_PORT": "1"})
        with openai.OpenAI(
            base_url=f"http://127.0.0.1:{door['PAGESTREAM_PORT']}/v1", api_key="none", timeout=60
        ) as client:
            told = client.completions.create(model="demo", prompt="def add(a, b):", max_tokens=8)
        assert told.usage.completion_tokens == 8
        for service in (gateway, worker, jobs):
            service.send_signal(signal.SIGTERM)
            _, said = service.communicate(timeout=30)
            assert service.returncode == 0, said


def is_healthy(name: str, moved: dict[str, str]) -> bool:
    """What a service's own health check says, with its port where the test has it."""
    _, *check = SERVICES[name]["healthcheck"]["test"]
    assert check[0] == "python"
    probe = subprocess.run(
        [sys.executable, *check[1:]], env=environment() | moved, capture_output=True
    )
    return probe.returncode == 0


def until_answers(redis: Redis) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            redis.ping()
            return
        except RedisError:
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.02)
