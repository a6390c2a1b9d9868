"""Images of detections at the end of a run."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.engine import HookBase
from detectron2.utils import comm


class ImagesAfterTraining(HookBase):
    """Draws when training has ended as planned.

    Args:
        draw: draws.
    """

    def __init__(self, draw: Callable[[], object]) -> None:
        self._draw = draw

    def after_train(self) -> None:
        # An interrupted training leaves its checkpoint; images of it would only delay the error.
        if self.trainer.iter + 1 >= self.trainer.max_iter and comm.is_main_process():
            self._draw()
