"""Every kernel compiles for an H100 or H200 as the ops launch it, without a GPU here, and fits; and
for a consumer's GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

PER_BLOCK_SHARED_BYTES = 227 << 10
CONSUMER_SHARED_BYTES = 99 << 10
MAY_SPILL_BYTES = {"prefill 16/8 x 256": 64}
"""With half the rows a program it spills nothing, and takes twice as long."""
DECODES_AT_ONCE = {
    "decode 32/8 x 128, few": 1,
    "decode 32/8 x 128, 8": 2,
    "decode 32/8 x 128, some": 2,
    "decode 32/8 x 128, 40": 3,
    "decode 32/8 x 128": 2,
    "decode 32/32 x 96": 3,
    "decode 14/2 x 64, window": 4,
    "decode 16/8 x 256, few": 2,
    "decode 16/8 x 256": 2,
    "decode 32/32 x 100": 3,
}
BEGIN_EARLY = {
    "_batch_layout_kernel",
    "_few_rows_kernel",
    "_rms_norm_kernel",
    "_rope_and_cache_kernel",
    "_silu_mul_kernel",
}
NOT_AHEAD = {
    "_decode_attention_kernel": ("unsettled", "fp32"),
    "_merge_pieces_kernel": ("unsettled",),
}
"""Kernels that read what is settled while the one in front still runs, and in which cases not."""


def reads_ahead(kernel):
    name, case = kernel["kernel"], kernel["case"]
    return name in NOT_AHEAD and not any(word in case for word in NOT_AHEAD[name])


def probed(capability, shared_bytes, folder):
    """What the probe says of every kernel."""
    env = os.environ | {"TRITON_CACHE_DIR": str(folder)}
    env.pop("TRITON_INTERPRET", None)
    probe = Path(__file__).parent / "compile_probe.py"
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(probe), str(capability), str(shared_bytes)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return probed(90, PER_BLOCK_SHARED_BYTES, tmp_path_factory.mktemp("triton"))


@pytest.mark.timeout(300)
def test_every_kernel_fits(report):
    for kernel in report:
        assert kernel["spilled_bytes"] <= MAY_SPILL_BYTES.get(kernel["case"], 0), kernel
        assert kernel["shared_bytes"] <= PER_BLOCK_SHARED_BYTES, kernel


@pytest.mark.timeout(300)
def test_every_kernel_fits_where_a_program_has_less_shared_memory(tmp_path):
    for kernel in probed(89, CONSUMER_SHARED_BYTES, tmp_path):
        assert kernel["shared_bytes"] <= CONSUMER_SHARED_BYTES, kernel


def test_kernels_of_many_tokens_use_the_tensor_cores_of_a_warpgroup(report):
    names = ["_prefill_attention_kernel", "_many_rows_kernel"]
    many = [kernel for kernel in report if kernel["kernel"] in names]
    assert [kernel["kernel"] for kernel in many] == [names[0]] * 8 + [names[1]]
    for kernel in many:
        assert kernel["wgmma"], kernel


def test_as_many_programs_of_decode_attention_fit_on_a_processor_as_are_counted_on(report):
    """A few registers more, and it is one less: a seventh slower."""
    attention = {k["case"]: k for k in report if k["kernel"] == "_decode_attention_kernel"}
    for case, at_once in DECODES_AT_ONCE.items():
        kernel = attention[case]
        assert at_once * kernel["warps"] * 32 * kernel["registers"] <= 65536, kernel
        assert at_once * kernel["shared_bytes"] <= PER_BLOCK_SHARED_BYTES, kernel


def test_a_kernel_that_begins_early_waits_before_it_touches_what_others_write(report):
    early = [kernel for kernel in report if kernel["may_begin_early"]]
    assert {kernel["kernel"] for kernel in early} >= BEGIN_EARLY
    for kernel in early:
        assert kernel["waits"], kernel
        assert kernel["writes_before_wait"] == 0, kernel
        # The norm's weight is nobody's output; what is settled need not be waited for.
        may_read = kernel["kernel"] == "_rms_norm_kernel" or reads_ahead(kernel)
        assert may_read == (kernel["reads_before_wait"] > 0), kernel
    for kernel in report:
        assert kernel["waits"] == kernel["may_begin_early"], kernel


def test_decode_attention_reads_no_further_ahead_than_it_counts_on(report):
    """What lies behind may be the newest key, which the kernel in front still writes."""
    for kernel in report:
        if kernel["kernel"] == "_decode_attention_kernel" and reads_ahead(kernel):
            assert kernel["copies_before_last_wait"] == 2 * (kernel["stages"] - 1), kernel


def test_the_probe_sees_every_kernel(report):
    room = Path(__file__).parents[2] / "kernels/pagestream/kernels"
    launched = {
        line.split("(")[0].removeprefix("def ")
        for path in room.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def _") and line.split("(")[0].endswith("_kernel")
    }
    assert {kernel["kernel"] for kernel in report} == launched
