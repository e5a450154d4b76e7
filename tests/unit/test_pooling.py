"""One feature vector per sample, of every shape of features."""

from __future__ import annotations

import pytest
import torch

from modbalance.pooling import pooled


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((4,), None), ((4, 5), None), ((4, 7, 5), 1), ((4, 5, 2, 3), (2, 3)), ((4, 5, 2, 3, 2), (2, 3, 4))],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_tokens_and_positions_are_averaged(
    shape: tuple[int, ...], dims: int | tuple[int, ...] | None, dtype: torch.dtype
) -> None:
    feature = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    wide = feature.double()
    expected = (wide if dims is None else wide.mean(dims)).reshape(4, -1)
    found = pooled(feature)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected)


def test_a_batch_may_be_empty() -> None:
    assert pooled(torch.empty(0, 3, 5)).shape == (0, 5)
