import pytest
import torch
from kernel_cases import check_rms_norm, on_every_path, randn

from pagestream.kernels import rms_norm


@on_every_path
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 64), (5, 320), (3, 1000)])
def test_matches_the_formula(device, dtype, tokens, hidden, residual):
    check_rms_norm(rms_norm, tokens, hidden, device, dtype, residual=residual)


@on_every_path
def test_no_tokens(device, dtype):
    x = randn(0, 64, dtype=dtype, device=device)
    normed, residual = rms_norm(x, x.new_ones(64), 1e-6, x)
    assert normed.shape == residual.shape == (0, 64)


def test_rounds_before_the_weight_as_hugging_face_llama():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x = randn(64, 320, dtype=torch.bfloat16, device="cpu")
    theirs = LlamaRMSNorm(320, eps=1e-5).to(torch.bfloat16)
    theirs.weight.data = randn(320, dtype=torch.bfloat16, device="cpu", seed=1)
    assert torch.equal(rms_norm(x, theirs.weight, 1e-5)[0], theirs(x))


def test_a_row_knows_no_other_row():
    x, weight = (randn(*s, dtype=torch.float32, device="cpu") for s in ((70, 1000), (1000,)))
    whole = rms_norm(x, weight, 1e-6, x)[0]
    for tokens in (1, 2, 3, 17, 64):
        assert torch.equal(rms_norm(x[-tokens:], weight, 1e-6, x[-tokens:])[0], whole[-tokens:])


def test_refuses_a_weight_of_another_size():
    with pytest.raises(AssertionError, match="weight"):
        rms_norm(torch.zeros(2, 64), torch.zeros(32), 1e-6)
