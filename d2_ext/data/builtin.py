"""The data sets that are registered under fixed names, below the folder ``$DETECTRON2_DATASETS``."""

from __future__ import annotations

from pathlib import Path

from d2_ext.data.formats.crowdhuman import register_crowdhuman
from d2_ext.data.formats.uavdt import UAVDT_SEQUENCES, register_uavdt
from d2_ext.data.formats.visdrone import register_visdrone
from d2_ext.data.hit_uav import HIT_UAV_SPLITS, register_hit_uav
from d2_ext.synthetic.config import default_root
from d2_ext.synthetic.register import register_synthetic_drone

from detectron2.data import DatasetCatalog

__all__ = ["register_all_crowdhuman", "register_all_hit_uav", "register_all_uavdt", "register_all_visdrone"]

VISDRONE_FOLDERS = {
    "visdrone_train": "VisDrone2019-DET-train",
    "visdrone_val": "VisDrone2019-DET-val",
    "visdrone_test_dev": "VisDrone2019-DET-test-dev",
}


def register_all_visdrone(root: str | Path) -> None:
    """Register ``visdrone_train``, ``visdrone_val`` and ``visdrone_test_dev``; names that exist are left alone.

    Args:
        root: folder that holds VisDrone's official folders; it need not exist before the data is used.
    """
    for name, folder in VISDRONE_FOLDERS.items():
        if name not in DatasetCatalog:
            register_visdrone(name, Path(root) / folder)


def register_all_uavdt(root: str | Path) -> None:
    """Register ``uavdt_train`` and ``uavdt_test``; names that exist are left alone.

    Args:
        root: folder that holds ``UAVDT``; it need not exist before the data is used.
    """
    for split, sequences in UAVDT_SEQUENCES.items():
        if f"uavdt_{split}" not in DatasetCatalog:
            register_uavdt(f"uavdt_{split}", Path(root) / "UAVDT", sequences)


def register_all_crowdhuman(root: str | Path) -> None:
    """Register ``crowdhuman_train`` and ``crowdhuman_val``; names that exist are left alone.

    Args:
        root: folder that holds ``CrowdHuman/`` with ``annotation_<split>.odgt`` and ``Images/``; it need not exist
            before the data is used.
    """
    folder = Path(root) / "CrowdHuman"
    for split in ("train", "val"):
        if f"crowdhuman_{split}" not in DatasetCatalog:
            register_crowdhuman(f"crowdhuman_{split}", folder / f"annotation_{split}.odgt", folder / "Images")


def register_all_hit_uav(root: str | Path) -> None:
    """Register ``hit_uav_{train,val,test}`` and ``hit_uav_disjoint_{train,val,test}``; names that exist are left alone.

    Args:
        root: folder that holds ``hit_uav/`` with the published ``normal_json``, or its content; it need not exist
            before the data is used.
    """
    for split in HIT_UAV_SPLITS:
        if f"hit_uav_{split}" not in DatasetCatalog:
            register_hit_uav(f"hit_uav_{split}", Path(root) / "hit_uav", split)


register_all_visdrone(default_root())
register_all_uavdt(default_root())
register_all_crowdhuman(default_root())
register_all_hit_uav(default_root())
if "synthetic_drone_train" not in DatasetCatalog:
    register_synthetic_drone(default_root())
