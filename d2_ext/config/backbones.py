"""Config keys of the backbones VoVNet, DetNet and MogaNet.

Freezing and the pyramid's width are Detectron2's own keys: ``MODEL.BACKBONE.FREEZE_AT`` (its default 2 freezes the
stem and the first stage; published VoVNet configs set 0) and ``MODEL.FPN``.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode


def add_backbones_config(cfg: CfgNode) -> None:
    """Add ``MODEL.VOVNET``, ``MODEL.DETNET`` and ``MODEL.MOGANET``.

    Another package may have made a node of these names: its keys keep their values, so that configs of both load.
    """
    vovnet: dict[str, Any] = {
        # V-19-slim-dw-eSE, V-19-dw-eSE, V-19-slim-eSE, V-19-eSE, V-39-eSE, V-57-eSE, V-99-eSE; without eSE (version 1)
        # V-27-slim, V-39, V-57.
        "CONV_BODY": "V-39-eSE",
        # Of stem, stage2, stage3, stage4, stage5; stages behind the last one are not built.
        "OUT_FEATURES": ["stage2", "stage3", "stage4", "stage5"],
        # FrozenBN, BN, SyncBN, GN (not for the slim bodies), LN, or "" for none.
        "NORM": "FrozenBN",
        # Published configs carry these two and nothing ever used them: any other value is an error that says so.
        "OUT_CHANNELS": 256,
        "BACKBONE_OUT_CHANNELS": 256,  # see OUT_CHANNELS
        # Deformable 3x3 convolutions in stages 2, 3, 4, 5 (not for the dw bodies).
        "STAGE_WITH_DCN": (False, False, False, False),
        "WITH_MODULATED_DCN": False,  # version 2 of the deformable convolutions
        "DEFORMABLE_GROUPS": 1,  # groups of channels that share their offsets
        # Once FREEZE_AT >= 1, freeze the batch norms of all stages, as the published code does.
        "FREEZE_ALL_NORMS": False,
        # Gate only the last block of a stage: needed for timm's weights of 39b, 57b and 99b.
        "ESE_LAST_ONLY": False,
        # Recompute activations in the backward pass: less memory, more time.
        "RECOMPUTE": False,
    }
    detnet: dict[str, Any] = {
        # Of stem, stage2 to stage6; stages behind the last one are not built.
        "OUT_FEATURES": ["stage2", "stage3", "stage4", "stage5", "stage6"],
        # FrozenBN, BN, SyncBN, GN, LN, or "" for none.
        "NORM": "FrozenBN",
        # Stages 5 and 6 with 256 instead of 1024 output channels (another reading of the paper).
        "NARROW": False,
        # Stride of stages 3 and 4 in the first 1x1 convolution; weights of DetNet_pytorch need False.
        "STRIDE_IN_1X1": False,
        # Recompute activations in the backward pass: less memory, more time.
        "RECOMPUTE": False,
        # Pyramid: "standard" (a 3x3 convolution on every level), or "detnet_pytorch" (only on P2 and P3, and P2 gets
        # P3 behind its convolution), which that repository's detectors need.
        "FPN_STYLE": "standard",
        # From stride 16 to 8 to 4: "nearest", "bilinear", or "bilinear_aligned", which weights of DetNet_pytorch need.
        "FPN_UPSAMPLE": "nearest",
    }
    moganet: dict[str, Any] = {
        # xtiny, tiny, small, base, large, xlarge.
        "ARCH": "tiny",
        # Of stem, stage1 to stage4; stages behind the last one are not built.
        "OUT_FEATURES": ["stage1", "stage2", "stage3", "stage4"],
        # The published detectors train their batch norms: BN or SyncBN.
        "NORM": "BN",
        # Stochastic depth of the last block. Published: 0.05 xtiny, 0.1 tiny and small, 0.2 base, 0.3 large.
        "DROP_PATH_RATE": 0.1,
        # Start of layer scales and decomposition factors.
        "SCALE_INIT": 1e-5,
        # Twice the activation of the gate: needed for weights trained with attn_force_fp32 (those of OpenMixup).
        "DOUBLE_SILU": False,
        # Recompute activations in the backward pass: less memory, more time.
        "RECOMPUTE": False,
    }
    for name, keys in (("VOVNET", vovnet), ("DETNET", detnet), ("MOGANET", moganet)):
        if name not in cfg.MODEL:
            cfg.MODEL[name] = CfgNode()
        for key, value in keys.items():
            if key not in cfg.MODEL[name]:
                cfg.MODEL[name][key] = value
