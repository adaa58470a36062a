"""The plan as a test: who may import whom, what lies where, and what a light client loads.

Reads source with `ast` and files with `git ls-files`; imports nothing of the project except in a
subprocess, where the point is what gets loaded.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("producer", "worker", "kernels")

TOP_LEVEL = {
    *(
        "pyproject.toml",
        "README.md",
        "worker",
        "kernels",
        "producer",
        "docker-compose.yml",
        "tests",
    ),
    *("Makefile", "constraints.txt", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("benchmarks", "docs", "deploy"),
    *(".ci", ".github", ".gitignore", ".editorconfig", ".env.example", ".pre-commit-config.yaml"),
    ".gitattributes",
}

PURE = tuple(
    f"pagestream.worker.engine.{name}"
    for name in ("request", "blocks", "prefix_cache", "plan", "view", "scheduler")
)

SHARED = (
    "pagestream.worker.config",
    "pagestream.worker.messages",
    "pagestream.worker.errors",
    "pagestream.producer.errors",
)

# Module prefix -> the modules of ours it may import; the longest matching prefix rules.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "pagestream.producer": ("pagestream.producer",),
    "pagestream.kernels": ("pagestream.kernels",),
    "pagestream.worker": ("pagestream.worker", "pagestream.producer"),
    "pagestream.worker.config": SHARED,
    "pagestream.worker.errors": SHARED,
    "pagestream.worker.messages": (),
    "pagestream.worker.health": SHARED,
    "pagestream.worker.frames": SHARED,
    "pagestream.worker.process": (*SHARED, "pagestream.worker.frames"),
    "pagestream.worker.queue": (
        *SHARED,
        "pagestream.worker.queue",
        "pagestream.worker.process",
        "pagestream.worker.models.hub",
        "pagestream.producer",
    ),
    "pagestream.worker.engine": (
        *SHARED,
        "pagestream.worker.engine",
        "pagestream.worker.models",
        "pagestream.kernels",
    ),
    "pagestream.worker.models": (*SHARED, "pagestream.worker.models", "pagestream.kernels"),
} | {name: (*SHARED, *PURE) for name in PURE}

# What the queue takes from the producer: the wire, never the client's conveniences.
QUEUE_NEVER = (
    "pagestream.producer.client",
    "pagestream.producer.cli",
    "pagestream.producer.gateway",
)

# They use everything, and nothing uses them.
OUTSIDE = ("pagestream.worker.bench", "pagestream.worker.chaos")

# Module prefix -> libraries it must not import itself.
NEVER: dict[str, set[str]] = {
    "pagestream.producer": {"torch", "triton", "transformers", "numpy", "safetensors"},
    "pagestream.worker.queue": {"torch", "triton"},
    "pagestream.worker.engine": {"redis"},
    "pagestream.worker.models": {"redis"},
    "pagestream.kernels": {"redis", "msgspec", "transformers"},
    # Their processes stay out of the way of what they measure.
    "pagestream.worker.bench.client": {"torch", "transformers"},
    "pagestream.worker.bench.gateway": {"torch", "transformers"},
    "pagestream.worker.bench.serve": {"torch", "transformers"},
} | {name: {"torch", "triton", "transformers", "redis", "numpy"} for name in PURE}

# Import name -> distribution, where they differ.
DISTRIBUTION = {
    "cloudcoil": "cloudcoil-models-keda",
    "kubernetes_validate": "kubernetes-validate",
    "opentelemetry": "opentelemetry-api",
    "yaml": "pyyaml",
    "jinja2": "jinja2",
    "_pytest": "pytest",
}


def tracked() -> list[Path]:
    """Every file git knows of or would add, relative to the root."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def module_name(path: Path) -> str:
    """`worker/pagestream/worker/queue/reply.py` -> `pagestream.worker.queue.reply`."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(room: str | None = None) -> list[Path]:
    """The Python files of one room's package, or of all three."""
    found = [
        p for r in ([room] if room else ROOMS) for p in (ROOT / r / "pagestream").rglob("*.py")
    ]
    return sorted(p for p in found if "__pycache__" not in p.parts)


def imports(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import statement, wherever in the file it stands."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{target}.{alias.name}"
                yield node.lineno, whole if is_module(whole) else target


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of ours on disk (`from . import keys` names one)."""
    parts = name.split(".")
    if len(parts) < 3 or parts[0] != "pagestream":
        return False
    path = ROOT / parts[1] / "pagestream" / Path(*parts[1:])
    return path.with_suffix(".py").is_file() or path.is_dir()


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def longest(name: str, table: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return table[max((p for p in table if within(name, p)), key=len)]


def back_edges(path: Path, name: str) -> list[str]:
    """Imports of one file that the plan does not allow, as `file:line message`."""
    allowed = longest(name, MAY_IMPORT)
    never = set[str]().union(*(libs for prefix, libs in NEVER.items() if within(name, prefix)))
    wrong = []
    for line, target in imports(path, name):
        ours = within(target, "pagestream")
        if ours and not any(within(target, prefix) for prefix in allowed):
            wrong.append(f"{name}:{line} imports {target}")
        for prefix in OUTSIDE:
            if within(target, prefix) and not within(name, prefix):
                wrong.append(f"{name}:{line} imports {target}, which stands outside")
        if within(name, "pagestream.worker.queue") and any(within(target, p) for p in QUEUE_NEVER):
            wrong.append(f"{name}:{line} imports {target}, which is the client's side")
        if target.split(".")[0] in never:
            wrong.append(f"{name}:{line} imports {target}")
    return wrong


def test_imports_go_one_way() -> None:
    assert [edge for path in sources() for edge in back_edges(path, module_name(path))] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pagestream.producer.client", "import pagestream.worker.config"),
        ("pagestream.producer.client", "def late():\n    import torch"),
        ("pagestream.kernels.rms_norm", "from pagestream.worker.models import spec"),
        ("pagestream.kernels.rms_norm", "import redis"),
        ("pagestream.worker.models.decoder", "from ..engine import scheduler"),
        ("pagestream.worker.engine.engine", "from pagestream.worker.queue import lease"),
        ("pagestream.worker.engine.engine", "from redis import Redis"),
        ("pagestream.worker.engine.scheduler", "from . import runner"),
        ("pagestream.worker.engine.blocks", "import torch"),
        ("pagestream.worker.llm", "from .bench import metrics"),
        ("pagestream.worker.service", "from .chaos import proxy"),
        ("pagestream.worker.queue.intake", "from torch import Tensor"),
        ("pagestream.worker.queue.intake", "from ..engine.scheduler import Scheduler"),
        ("pagestream.worker.queue.intake", "from pagestream.producer.client import Client"),
    ],
)
def test_a_back_edge_is_found(tmp_path: Path, name: str, source: str) -> None:
    path = tmp_path / "planted.py"
    path.write_text(source)
    assert back_edges(path, name) != []


def test_outer_folders_are_not_packages() -> None:
    """An `__init__.py` there would hide the other two rooms, or shadow the library `kernels`."""
    for room in ROOMS:
        assert not (ROOT / room / "__init__.py").exists()
        assert not (ROOT / room / "pagestream" / "__init__.py").exists()


def test_each_room_says_that_it_is_typed() -> None:
    for room in ROOMS:
        assert (ROOT / room / "pagestream" / room / "py.typed").is_file()


def test_every_module_says_what_it_is() -> None:
    files = [
        *sources(),
        *(ROOT / "benchmarks").rglob("*.py"),
        *(ROOT / "producer/examples").glob("*.py"),
    ]
    silent = [
        str(p.relative_to(ROOT)) for p in files if not ast.get_docstring(ast.parse(p.read_text()))
    ]
    # An empty __init__.py has nothing to explain.
    assert [name for name in silent if (ROOT / name).stat().st_size > 0] == []


def test_the_top_level_holds_what_is_agreed() -> None:
    assert {path.parts[0] for path in tracked()} - TOP_LEVEL == set()


def test_no_file_names_a_path_of_one_machine() -> None:
    path_of_a_machine = re.compile(r"(?<![\w.$}])/(?:work|root|Users|home/\w+)/")
    found = []
    for path in tracked():
        if path == Path("tests/test_architecture.py"):
            continue
        text = (ROOT / path).read_bytes()
        if b"\0" in text:
            continue
        for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
            if path_of_a_machine.search(line):
                found.append(f"{path}:{number} {line.strip()[:80]}")
    assert found == []


def requirement_names(requirements: list[str]) -> set[str]:
    return {
        re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0].lower().replace("_", "-")
        for line in requirements
    }


def declared(*extras: str) -> set[str]:
    """Distributions that an install with these extras asks for by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names, todo = requirement_names(project["dependencies"]), list(extras)
    while todo:
        lines = project["optional-dependencies"][todo.pop()]
        names |= requirement_names(lines)
        for line in lines:
            if match := re.match(r"pagestream\[([\w,]+)\]", line):
                todo += match[1].split(",")
    return names - {"pagestream"}


def undeclared(files: list[Path], names: set[str]) -> list[str]:
    beside_the_rooms = {path.name for room in ROOMS for path in (ROOT / room).iterdir()}
    known = {*sys.stdlib_module_names, "pagestream"} | beside_the_rooms
    missing = set()
    for path in files:
        siblings = {p.stem for p in path.parent.rglob("*.py")} | {
            p.stem for p in (ROOT / "tests").glob("*.py")
        }
        name = module_name(path) if path.is_relative_to(ROOT) else path.stem
        for line, target in imports(path, name):
            top = target.split(".")[0]
            distribution = DISTRIBUTION.get(top, top).lower().replace("_", "-")
            if top not in known | siblings and distribution not in names:
                missing.add(f"{path.relative_to(ROOT)}:{line} {top}")
    return sorted(missing)


def test_every_import_is_a_declared_dependency() -> None:
    """Something that only happens to be installed breaks on the next machine."""
    every_extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert undeclared(sources("producer"), declared(*(set(every_extra) - {"dev", "worker"}))) == []
    bench = ROOT / "worker/pagestream/worker/bench"
    rooms = [path for path in sources("worker") + sources("kernels") if bench not in path.parents]
    assert undeclared(rooms, declared("worker", "trace")) == []
    assert undeclared([*bench.glob("*.py")], declared("bench")) == []
    assert undeclared(sorted((ROOT / "tests").rglob("*.py")), declared("dev")) == []


def test_constraints_pin_what_pyproject_declares() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line[:1] not in ("", "#")
    ]
    assert all("==" in line for line in lines)
    assert declared("dev") - requirement_names(lines) == set()


@pytest.mark.parametrize("module", ["pagestream.producer"])
def test_the_light_client_stays_light(module: str) -> None:
    """Importing the client loads no torch, no numpy, and none of the command line's libraries."""
    heavy = (
        "torch",
        "triton",
        "numpy",
        "transformers",
        "pydantic",
        "typer",
        "rich",
        "pagestream.worker",
    )
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'producer')!r}); import {module}\n"
        f"print(*[name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_nobody_asks_this_machine_what_time_it_is() -> None:
    """Deadlines are Redis's time, waits are monotonic: clocks of hosts may be hours off."""
    asked = []
    for path in [*sources("producer"), *sources("worker")]:
        # A benchmark names its files by the date; `skewed` is what puts clocks wrong.
        if "bench" in path.parts or path.name == "skewed.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "time.time",
                "time.time_ns",
                "datetime.now",
                "datetime.datetime.now",
            ):
                asked.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert asked == []
