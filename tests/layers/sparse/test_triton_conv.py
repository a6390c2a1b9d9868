"""The Triton kernel gives what PyTorch's products of gathered rows give (on the CPU by Triton's interpreter)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from d2_ext.layers.sparse import conv as sparse_conv
from d2_ext.layers.sparse.context_norm import Epilogue
from d2_ext.layers.sparse.conv import active_rows, gather_conv
from d2_ext.layers.sparse.kernels import triton_kernels
from d2_ext.layers.sparse.linear import tap_major
from d2_ext.layers.sparse.position_norm import PositionNorm
from d2_ext.layers.sparse.rows import RowLayout

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("triton", reason="the kernel needs Triton (Linux)")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def triton_conv() -> ModuleType:
    """The module, interpreted where there is no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        sys.modules.pop("d2_ext.layers.sparse.triton_conv", None)
        from d2_ext.layers.sparse import triton_conv

        yield triton_conv
    sys.modules.pop("d2_ext.layers.sparse.triton_conv", None)  # the next import makes the compiled kernel again


def case(
    shapes: list[tuple[int, int, int]], share: float, channels: int, outputs: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, nn.Conv2d, Epilogue]:
    """Table, neighbors, convolution and epilogue of random maps and masks."""
    layout = RowLayout(tuple(shapes))
    index = active_rows([(torch.rand(n, 1, h, w) < share).float() for n, h, w in shapes])
    table = F.pad(torch.randn(layout.num_rows, channels), (0, 0, 0, 1)).to(DEVICE, dtype)
    segments = len(layout.segment_sizes)
    epilogue = Epilogue(
        torch.randn(segments, outputs).to(DEVICE),
        torch.randn(segments, outputs).to(DEVICE),
        layout.segment_of(index).to(DEVICE),
        torch.randn(len(index), outputs).to(DEVICE, dtype),
    )
    return table, layout.neighbors(index).to(DEVICE), nn.Conv2d(channels, outputs, 3).to(DEVICE), epilogue


def in_float64(epilogue: Epilogue) -> Epilogue:
    values = vars(epilogue).values()
    return Epilogue(*(v.double() if v.is_floating_point() else v for v in values))


# without shrinking, which takes minutes with an interpreter
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(
    seed=st.integers(0, 2**31),
    shapes=SHAPES,
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    channels=st.sampled_from([5, 16, 33]),
    outputs=st.sampled_from([1, 16, 19]),
    dtype=st.sampled_from(list(TOLERANCE)),
    fused=st.booleans(),
    bias=st.booleans(),
)
def test_any_rows_levels_batches_channels_and_dtypes_agree_with_pytorch(
    triton_conv: ModuleType,
    seed: int,
    shapes: list[tuple[int, int, int]],
    share: float,
    channels: int,
    outputs: int,
    dtype: torch.dtype,
    fused: bool,
    bias: bool,
) -> None:
    torch.manual_seed(seed)
    table, neighbors, conv, epilogue = case(shapes, share, channels, outputs, dtype)
    conv = conv.to(dtype)
    conv.bias = conv.bias if bias else None
    epilogue = epilogue if fused else None
    tiles = triton_conv.Tiles(rows=16, outputs=16, inputs=16, warps=4, stages=2)
    with torch.no_grad():
        found = triton_conv.triton_gather_conv(table, neighbors, tap_major(conv.weight), conv.bias, epilogue, tiles)
        conv.double()
        expected = gather_conv(table.double(), neighbors, conv.weight, conv.bias, epilogue and in_float64(epilogue))
    assert found.dtype == dtype
    assert found.shape == (len(neighbors), outputs)
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("number", range(4))
def test_every_candidate_gives_the_same(triton_conv: ModuleType, number: int) -> None:
    table, neighbors, conv, epilogue = case([(1, 9, 8), (2, 3, 3)], 0.7, 24, 40, torch.float32)
    tiles = triton_conv.CANDIDATES[number]
    with torch.no_grad():
        found = triton_conv.triton_gather_conv(table, neighbors, tap_major(conv.weight), conv.bias, epilogue, tiles)
        expected = gather_conv(table, neighbors, conv.weight, conv.bias, epilogue)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_norm_over_all_channels_of_a_row_follows_the_kernel(triton_conv: ModuleType) -> None:
    table, neighbors, conv, epilogue = case([(1, 9, 8), (2, 3, 3)], 0.7, 24, 40, torch.float32)
    norm = PositionNorm(40).to(DEVICE)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    by_position = norm.epilogue(norm.statistics(table), epilogue.segment, epilogue.context)
    with torch.no_grad():
        expected = gather_conv(table, neighbors, conv.weight, conv.bias, by_position)
        kernels = triton_kernels(table, neighbors, tap_major(conv.weight), conv.bias, by_position)
        assert len(kernels) == len(triton_conv.CANDIDATES)
        torch.testing.assert_close(next(iter(kernels.values()))(), expected, rtol=1e-5, atol=1e-5)


def test_triton_is_imported_only_where_it_is_used() -> None:
    for path in Path(sparse_conv.__file__).parent.glob("*.py"):
        imports = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert path.name == "triton_conv.py" or not any("triton" in line.split()[1] for line in imports)
