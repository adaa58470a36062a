"""Finding a model's files: directories, a hub that answers as the real one, and its refusals."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pagestream.worker.models.errors import BadCheckpoint, ModelNotFound
from pagestream.worker.models.hub import generation_defaults, resolve

COMMIT = "0" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "consolidated.safetensors": b"the same weights again",
    "pytorch_model.bin": b"and again",
}


class _Hub(BaseHTTPRequestHandler):
    """Answers for owner/good as the hub does; other names meet the hub's refusals."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].removeprefix("/api/models").strip("/").split("/")
        name, file = path[1], path[-1]
        if name == "gated":
            self._answer(403, error="GatedRepo")
        elif name != "good":
            self._answer(401, error="RepoNotFound")
        elif "no-such-branch" in path:
            self._answer(404, error="RevisionNotFound")
        elif file in FILES:
            self._answer(200, FILES[file], etag=f'"{file}"')
        elif "tree" in path:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": name}
                for name, content in FILES.items()
            ]
            self._answer(200, json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": name} for name in FILES]
            body = {
                "id": "owner/good",
                "sha": COMMIT,
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
            self._answer(200, json.dumps(body).encode())

    def _answer(self, status: int, body: bytes = b"", *, error: str = "", etag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        for header, value in (("X-Error-Code", error), ("ETag", etag)):
            if value:
                self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def hub_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


_ASK = """
import json, os, sys
from pagestream.worker.models.errors import ModelNotFound
from pagestream.worker.models.hub import resolve
answers = []
for model, revision, weights in json.loads(sys.argv[1]):
    try:
        found = resolve(model, revision, weights=weights)
        answers.append(sorted(os.listdir(found)))
    except ModelNotFound as error:
        answers.append(str(error))
print(json.dumps({"answers": answers, "torch": "torch" in sys.modules}))
"""


def _ask(
    home: Path, questions: list[tuple[str, str | None, bool]], **env: str
) -> list[list[str] | str]:
    """Resolve in a fresh process, as huggingface_hub reads its environment when it is imported."""
    environment = os.environ | {"HF_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)} | env
    done = subprocess.run(
        [sys.executable, "-c", _ASK, json.dumps(questions)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert not said["torch"], "the queue process reads these files without torch"
    return said["answers"]


def test_a_model_of_the_hub(hub_url: str, tmp_path: Path) -> None:
    config_only, whole = _ask(
        tmp_path, [("owner/good", None, False), ("owner/good", "main", True)], HF_ENDPOINT=hub_url
    )
    assert config_only == ["config.json", "tokenizer.json"]
    assert whole == ["config.json", "model.safetensors", "tokenizer.json"]
    offline = _ask(
        tmp_path, [("owner/good", None, True), ("owner/other", None, True)], HF_HUB_OFFLINE="1"
    )
    assert offline[0] == whole
    assert "'owner/other' is not in the local cache" in offline[1]
    assert "HF_HUB_OFFLINE=1" in offline[1]


def test_refusals_of_the_hub_name_the_fix(hub_url: str, tmp_path: Path) -> None:
    unknown, gated, revision, name = _ask(
        tmp_path,
        [
            ("owner/unknown", None, True),
            ("owner/gated", None, True),
            ("owner/good", "no-such-branch", True),
            ("not a name", None, True),
        ],
        HF_ENDPOINT=hub_url,
    )
    assert "'owner/unknown'" in unknown
    assert "HF_TOKEN" in unknown
    assert "'owner/gated'" in gated
    assert "accept its licence" in gated
    assert "no revision 'no-such-branch'" in revision
    assert "'not a name' is neither a directory" in name


def test_an_unreachable_hub_is_said_to_be(tmp_path: Path) -> None:
    (answer,) = _ask(tmp_path, [("owner/good", None, True)], HF_ENDPOINT="http://127.0.0.1:9")
    assert "'owner/good'" in answer
    assert "local directory" in answer


def test_directories(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == tmp_path
    with pytest.raises(ModelNotFound, match="leave the revision out"):
        resolve(str(tmp_path), "main")
    for missing in (
        str(tmp_path / "absent"),
        "./absent",
        "a/b/c",
        "~/absent/model",
        "~nobody-of-that-name/m",
    ):
        with pytest.raises(ModelNotFound, match="there is no directory"):
            resolve(missing)


def _write(directory: Path, config: object, generation: object = None) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def test_generation_defaults_and_all_end_tokens(tmp_path: Path) -> None:
    generation = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "eos_token_id": [9, 7],
    }
    found = generation_defaults(
        _write(tmp_path, {"eos_token_id": 5, "bos_token_id": 1}, generation)
    )
    assert (found.temperature, found.top_p, found.top_k, found.min_p) == (0.6, 0.9, 20, None)
    assert found.eos_token_ids == (5, 7, 9)
    assert (found.bos_token_id, found.pad_token_id) == (1, None)


def test_without_a_generation_config(tmp_path: Path) -> None:
    found = generation_defaults(_write(tmp_path, {"eos_token_id": [3, 3]}))
    assert (found.temperature, found.eos_token_ids) == (None, (3,))
    assert generation_defaults(_write(tmp_path, {"eos_token_id": None})).eos_token_ids == ()


def test_do_sample_false_is_greedy(tmp_path: Path) -> None:
    found = generation_defaults(_write(tmp_path, {}, {"do_sample": False, "temperature": 0.7}))
    assert found.temperature == 0.0


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ({"eos_token_id": "</s>"}, None),
        ({"eos_token_id": True}, None),
        ({}, {"temperature": "warm"}),
        ({}, []),
    ],
)
def test_senseless_values_are_named(config: object, generation: object, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=str(tmp_path)):
        generation_defaults(_write(tmp_path, config, generation))
