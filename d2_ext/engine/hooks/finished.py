"""What follows a training that has reached its end, and no other."""

from __future__ import annotations

from detectron2.engine import HookBase, hooks


class OnlyIfFinished(HookBase):
    """The first base of a hook of Detectron2 whose ``after_train`` is not for runs that failed.

    Detectron2's own condition, ``iter + 1 >= max_iter``, holds for a run that failed in its last iteration, too;
    ``iter`` is ``max_iter`` behind the loop alone.
    """

    def after_train(self) -> None:
        """As Detectron2 does, if the run has finished."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class Evaluation(OnlyIfFinished, hooks.EvalHook):
    """Detectron2's ``EvalHook``, whose last evaluation is that of a finished run."""
