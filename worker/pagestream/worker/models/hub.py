"""Finds a model's files, and reads what they say about generation.

A model is a local directory or a hub id; the hub's cache, `HF_TOKEN`, `HF_HOME` and
`HF_HUB_OFFLINE` work as usual. This module loads no torch, so that the queue process can use it,
and knows no weights.
"""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import BadCheckpoint, ModelNotFound

DEMO = "demo"
"""The name of the small trained model that comes with this package."""

_DEMO_DIRECTORY = Path(__file__).parents[1] / "demo_model"
_TEXT_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_WEIGHT_FILES = ["*.safetensors"]
_IGNORED_FILES = ["consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*"]


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What the model's own files say about generation; `None` where they say nothing."""

    temperature: float | None = None
    """0 (greedy) where the files say `do_sample: false`."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Every id that ends an output, from generation_config.json and config.json, ascending."""
    bos_token_id: int | None = None
    pad_token_id: int | None = None


def resolve(model: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return the directory that holds the model's files, downloading what the cache lacks.

    Args:
        model: a directory, a hub id such as `Qwen/Qwen3-0.6B`, or `demo` (a directory of that name
            is `./demo`).
        revision: branch, tag or commit of a hub id; None is the default branch.
        weights: False leaves the weight files out (configuration and tokenizer only).

    Raises:
        ModelNotFound: there is no such model or revision, access is refused, or the hub cannot be
            reached and the cache does not have it.
    """
    if local := local_directory(model):
        if revision is not None:
            raise ModelNotFound(
                f"revision={revision!r} was given, but {model!r} is a local directory; "
                "leave the revision out"
            )
        _require_config(local, model)
        return local
    directory = Path(_download(model, revision, weights))
    _require_config(directory, model)
    return directory


def local_directory(model: str) -> Path | None:
    """Return the directory that `model` names, or None if it may be a hub id.

    Raises:
        ModelNotFound: it can only mean a directory, and there is none.
    """
    local = _DEMO_DIRECTORY if model == DEMO else Path(os.path.expanduser(model))
    if local.is_dir():
        return local
    if local.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelNotFound(
            f"there is no directory {model!r}; give an existing directory with a config.json, or a "
            "hub id such as 'Qwen/Qwen3-0.6B'"
        )
    return None


def generation_defaults(directory: Path) -> GenerationDefaults:
    """Read the generation defaults and every end token of the model in `directory`.

    Raises:
        BadCheckpoint: a file is not valid JSON, or a value has a type that cannot be meant.
    """
    config = _read_json(directory / "config.json")
    generation = _read_json(directory / "generation_config.json")
    end_ids = {
        *_token_ids(generation.get("eos_token_id"), directory / "generation_config.json"),
        *_token_ids(config.get("eos_token_id"), directory / "config.json"),
    }
    values = {
        name: generation[name]
        for name in ("temperature", "top_k", "top_p", "min_p")
        if generation.get(name) is not None
    }
    if generation.get("do_sample") is False:
        values["temperature"] = 0.0
    values["eos_token_ids"] = sorted(end_ids)
    for name in ("bos_token_id", "pad_token_id"):
        values[name] = generation.get(name, config.get(name))
    try:
        return msgspec.convert(values, GenerationDefaults)
    except msgspec.ValidationError as error:
        raise BadCheckpoint(
            f"{directory}: the generation defaults {values} are not usable: {error}"
        ) from error


def _download(model: str, revision: str | None, weights: bool) -> str:
    at = f"{model!r}" if revision is None else f"{model!r} at revision {revision!r}"
    try:
        return snapshot_download(
            model,
            revision=revision,
            allow_patterns=_TEXT_FILES + (_WEIGHT_FILES if weights else []),
            ignore_patterns=_IGNORED_FILES,
        )
    except HFValidationError as error:
        raise ModelNotFound(
            f"{model!r} is neither a directory here nor a valid hub id (owner/name): {error}"
        ) from error
    except GatedRepoError as error:
        raise ModelNotFound(
            f"the hub refuses access to {at}: accept its licence on the model's page and set "
            "HF_TOKEN to a token of that account"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{model!r} has no revision {revision!r}; name an existing branch, tag or commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no model {model!r} that this token may see; check the spelling, and set "
            "HF_TOKEN if it is private"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelNotFound(
            f"{at} is not in the local cache and the hub cannot be reached (HF_HUB_OFFLINE="
            f"{os.environ.get('HF_HUB_OFFLINE', 'unset')}); connect once to download it, or give a "
            "local directory"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelNotFound(
            f"{at} could not be fetched: {error}; try again, or give a local directory"
        ) from error


def _require_config(directory: Path, model: str) -> None:
    if not (directory / "config.json").is_file():
        raise ModelNotFound(
            f"{model!r} has no config.json in {directory}; give a directory saved by "
            "save_pretrained()"
        )


def _read_json(path: Path) -> dict[str, Any]:
    """The file's object; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadCheckpoint(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _token_ids(value: Any, path: Path) -> list[int]:
    """An `eos_token_id` as a list: the files write an int, a list of ints, or null."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise BadCheckpoint(
                f"{path}: eos_token_id is {value!r}, not a token id or a list of them"
            )
    return ids
