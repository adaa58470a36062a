import pytest
from kernel_cases import check_merge_pieces

from pagestream.kernels._merge_pieces import merge_pieces


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.interpreter),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize(("heads", "head_dim"), [(6, 32), (7, 96), (1, 256)])
def test_pieces_are_weighed_by_their_share(device, heads, head_dim):
    # No piece, one, several, and more than a program holds at a time.
    check_merge_pieces(merge_pieces, [2, 0, 1, 17, 270], heads, head_dim, device)
