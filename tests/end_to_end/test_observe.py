"""The files of deploy/observe load as they are, and name only metrics that are really exported."""

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from gateway_process import GatewayProcess
from jobs_process import JobsProcess
from loopback import free_port
from prometheus_client.parser import text_string_to_metric_families
from redis_server import RedisServer
from stub_engine import StubOptions
from waiting import until
from worker_harness import Client, Worker

from pagestream.producer.keys import Keys

ROOT = Path(__file__).parents[2]
OBSERVE = ROOT / "deploy" / "observe"
DASHBOARD = json.loads((OBSERVE / "grafana" / "dashboards" / "pagestream.json").read_text())
RULES = yaml.safe_load((OBSERVE / "alerts.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

QUEUE = Keys("observed")


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard, with its variables filled in, and of the alerts."""
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    filled = [one.replace("$__rate_interval", "1m").replace("$model_name", ".*") for one in found]
    return [*filled, *(rule["expr"] for rule in ALERTS)]


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector below a node of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        below = getattr(node, name, None)
        for one in below if isinstance(below, list) else [below] if below is not None else []:
            yield from selectors(one)


def scrape(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def is_up(port: int) -> bool:
    try:
        return bool(scrape(port))
    except OSError:
        return False


@pytest.fixture(scope="module")
def exported(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, set[str]]:
    """Sample name -> its labels, as a worker that has ended a job, a gateway and jobs give them."""
    model = tmp_path_factory.mktemp("model")
    (model / "config.json").write_text("{}")
    port, jobs_port = free_port(), free_port()
    flags = {"health_port": port}
    worker = Worker(redis_server.url, QUEUE, model, StubOptions(), flags=flags).start()
    client = Client(redis_server.url, QUEUE)
    try:
        client.submit("j", prompt_ids=[1], sampling={"max_tokens": 5, "ignore_eos": True})
        client.result("j")
        pages = [scrape(port)]
        with GatewayProcess(redis_server.url, model) as gateway:
            pages.append(scrape(gateway.port))
        with JobsProcess(redis_server.url, model, "--health-port", str(jobs_port)):
            until(lambda: is_up(jobs_port), "the start of the jobs process")
            pages.append(scrape(jobs_port))
    finally:
        worker.end()
        client.redis.close()
    names: dict[str, set[str]] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                names.setdefault(sample.name, set()).update(sample.labels)
    return names


def test_every_expression_names_metrics_and_labels_that_are_exported(exported) -> None:
    seen: set[str] = set()
    for text in expressions():
        for selector in selectors(promql_parser.parse(text)):
            assert selector.name in exported, f"{selector.name} of {text!r} is not exported"
            labels = {matcher.name for matcher in selector.matchers.matchers}
            assert labels <= exported[selector.name], f"{labels} of {text!r}"
            seen.add(selector.name)
    assert len(seen) > 20


def test_a_metric_that_is_not_exported_would_be_found() -> None:
    text = 'sum(rate(pagestream_nothing_total{a="b"}[1m])) / max(max_over_time(other[1h:1m]))'
    names = [one.name for one in selectors(promql_parser.parse(text))]
    assert names == ["pagestream_nothing_total", "other"]
    with pytest.raises(ValueError):
        promql_parser.parse("sum(rate(x[1m])")


def test_the_page_lists_exactly_what_is_exported(exported) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = set(re.findall(r"^\| `(pagestream_\w+)`", page, re.MULTILINE))
    ours = {one for one in exported if re.match(r"pagestream_.*(?<!_created)$", one)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours}
    assert families == listed


def test_alerts_are_whole() -> None:
    names = [rule["alert"] for rule in ALERTS]
    assert len(set(names)) == len(names) > 8
    for rule in ALERTS:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        for text in rule["annotations"].values():
            used = set(re.findall(r"\$labels\.(\w+)", text))
            assert used <= {"model_name", "instance"}, text
            assert text.count("{{") == text.count("}}")


def test_labels_that_an_alerts_text_names_are_left_by_its_expression() -> None:
    for rule in ALERTS:
        texts = " ".join(rule["annotations"].values())
        kept = {
            name for by in re.findall(r"by \(([^)]*)\)", rule["expr"]) for name in by.split(", ")
        }
        for name in re.findall(r"\$labels\.(\w+)", texts):
            assert not kept or name in kept, f"{rule['alert']} names {name}"


def test_the_dashboard_is_whole() -> None:
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z_]\w*)", json.dumps(PANELS))) <= {
        *variables,
        "__rate_interval",
    }
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]


def test_prometheus_and_grafana_find_their_files() -> None:
    prometheus = yaml.safe_load((OBSERVE / "prometheus.yml").read_text())
    for name in prometheus["rule_files"]:
        assert (OBSERVE / name).is_file()
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for job in prometheus["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        for name in found["names"]:
            ports = {
                value
                for variable, value in services[name]["environment"].items()
                if variable.endswith("PORT")
            }
            assert str(found["port"]) in ports, f"{name} answers on {ports}"
    (source,) = yaml.safe_load(
        (OBSERVE / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load(
        (OBSERVE / "grafana/provisioning/dashboards/pagestream.yml").read_text()
    )["providers"]
    assert provider["type"] == "file"
