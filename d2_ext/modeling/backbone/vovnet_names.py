"""Parameter names of VoVNet: those of published checkpoints, and those of our modules.

Published names have slashes in them (``stage2.OSA2_1.layers.0.OSA2_1_0/conv.weight``). As module names they are legal,
but counters that split scopes at slashes (fvcore's) fail on them. So modules have plain names
(``stage2.0.layers.0.weight``), and state dicts, which is what a checkpoint holds, have the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# of one unit (convolution and norm): ours -> published, the first prefix that fits
_LEAVES = {
    "dw.": "dw_conv3x3.",
    "pw.norm.": "pw_norm.",
    "pw.": "pw_conv1x1.",
    "norm.": "norm.",
    "conv_offset.": "conv_offset.",
    "conv.": "conv.",  # of a deformable unit
    "": "conv.",
}
_LEAVES_BACK = {"pw_conv1x1.": "pw.", "pw_norm.": "pw.norm.", "dw_conv3x3.": "dw."}
_LEAVES_BACK |= {"norm.": "norm.", "conv_offset.": "conv_offset.", "conv.": ""}

_STEM = re.compile(r"stem\.(\d)\.(.+)")
_UNIT = re.compile(r"stage(\d)\.(\d+)\.(?:layers\.(\d+)|(reduction|concat))\.(.+)")
_GATE = re.compile(r"stage(\d)\.(\d+)\.ese\.(.+)")

_PUBLISHED_STEM = re.compile(r"stem\.stem_(\d)/(.+)")
_PUBLISHED_UNIT = re.compile(
    r"stage(\d)\.OSA\d_(\d+)\.(?:layers\.(\d+)\.OSA\d_\d+_\d+|(?:conv_reduction|concat)\.OSA\d_\d+_(reduction_0|concat))/(.+)"
)
_PUBLISHED_GATE = re.compile(r"stage(\d)\.OSA\d_(\d+)\.ese\.(.+)")


def published_name(name: str) -> str:
    """Turn a name of our modules into the one of published checkpoints; other names stay as they are.

    Example:
        >>> published_name("stage3.0.layers.2.norm.weight")
        'stage3.OSA3_1.layers.2.OSA3_1_2/norm.weight'
    """
    if match := _STEM.fullmatch(name):
        return f"stem.stem_{int(match[1]) + 1}/{_leaf(match[2], _LEAVES)}"
    if match := _GATE.fullmatch(name):
        return f"stage{match[1]}.OSA{match[1]}_{int(match[2]) + 1}.ese.{match[3]}"
    if match := _UNIT.fullmatch(name):
        stage, index, layer, kind, leaf = match.groups()
        block = f"OSA{stage}_{int(index) + 1}"
        middle = {"reduction": f"conv_reduction.{block}_reduction_0", "concat": f"concat.{block}_concat"}.get(
            kind, f"layers.{layer}.{block}_{layer}"
        )
        return f"stage{stage}.{block}.{middle}/{_leaf(leaf, _LEAVES)}"
    return name


def module_name(name: str, deformable: Iterable[int] = ()) -> str:
    """Turn a published name into the one of our modules; other names stay as they are.

    Args:
        name: without a prefix such as ``backbone.bottom_up.``.
        deformable: numbers of the stages whose 3x3 convolutions are deformable units.

    Example:
        >>> module_name("stage3.OSA3_1.concat.OSA3_1_concat/conv.weight")
        'stage3.0.concat.weight'
    """
    if match := _PUBLISHED_STEM.fullmatch(name):
        return f"stem.{int(match[1]) - 1}.{_leaf(match[2], _LEAVES_BACK)}"
    if match := _PUBLISHED_GATE.fullmatch(name):
        return f"stage{match[1]}.{int(match[2]) - 1}.ese.{match[3]}"
    if match := _PUBLISHED_UNIT.fullmatch(name):
        stage, index, layer, kind, leaf = match.groups()
        middle = f"layers.{layer}" if kind is None else kind.removesuffix("_0")
        keep_conv = layer is not None and int(stage) in deformable and leaf.startswith("conv.")
        leaf = leaf if keep_conv else _leaf(leaf, _LEAVES_BACK)
        return f"stage{stage}.{int(index) - 1}.{middle}.{leaf}"
    return name


def _leaf(name: str, table: dict[str, str]) -> str:
    for prefix, other in table.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    return name
