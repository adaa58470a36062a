"""The README where it can be wrong: its example runs, its table is the settings, links exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

from pagestream.worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_example_streams_an_answer(start_worker, redis_url: str, queue_name: str) -> None:
    start_worker()
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    moved = example.replace("redis://localhost:6379/0", redis_url)
    moved = moved.replace('model="demo"', f'model="{queue_name}"')
    assert moved.count(redis_url) == moved.count(queue_name) == 1
    done = subprocess.run(
        [sys.executable, "-c", moved],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 20


def test_the_table_is_the_settings() -> None:
    rows = dict(re.findall(r"^\| `--([a-z-]+)` \| ([^|]+) \|", README, re.MULTILINE))
    fields = {name.replace("_", "-"): field for name, field in WorkerSettings.model_fields.items()}
    assert list(rows) == list(fields)
    for name, field in fields.items():
        if field.default is not None:
            assert rows[name].startswith(f"`{field.default}`"), name
        else:
            assert not rows[name].startswith("`"), name


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_the_documents_name_exist() -> None:
    """`worker/queue/lease.py` in a document is `worker/pagestream/worker/queue/lease.py`."""
    pages = [ROOT / "docs/architecture.md", ROOT / "docs/delivery.md", ROOT / "CONTRIBUTING.md"]
    missing = []
    for page in pages:
        for name in re.findall(
            r"`((?:producer|worker|kernels|docs|tests)/[\w/.-]+)`", page.read_text()
        ):
            room, _, _ = name.partition("/")
            if not (ROOT / name).exists() and not (ROOT / room / "pagestream" / name).exists():
                missing.append(f"{page.name}: {name}")
    assert missing == []


def test_tests_that_the_page_on_faults_names_exist() -> None:
    page = (ROOT / "docs/chaos.md").read_text()
    names = set(re.findall(r"`(?:tests/)?([\w/]+/test_\w+\.py)`", page))
    assert len(names) > 20
    assert [name for name in sorted(names) if not (ROOT / "tests" / name).exists()] == []
