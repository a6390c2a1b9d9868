"""What happens around the steps of a run, one thing per file."""

from d2_ext.engine.hooks.best import BestWeights, EarlyStop, EarlyStopped, RepeatEvaluation, WeightsFile
from d2_ext.engine.hooks.ema import AveragedWeights, use_averaged_weights
from d2_ext.engine.hooks.finished import Evaluation
from d2_ext.engine.hooks.images import ImagesAfterTraining, MaskImages
from d2_ext.engine.hooks.masks import MaskRecallWarning
from d2_ext.engine.hooks.randomness import RandomNumbersOfStep
from d2_ext.engine.hooks.scalars import LossNormalizers
from d2_ext.engine.hooks.starved import StarvedHint
from d2_ext.engine.hooks.stop import Interrupted, StopOnSignal

__all__ = [
    "AveragedWeights",
    "BestWeights",
    "EarlyStop",
    "EarlyStopped",
    "Evaluation",
    "Interrupted",
    "ImagesAfterTraining",
    "LossNormalizers",
    "MaskImages",
    "MaskRecallWarning",
    "RandomNumbersOfStep",
    "RepeatEvaluation",
    "StarvedHint",
    "StopOnSignal",
    "WeightsFile",
    "use_averaged_weights",
]
