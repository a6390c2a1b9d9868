from __future__ import annotations

from d2_ext.layers.blocks import BlockSequence
from d2_ext.modeling.backbone import DetNet, MogaNet, VoVNet
from d2_ext.utils.memory import PeakMemory

import pytest
import torch
from torch import Tensor, nn

NETWORKS = {
    "VoVNet": lambda recompute: VoVNet(body="V-19-slim-dw-eSE", norm="BN", recompute=recompute),
    "DetNet": lambda recompute: DetNet(norm="BN", out_features=["stage4"], recompute=recompute),
    "MogaNet": lambda recompute: MogaNet(arch="xtiny", drop_path_rate=0.5, recompute=recompute),
}


def train_step(net: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients and buffers after one step, and the peak memory of its forward pass."""
    torch.manual_seed(1)
    with PeakMemory() as memory:
        loss = sum(feature.square().mean() for feature in net(x).values())
    loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return gradients, dict(net.named_buffers()), memory.peak


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputing_gives_the_same_gradients_and_statistics_with_less_memory(name: str) -> None:
    plain, saving = NETWORKS[name](False).train(), NETWORKS[name](True).train()
    saving.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 64, 64)
    gradients, buffers, peak = train_step(plain, x)
    other_gradients, other_buffers, other_peak = train_step(saving, x)
    for key, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[key], gradient, msg=key)
    for key, buffer in buffers.items():
        torch.testing.assert_close(other_buffers[key], buffer, msg=key)
    assert other_peak < 0.6 * peak


def test_blocks_are_not_recomputed_in_evaluation() -> None:
    class Counter(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.exp()  # keeps its result for the backward pass

    blocks = BlockSequence([Counter()], recompute=True)
    x = torch.ones(1, requires_grad=True)
    blocks.eval()(x).sum().backward()
    assert blocks[0].calls == 1
    blocks.train()(x).sum().backward()
    assert blocks[0].calls == 3
    with torch.no_grad():
        blocks(x)
    assert blocks[0].calls == 4


def test_aggregation_keeps_no_copies_alive_in_inference() -> None:
    # One block with 5 layers of 128 channels on 64x64 px: input 128, joined 128 + 5 * 128 = 768, output 256 channels.
    block = VoVNet(body="V-39-eSE", norm="", out_features=["stage2"]).eval().stage2[0]
    x = torch.rand(1, 128, 64, 64)
    cell = 64 * 64 * 4
    with torch.no_grad(), PeakMemory() as memory:
        expected = block(x)
    # While the 1x1 convolution runs: the joined map and its output (the input is the caller's).
    assert memory.peak <= (768 + 256 + 128) * cell  # 1.125 of the least possible; with copies it is (768 + 640) + 256
    with PeakMemory() as copies:
        torch.testing.assert_close(block(x).detach(), expected)
    assert copies.peak > 1.4 * memory.peak
