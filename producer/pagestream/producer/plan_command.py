"""The command `pagestream plan`: what a model takes on a GPU, before anybody has either.

This module knows the terminal and where a config.json may be; the arithmetic is `plan`'s.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from .commands import errors_as_sentences
from .errors import InvalidRequest
from .plan import DEFAULT_LENGTHS_TOKENS, DTYPE_BYTES, GPUS, Gpu, Plan, Shape, check_number, plan
from .tables import AsJson

Model = Annotated[
    str | None,
    typer.Option(help="A directory with a config.json, or a hub id (needs huggingface_hub)."),
]
GpuName = Annotated[
    str | None, typer.Option("--gpu", help=f"One of {', '.join(GPUS)}. [default: h200]")
]
Memory = Annotated[float | None, typer.Option(help="GB of a GPU that is not in the list.")]
Bandwidth = Annotated[float | None, typer.Option(help="Its memory's GB a second.")]
Tflops = Annotated[float | None, typer.Option(help="Its dense 16-bit TFLOP/s.")]
Dtype = Annotated[str, typer.Option(help=f"Of the weights: {', '.join(DTYPE_BYTES)}.")]
KvDtype = Annotated[str, typer.Option(help="Of the KV cache.")]
Overhead = Annotated[float, typer.Option(help="GB for activations, graphs and the driver.")]
Params = Annotated[
    str | None, typer.Option(help="Parameters, as 7B or 600M. [default: counted by the config]")
]
Lengths = Annotated[
    list[int] | None,
    typer.Option("--length", help="Tokens of a request, prompt and output; may be repeated."),
]


def plan_command(
    model: Model = None,
    gpu: GpuName = None,
    gpu_memory: Memory = None,
    bandwidth: Bandwidth = None,
    tflops: Tflops = None,
    dtype: Dtype = "bfloat16",
    kv_dtype: KvDtype = "bfloat16",
    overhead: Overhead = 2.0,
    params: Params = None,
    length: Lengths = None,
    json: AsJson = False,
) -> None:
    """Say what a model takes on a GPU, how many requests fit, and how fast it can be at most."""
    with errors_as_sentences():
        if model is None:
            raise InvalidRequest("name the model: pagestream plan --model DIRECTORY-OR-HUB-ID")
        shape = Shape.of_config(_config(model))
        if params is not None:
            shape = msgspec.structs.replace(shape, params=_count(params))
        planned = plan(
            shape,
            _gpu(gpu, gpu_memory, bandwidth, tflops),
            weight_bytes=_bytes_of("dtype", dtype),
            kv_bytes=_bytes_of("kv-dtype", kv_dtype),
            overhead_gb=check_number("--overhead", overhead, 0.0),
            lengths_tokens=length or DEFAULT_LENGTHS_TOKENS,
        )
    if json:
        sys.stdout.write(msgspec.json.encode(planned).decode() + "\n")
        return
    _show(planned, shape)


def _show(planned: Plan, shape: Shape) -> None:
    console = Console()
    table = Table(box=None, show_header=False)
    for name, value in (
        ("weights", f"{planned.weights_gb:.2f} GB ({_parameters(shape)})"),
        ("overhead", f"{planned.overhead_gb:g} GB"),
        ("left for the KV cache", f"{planned.free_gb:.2f} GB = {planned.kv_tokens:,} tokens"),
        (
            "KV of a token",
            f"{planned.kv_bytes_per_token / 2**20:.3g} MiB ("
            f"{planned.kv_bytes_per_pair_and_head} bytes a layer and head)",
        ),
        ("prefill, at most", f"{planned.prefill_tokens_per_s:,.0f} tokens/s"),
    ):
        table.add_row(name, value)
    console.print(table)
    rows = Table("length", "free / (length x KV)", "fit in blocks of 16", "decode, at most")
    for row in planned.rows:
        speed = f"{row.decode_tokens_per_s:,.0f} tokens/s"
        counts = (row.length_tokens, row.ideal_requests, row.requests)
        rows.add_row(*(f"{count:,}" for count in counts), speed)
    console.print(rows)
    if planned.reserved_requests is not None:
        console.print(
            f"Without paging, with the whole context of {shape.context_tokens:,} tokens reserved "
            f"for each: {planned.reserved_requests:,}."
        )


def _parameters(shape: Shape) -> str:
    active = f", {shape.active_params / 1e9:.2f} B a token" if shape.expert_params else ""
    return f"{shape.params / 1e9:.2f} B parameters{active}"


def _gpu(
    name: str | None, memory_gb: float | None, bandwidth: float | None, tflops: float | None
) -> Gpu:
    own = {"gpu-memory": memory_gb, "bandwidth": bandwidth, "tflops": tflops}
    if all(value is None for value in own.values()):
        known = GPUS.get((name or "h200").lower())
        if known is None:
            raise InvalidRequest(
                f"--gpu {name} is not one of {', '.join(GPUS)}; give its --gpu-memory, --bandwidth "
                "and --tflops instead"
            )
        return known
    if name is not None:
        raise InvalidRequest("give --gpu, or a GPU's own numbers, not both")
    given = [_above_0(flag, value) for flag, value in own.items()]
    return Gpu(memory_gb=given[0], bandwidth_gb_per_s=given[1], tflops=given[2])


def _above_0(flag: str, value: float | None) -> float:
    if value is None:
        raise InvalidRequest(f"--{flag} is missing: a GPU of its own needs all three numbers")
    return check_number(f"--{flag}", value, 0.001)


def _bytes_of(flag: str, name: str) -> float:
    if name not in DTYPE_BYTES:
        raise InvalidRequest(f"--{flag} {name} is not one of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[name]


def _count(text: str) -> float:
    factors = {"B": 1e9, "M": 1e6, "T": 1e12}
    factor = factors.get(text[-1:].upper())
    try:
        value = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1e15:  # nan, too
        raise InvalidRequest(f"--params {text} is not a number of parameters, like 7B or 600M")
    return value


def _config(model: str) -> dict[str, Any]:
    path = Path(model)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        file = _download(model)
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidRequest(f"{file} is not a config.json: {error}") from error


def _download(model: str) -> Path:
    if find_spec("huggingface_hub") is None:
        raise InvalidRequest(
            f"there is no {model}/config.json here; to look it up on the hub: pip install "
            "huggingface_hub"
        )
    hub: Any = import_module("huggingface_hub")
    errors: Any = import_module("huggingface_hub.errors")
    try:
        return Path(hub.hf_hub_download(model, "config.json"))
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise InvalidRequest(
            f"there is no {model}/config.json here, and the hub has none: {error}"
        ) from error


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan_command)
