"""Training: the loop, its hooks, the default trainer and predictor, and the start of several processes."""

from detectron2._missing import refuse

from .defaults import (
    DefaultPredictor,
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from .hooks import (
    BestCheckpointer,
    CallbackHook,
    EvalHook,
    IterationTimer,
    LRScheduler,
    PeriodicCheckpointer,
    PeriodicWriter,
)
from .launch import DEFAULT_TIMEOUT, launch
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__getattr__ = refuse(__name__, "AutogradProfiler PreciseBN TorchMemoryStats TorchProfiler")
