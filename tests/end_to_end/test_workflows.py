""".github/workflows: what GitHub would run, checked here as far as it can be.

The files fit GitHub's schema (SchemaStore's, as `check-jsonschema` brings it); what they call is
there; and the step that compares a tag with the version is run.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
# YAML 1.1 reads the key `on` as true.
WORKFLOWS: dict[str, dict[Any, Any]] = {
    file.name: yaml.safe_load(file.read_text()) for file in FILES
}
JOBS = {(name, job): body for name, one in WORKFLOWS.items() for job, body in one["jobs"].items()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def commands() -> list[str]:
    return [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]


def check(*files: Path) -> subprocess.CompletedProcess[str]:
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    return subprocess.run(
        [sys.executable, *command, *map(str, files)], capture_output=True, text=True, timeout=60
    )


def test_they_fit_the_schema(tmp_path: Path) -> None:
    done = check(*FILES)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(FILES[0].read_text().replace("runs-on:", "runs-at:"))
    assert check(wrong).returncode == 1


@pytest.mark.parametrize("place", JOBS)
def test_each_job_may_little_and_ends(place: tuple[str, str]) -> None:
    assert WORKFLOWS[place[0]]["permissions"] == {"contents": "read"}
    assert JOBS[place]["timeout-minutes"] <= 60
    for step in JOBS[place]["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])


def test_what_they_make_is_a_target() -> None:
    targets = set(re.findall(r"^([\w-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = re.findall(r"^make ([a-z][\w-]*)", "\n".join(commands()), re.MULTILINE)
    assert made
    assert set(made) <= targets
    assert "$(VENV)/.dev:" in (ROOT / "Makefile").read_text()


def test_the_pythons_are_those_we_name() -> None:
    named = [one.split()[-1] for one in PROJECT["classifiers"] if ":: Python :: 3." in one]
    assert JOBS["ci.yml", "check"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_the_oldest_server_is_the_oldest_we_name() -> None:
    versions = [
        one["version"] for one in JOBS["ci.yml", "servers"]["strategy"]["matrix"]["include"]
    ]
    assert versions[0].startswith("6.2.")
    assert "Redis 6.2+ or Valkey" in (ROOT / "README.md").read_text()
    variable = JOBS["ci.yml", "servers"]["env"]
    assert list(variable) == ["PAGESTREAM_TEST_SERVER"]
    assert "PAGESTREAM_TEST_SERVER" in (ROOT / "tests/redis_server.py").read_text()


def test_every_role_has_an_image_under_composes_name() -> None:
    roles = re.findall(r"^FROM runtime AS (\S+)$", DOCKERFILE, re.MULTILINE)
    job = JOBS["release.yml", "images"]
    assert sorted(job["strategy"]["matrix"]["target"]) == sorted(roles)
    (names,) = [step["with"]["images"] for step in job["steps"] if "images" in step.get("with", {})]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    images = {one["image"] for one in services if "build" in one}
    image = names.rpartition("/")[2]
    released = {image.replace("${{ matrix.target }}", role) for role in roles}
    assert {f"{name}:{PROJECT['version']}" for name in released} == images


def test_compose_is_brought_up_with_services_it_has() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    said = "\n".join(commands())
    (started,) = re.findall(r"docker compose up .* 180 (.*)$", said, re.MULTILINE)
    assert set(started.split()) < services.keys()
    assert "docker compose run --rm producer" in said


@pytest.mark.parametrize(
    ("tag", "heading", "said"),
    [
        ("v0.1.0", "## 0.1.0 (2026-12-01)", None),
        ("v0.2.0", "## 0.1.0 (2026-12-01)", "the tag v0.2.0 is not v0.1.0"),
        ("v0.1.0", "## 0.1.0 (unreleased)", "CHANGELOG.md has no '## 0.1.0 (<date>)'"),
    ],
)
def test_a_tag_is_released_only_as_its_own_version(
    tmp_path: Path, tag: str, heading: str, said: str | None
) -> None:
    (step,) = [
        step for step in JOBS["release.yml", "build"]["steps"] if step.get("id") == "version"
    ]
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    output = tmp_path / "output"
    script = step["run"].replace("python -c", f"{sys.executable} -c")
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env={"GITHUB_REF_NAME": tag, "GITHUB_OUTPUT": str(output), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    if said is None:
        assert done.returncode == 0, done.stdout + done.stderr
        assert output.read_text() == "version=0.1.0\n"
    else:
        assert done.returncode == 1
        assert said in done.stdout
        assert not output.exists()
