"""What `pip install pagestream` delivers: the wheel and the sdist are built and the wheel is used.

Builds with the environment's own hatchling, so nothing is fetched.
"""

import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import redis

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("producer", "worker", "kernels")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("pagestream-*-py3-none-any.whl")
    return path


def package_files() -> set[str]:
    """Every file of the three packages, as a path inside the wheel."""
    return {
        path.relative_to(ROOT / room).as_posix()
        for room in ROOMS
        for path in (ROOT / room / "pagestream").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_rooms(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert package_files() - held == set()
    assert {f"pagestream/{room}/py.typed" for room in ROOMS} <= held
    assert any(name.endswith(".lua") for name in held), "no Lua script is in the wheel"
    outside = {name for name in held if not name.startswith(("pagestream/", "pagestream-"))}
    assert outside == set(), "the wheel writes beside its own package"
    assert "pagestream/__init__.py" not in held


def test_the_sdist_can_be_built_and_tested(dist: Path) -> None:
    (path,) = dist.glob("pagestream-*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/test_wheel.py"} <= held
    assert {f"{path.split('/')[1]}/{path}" for path in package_files()} <= held


def test_the_light_client_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """A bare environment with redis and msgspec and nothing else imports the producer."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", "--disable-pip-version-check", wheel, cwd=tmp_path)
    site = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
        ).strip()
    )
    # redis-py 5 brings PyJWT along, 8 does not.
    for name in ("redis", "msgspec", "jwt")[: 3 if redis.__version__ < "6" else 2]:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (site / name).symlink_to(Path(spec.origin).parent)
    shown = run(
        python,
        "-P",
        "-c",
        "import pagestream.producer as p; print(p.__file__)",
        cwd=tmp_path,
    )
    assert shown.startswith(str(site))
    assert (tmp_path / "venv/bin/pagestream").is_file(), "the console script is missing"
