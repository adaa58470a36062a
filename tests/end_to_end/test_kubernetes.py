"""deploy/kubernetes, as far as no cluster is needed.

Every object fits Kubernetes' own schema; images, ports, variables, probes and times agree with
compose and with the product; and the containers' commands run as local processes, with the settings
that the manifests give them, and answer their probes.
"""

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import kubernetes_validate
import pytest
import yaml
from loopback import free_port
from our_processes import command_line, environment, ours, process
from waiting import until

from pagestream.producer.gateway.cli import DRAIN_S
from pagestream.producer.gateway.settings import GatewaySettings
from pagestream.producer.jobs.settings import JobsSettings
from pagestream.worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/kubernetes"
VERSION = "1.37"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(FOLDER.rglob("*.yaml")):
        for one in yaml.safe_load_all(file.read_text()):
            yield f"{file.relative_to(FOLDER)}:{one['kind']}", one


OBJECTS = dict(objects())
PODS = {
    one["metadata"]["name"]: one["spec"]["template"]["spec"]
    for one in OBJECTS.values()
    if one["kind"] in ("Deployment", "StatefulSet")
}
IN_COMPOSE = {
    "pagestream-redis": "redis",
    "pagestream-worker": "worker",
    "pagestream-worker-gpu": "worker-gpu",
    "pagestream-gateway": "gateway",
    "pagestream-jobs": "jobs",
}
SETTINGS = {"pagestream-gateway": GatewaySettings, "pagestream-jobs": JobsSettings}
"""Of workers they are `WorkerSettings`."""
OURS = sorted(IN_COMPOSE.keys() - {"pagestream-redis"})


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in OBJECTS.values() if one["kind"] == kind]


def container(name: str) -> dict[str, Any]:
    (one,) = PODS[name]["containers"]
    return one


def settings_of(name: str) -> dict[str, str]:
    """The variables a container gets that are not somebody's own secret."""
    (shared,), (secret,) = of_kind("ConfigMap"), of_kind("Secret")
    assert container(name)["envFrom"] == [
        {"configMapRef": {"name": shared["metadata"]["name"]}},
        {"secretRef": {"name": secret["metadata"]["name"]}},
    ]
    own = {one["name"]: one["value"] for one in container(name)["env"] if "value" in one}
    return shared["data"] | secret["stringData"] | own


@pytest.mark.parametrize("place", OBJECTS)
def test_every_object_fits_its_schema(place: str) -> None:
    kubernetes_validate.validate(OBJECTS[place], VERSION, strict=True)


def test_a_field_that_is_none_is_found() -> None:
    wrong = yaml.safe_load((FOLDER / "00-namespace.yaml").read_text()) | {"colour": "red"}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_everything_is_in_the_one_namespace() -> None:
    (namespace,) = of_kind("Namespace")
    for one in OBJECTS.values():
        if one is not namespace:
            assert one["metadata"]["namespace"] == namespace["metadata"]["name"]


def test_what_composes_does_kubernetes_does() -> None:
    assert PODS.keys() == IN_COMPOSE.keys()
    for name, service in IN_COMPOSE.items():
        assert container(name)["image"] == COMPOSE[service]["image"]
    for name in OURS:
        words = [
            re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word)
            for word in COMPOSE[IN_COMPOSE[name]]["command"]
        ]
        assert container(name)["args"] == words
    assert container("pagestream-redis")["command"] == COMPOSE["redis"]["command"]


@pytest.mark.parametrize("name", PODS)
def test_nobody_is_root_and_nothing_is_written_outside_of_volumes(name: str) -> None:
    """The pod security standard `restricted`, which the namespace enforces, and more."""
    (namespace,) = of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod, inside = PODS[name]["securityContext"], container(name)["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inside == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert PODS[name]["automountServiceAccountToken"] is False
    # A service `pagestream-redis` would be a variable PAGESTREAM_REDIS_PORT=tcp://…
    assert PODS[name]["enableServiceLinks"] is False
    if name in OURS:
        assert pod["runAsUser"] == 10001
        assert "--uid 10001" in (ROOT / "deploy/Dockerfile").read_text()


@pytest.mark.parametrize("name", PODS)
def test_what_is_written_is_on_a_volume(name: str) -> None:
    mounts = {one["mountPath"]: one["name"] for one in container(name)["volumeMounts"]}
    volumes = {one["name"] for one in PODS[name].get("volumes", [])}
    for one in of_kind("StatefulSet"):
        volumes |= {claim["metadata"]["name"] for claim in one["spec"]["volumeClaimTemplates"]}
    assert set(mounts.values()) <= volumes
    needed = {"pagestream-redis": {"/data"}, "pagestream-worker-gpu": {"/models", "/triton-cache"}}
    assert mounts.keys() >= needed.get(name, set())
    if name in OURS:
        assert "/tmp" in mounts


@pytest.mark.parametrize("name", OURS)
def test_settings_are_settings_of_ours(name: str) -> None:
    model = SETTINGS.get(name, WorkerSettings)
    named = {one["name"] for one in container(name)["env"]} - {"HF_TOKEN"}  # transformers' own
    for variable in settings_of(name).keys() | named:
        assert variable.removeprefix("PAGESTREAM_").lower() in model.model_fields
    assert command_line(container(name)["args"], "--help").returncode == 0


@pytest.mark.parametrize("name", PODS)
def test_labels_select_what_they_are_to(name: str) -> None:
    (one,) = [
        one
        for one in OBJECTS.values()
        if one["metadata"]["name"] == name and "template" in str(one)
    ]
    labels = one["spec"]["template"]["metadata"]["labels"]
    chosen = one["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= labels.items()
    for budget in of_kind("PodDisruptionBudget"):
        if budget["metadata"]["name"] == name:
            assert budget["spec"]["selector"]["matchLabels"] == chosen
    for service in of_kind("Service"):
        if service["metadata"]["name"] == name:
            assert service["spec"]["selector"] == chosen
    (policy,) = of_kind("NetworkPolicy")
    allowed = policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert allowed.items() <= labels.items()


def test_there_is_a_budget_for_all_that_may_be_moved() -> None:
    assert {one["metadata"]["name"] for one in of_kind("PodDisruptionBudget")} == set(OURS)


def test_redis_is_where_the_settings_say() -> None:
    (url,) = {settings_of(name)["PAGESTREAM_REDIS_URL"] for name in OURS}
    (redis,) = [one for one in of_kind("Service") if one["metadata"]["name"] == "pagestream-redis"]
    assert url == f"redis://{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}/0"


def test_each_has_more_time_to_stop_than_it_takes() -> None:
    drain_s = WorkerSettings.model_fields["grace"].default
    for name in ("pagestream-worker", "pagestream-worker-gpu"):
        assert PODS[name]["terminationGracePeriodSeconds"] >= drain_s + 15
    pause_s = container("pagestream-gateway")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert PODS["pagestream-gateway"]["terminationGracePeriodSeconds"] >= pause_s + DRAIN_S + 5
    jobs_s = COMPOSE["jobs"]["stop_grace_period"]
    assert f"{PODS['pagestream-jobs']['terminationGracePeriodSeconds']}s" == jobs_s


def test_what_kubernetes_would_start_answers_its_probes(tmp_path: Path, redis_url: str) -> None:
    """Each with its own arguments and settings; only places are moved."""
    keys = tmp_path / "keys.json"
    keys.write_text('{"sk-anna": "anna"}')
    ports = {name: free_port() for name in OURS if name != "pagestream-worker-gpu"}
    moved = {
        "pagestream-jobs": {"PAGESTREAM_HEALTH_PORT": str(ports["pagestream-jobs"])},
        "pagestream-worker": {"PAGESTREAM_HEALTH_PORT": str(ports["pagestream-worker"])},
        "pagestream-gateway": {
            "PAGESTREAM_PORT": str(ports["pagestream-gateway"]),
            "PAGESTREAM_API_KEYS": str(keys),
        },
    }
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                process(
                    ours(container(name)["args"]),
                    environment()
                    | settings_of(name)
                    | moved[name]
                    # A name that no other test's worker has.
                    | {"PAGESTREAM_REDIS_URL": redis_url, "PAGESTREAM_SERVED_MODEL_NAME": "k8s"},
                )
            )
            for name in ports
        ]
        for name, port in ports.items():
            assert moved[name].keys() <= settings_of(name).keys()
            probes = [container(name)[f"{kind}Probe"] for kind in ("readiness", "liveness")]
            for probe in probes:
                until(lambda probe=probe, port=port: is_well(port, probe["httpGet"]["path"]))
        gateway = f"http://127.0.0.1:{ports['pagestream-gateway']}/v1/completions"
        body = {"model": "k8s", "prompt": "def add(a, b):", "max_tokens": 4}
        assert httpx2.post(gateway, json=body, timeout=60).status_code == 401
        key = {"Authorization": "Bearer sk-anna"}
        told = httpx2.post(gateway, json=body, headers=key, timeout=60)
        assert told.json()["usage"]["completion_tokens"] == 4
        for service in running:
            service.send_signal(signal.SIGTERM)
            _, said = service.communicate(timeout=30)
            assert service.returncode == 0, said
            assert all(line.startswith("{") for line in said.splitlines()), "the log is JSON"


@pytest.mark.parametrize("name", OURS)
def test_probes_ask_where_something_answers(name: str) -> None:
    """By the port's name; the paths are asked of real processes above."""
    (port,) = container(name)["ports"]
    variable = "PAGESTREAM_PORT" if port["name"] == "http" else "PAGESTREAM_HEALTH_PORT"
    assert settings_of(name)[variable] == str(port["containerPort"])
    paths = ["/health", "/ready"] if name in SETTINGS else ["/livez", "/readyz"]
    probes = [container(name)[f"{kind}Probe"]["httpGet"] for kind in ("liveness", "readiness")]
    assert probes == [{"path": path, "port": port["name"]} for path in paths]


def is_well(port: int, path: str) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}{path}").status_code == 200
    except httpx2.TransportError:
        return False
