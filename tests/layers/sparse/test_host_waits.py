"""Sparse inference makes a GPU's host wait once a branch, and needs no more memory than the dense definition.

No GPU is needed: the tensors are fake ones of a CUDA device, whose values nobody can ask for. The only function that
may ask, ``to_host``, is replaced by one that counts and answers.
"""

from __future__ import annotations

from typing import Any

from d2_ext.layers.sparse import context_norm, rows
from d2_ext.layers.sparse import inference as sparse_inference
from d2_ext.layers.sparse import tower as sparse_tower
from d2_ext.layers.sparse.gumbel import Mask
from d2_ext.layers.sparse.tower import ContextSparseTower, SparseTowerConfig
from d2_ext.utils.memory import PeakMemory

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

SHAPES = [(2, 8, 10), (2, 4, 5), (2, 2, 3)]


class Transfers(TorchDispatchMode):
    """Notes operators that hand a GPU's values to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        from_gpu = bool(args) and isinstance(args[0], torch.Tensor) and args[0].device.type == "cuda"
        to_cpu = isinstance(outputs, torch.Tensor) and outputs.device.type == "cpu"
        asks = func in (torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default)
        if from_gpu and (asks or to_cpu):
            self.names.append(str(func))
        return outputs


def fake_gpus_work() -> bool:
    """Whether this PyTorch computes on fake tensors of a GPU that is not there; 2.6 draws on the GPU all the same."""
    with FakeTensorMode():
        try:
            torch.empty(2, 3, device="cuda").uniform_()[:, 1].contiguous()
        except RuntimeError:
            return False
    return True


@pytest.mark.skipif(not fake_gpus_work(), reason="this PyTorch has no fake tensors of a GPU without the GPU")
@pytest.mark.parametrize("active", [[40, 9, 3], [160, 9, 12]], ids=["sparse", "two levels dense"])
@pytest.mark.parametrize("needed", [False, True])
def test_a_gpus_host_waits_once_a_branch(monkeypatch: pytest.MonkeyPatch, active: list[int], needed: bool) -> None:
    answers: list[list[int]] = []

    def to_host(values: torch.Tensor) -> list[int]:
        assert values.device.type == "cuda"
        answers.append(active)
        return active

    monkeypatch.setattr(sparse_inference, "to_host", to_host)
    monkeypatch.setattr(sparse_tower, "to_channels_last", lambda module: module)  # fake weights cannot be moved
    monkeypatch.setenv("D2_EXT_SPARSE_KERNEL", "torch")
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            tower = ContextSparseTower(
                channels=8, num_layers=3, outputs={"a": 6, "b": 2}, config=SparseTowerConfig(norm_groups=4)
            ).eval()
        maps = [torch.empty(n, 8, h, w, device="cuda") for n, h, w in SHAPES]
        masks = [Mask(torch.empty(n, 1, h, w, device="cuda")) for n, h, w in SHAPES]
        with Transfers() as transfers:
            out = tower(maps, masks, masks if needed else None)
    assert out.predictions["a"].values.shape == (sum(active), 6)
    assert len(answers) == 1
    assert transfers.names == []


def test_asking_for_the_numbers_is_one_transfer() -> None:
    assert rows.to_host(torch.tensor([3, 4])) == [3, 4]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.89])
def test_sparse_inference_needs_no_more_memory_than_the_dense_definition(
    monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(context_norm, "MOMENT_ROWS", 64)  # small beside these maps, as in use
    monkeypatch.setitem(rows.CHUNK_NUMBERS, "cpu", 4 * 64)
    tower = ContextSparseTower(
        channels=64, num_layers=4, outputs={"a": 18}, config=SparseTowerConfig(norm_groups=4)
    ).eval()
    maps = [torch.randn(1, 64, s, s).contiguous(memory_format=torch.channels_last) for s in (48, 24, 12)]
    masks = [Mask((torch.rand(1, 1, *x.shape[2:]) < share).float()) for x in maps]
    with torch.no_grad():
        with PeakMemory() as sparse:
            tower(maps, masks)
        with PeakMemory() as dense:
            tower.forward_dense(maps, masks)
    assert sparse.peak <= dense.peak
