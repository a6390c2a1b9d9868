"""Names and modules that Detectron2 has and the stand-in has not: errors that say so and say what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from opcode import opname
from types import FrameType, ModuleType
from typing import Any, NoReturn

INSTALL_PAGE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"

# {package: its modules that are missing, with everything below them}
_MISSING = {
    "detectron2.checkpoint": ["catalog"],
    "detectron2.config": ["instantiate", "lazy"],
    "detectron2.data": ["benchmark"],
    "detectron2.data.datasets": [
        "cityscapes",
        "cityscapes_panoptic",
        "coco_panoptic",
        "lvis",
        "lvis_v0_5_categories",
        "lvis_v1_categories",
        "pascal_voc",
    ],
    "detectron2.evaluation": [
        "cityscapes_evaluation",
        "lvis_evaluation",
        "panoptic_evaluation",
        "pascal_voc_evaluation",
        "rotated_coco_evaluation",
        "sem_seg_evaluation",
    ],
    "detectron2": ["export", "projects", "tracking"],
    "detectron2.layers": ["aspp", "mask_ops", "roi_align", "roi_align_rotated", "rotated_boxes"],
    "detectron2.modeling.backbone": ["mvit", "regnet", "swin", "utils", "vit"],
    "detectron2.modeling.meta_arch": ["fcos", "panoptic_fpn", "rcnn", "semantic_seg"],
    "detectron2.modeling": [
        "mmdet_wrapper",
        "poolers",
        "proposal_generator",
        "roi_heads",
        "sampling",
        "test_time_augmentation",
    ],
    "detectron2.structures": ["rotated_boxes"],
    "detectron2.utils": ["develop", "testing", "torch_version_utils", "tracing", "video_visualizer"],
}
MISSING_MODULES = frozenset(f"{package}.{name}" for package, names in _MISSING.items() for name in names)


def refuse(module: str, names: Iterable[str]) -> Callable[[str], NoReturn]:
    """Make the ``__getattr__`` of a module (PEP 562) that explains which of Detectron2's names it lacks.

    Args:
        module: name of the module, as in ``__name__``.
        names: what Detectron2's module of that name has, and this one has not.

    Returns:
        A function for ``__getattr__ = refuse(__name__, [...])``. It raises ImportError for ``names``, or
        AttributeError where ``hasattr`` or ``getattr`` asks, since they understand nothing else; and AttributeError
        for all other names.
    """
    missing = frozenset(names)

    def __getattr__(name: str) -> NoReturn:
        if name not in missing:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        error = AttributeError if _is_probe(sys._getframe(1)) else ImportError
        raise error(_sentence(f"{module}.{name}"))

    return __getattr__


def explain_missing_modules() -> None:
    """Let an import of a module that only Detectron2 has fail with the same explanation; safe to call again."""
    if not any(isinstance(finder, _MissingModules) for finder in sys.meta_path):
        sys.meta_path.append(_MissingModules())  # last: asked only when nobody has the module


class _MissingModules(MetaPathFinder):
    """Finds nothing; raises for the modules in ``MISSING_MODULES``."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname in MISSING_MODULES:
            raise ModuleNotFoundError(_sentence(fullname), name=fullname)
        return None


def _sentence(what: str) -> str:
    return (
        f"'{what}' is not in the stand-in for Detectron2 that comes with d2_ext; it needs Detectron2 itself, to be "
        f"installed as {INSTALL_PAGE} says."
    )


def _is_probe(caller: FrameType) -> bool:
    """Whether ``caller`` is inside a call such as ``hasattr(module, name)``, not at an import or at ``module.name``."""
    in_import = caller.f_code.co_name == "_handle_fromlist"  # importlib's, which uses hasattr for packages
    return not in_import and "CALL" in opname[caller.f_code.co_code[caller.f_lasti]]
