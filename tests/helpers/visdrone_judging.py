"""Detections for the tests of the VisDrone evaluator, in a module of their own: spawned processes import it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from d2_ext.data.formats.visdrone import load_visdrone, register_visdrone
from d2_ext.engine.parallel import leave_process_group
from d2_ext.evaluation import VisDroneEvaluator

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm


def instances_of(boxes_xyxy: list[list[float]], classes: list[int], scores: list[float]) -> dict[str, Instances]:
    instances = Instances((200, 200))
    instances.pred_boxes = Boxes(torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    return {"instances": instances}


def perfect(record: dict[str, Any]) -> dict[str, Instances]:
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in record["annotations"])]
    return instances_of(boxes, [a["category_id"] for a in record["annotations"]], [0.9] * len(boxes))


def evaluate(evaluator: Any, predict: Callable[[dict[str, Any]], dict[str, Instances]], records: list[Any]) -> Any:
    evaluator.reset()
    for record in records:
        evaluator.process([record], [predict(record)])
    return evaluator.evaluate()


def judge_half(rank: int, name: str, root: str, init_file: str) -> None:
    """Each process judges one of the two images; both together are the data set."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    register_visdrone(name, root)
    result = evaluate(VisDroneEvaluator(name), perfect, load_visdrone(root)[rank::2])
    if rank == 0:
        assert result["visdrone"]["AP"] == pytest.approx(100)
        assert result["visdrone"]["AR500"] == pytest.approx(100)
    else:
        assert result == {}
    leave_process_group()
