"""Errors that explain: what the real Detectron2 has and the stand-in lacks.

Whoever asks for such a name or module gets an ``ImportError`` that says where to get it. A probe (``hasattr``,
``getattr`` with a default) finds nothing, as libraries expect that look for optional features.
"""

from __future__ import annotations

import opcode
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

INSTALL_PAGE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"

# Modules of the real Detectron2, by package. What has no file here is missing; to drop a module is to delete its file.
_MODULES = {
    "": "checkpoint config data engine evaluation export layers model_zoo modeling projects solver structures tracking "
    "utils",
    "checkpoint": "c2_model_loading catalog detection_checkpoint",
    "config": "compat config defaults instantiate lazy",
    "data": "benchmark build catalog common dataset_mapper datasets detection_utils samplers transforms",
    "data.datasets": "builtin builtin_meta cityscapes cityscapes_panoptic coco coco_panoptic lvis "
    "lvis_v0_5_categories lvis_v1_categories pascal_voc register_coco",
    "data.samplers": "distributed_sampler grouped_batch_sampler",
    "data.transforms": "augmentation augmentation_impl transform",
    "engine": "defaults hooks launch train_loop",
    "evaluation": "cityscapes_evaluation coco_evaluation evaluator fast_eval_api lvis_evaluation panoptic_evaluation "
    "pascal_voc_evaluation rotated_coco_evaluation sem_seg_evaluation testing",
    "layers": "aspp batch_norm blocks deform_conv losses mask_ops nms roi_align roi_align_rotated rotated_boxes "
    "shape_spec wrappers",
    "model_zoo": "model_zoo",
    "modeling": "anchor_generator backbone box_regression matcher meta_arch mmdet_wrapper poolers postprocessing "
    "proposal_generator roi_heads sampling test_time_augmentation",
    "modeling.backbone": "backbone build fpn mvit regnet resnet swin utils vit",
    "modeling.meta_arch": "build dense_detector fcos panoptic_fpn rcnn retinanet semantic_seg",
    "solver": "build lr_scheduler",
    "structures": "boxes image_list instances keypoints masks rotated_boxes",
    "utils": "analysis collect_env colormap comm develop env events file_io logger memory registry serialize testing "
    "torch_version_utils tracing video_visualizer visualizer",
}


def _is_here(module: str) -> bool:
    path = Path(__file__).parent.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


MISSING_MODULES = frozenset(
    f"detectron2.{module}"
    for package, names in _MODULES.items()
    for module in (f"{package}.{name}".lstrip(".") for name in names.split())
    if not _is_here(module)
)


def _explanation(name: str) -> str:
    return (
        f"{name!r} is not in the stand-in for Detectron2 that comes with d2_ext. Install Detectron2 itself for it, "
        f"as {INSTALL_PAGE} says."
    )


def _is_written_out(frame: FrameType) -> bool:
    """Whether a frame is at ``from module import name`` or ``module.name``, and not at a call of ``hasattr``, say."""
    instruction = opcode.opname[frame.f_code.co_code[frame.f_lasti]]
    return instruction in ("IMPORT_FROM", "LOAD_ATTR", "LOAD_METHOD")


def refuse(module: str, names: str) -> Callable[[str], NoReturn]:
    """A ``__getattr__`` for a module, which explains names that it lacks.

    Args:
        module: the module's full name.
        names: of the real module, with spaces between them. Missing submodules need not be listed.
    """
    known = frozenset(names.split())

    def __getattr__(name: str) -> NoReturn:
        full_name = f"{module}.{name}"
        if name not in known and full_name not in MISSING_MODULES:
            raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name, obj=sys.modules.get(module))
        # An AttributeError would become "cannot import name"; but it is all that hasattr takes for a no.
        raise (ImportError if _is_written_out(sys._getframe(1)) else AttributeError)(_explanation(full_name))

    return __getattr__


class _Explainer(MetaPathFinder):
    """The finder that is asked last: it finds nothing, and says why."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:  # for anything but a missing module
        if fullname in MISSING_MODULES:
            raise ModuleNotFoundError(_explanation(fullname), name=fullname)


def explain_missing_modules() -> None:
    """From now on, importing a module of :data:`MISSING_MODULES` raises ``ModuleNotFoundError`` with an explanation."""
    if not any(isinstance(finder, _Explainer) for finder in sys.meta_path):
        sys.meta_path.append(_Explainer())
