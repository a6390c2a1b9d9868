"""Config keys of data, training, evaluation and logs, whatever the detector."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_data_config(cfg: CfgNode) -> None:
    """Add the keys of data sets and of what becomes of their images in training."""
    # Folder of a data set in any format of d2_ext.data.formats; its splits are registered as own_<folder>_<split>.
    # `--data FOLDER` sets it, and with it DATASETS.TRAIN, TEST, CLASSES and every NUM_CLASSES.
    cfg.DATASETS.FOLDER = ""
    # One of coco, yolo, voc, labelme, visdrone, uavdt, crowdhuman where the folder could be several; "" recognizes it.
    cfg.DATASETS.FORMAT = ""
    # Class names of the folder in the model's order. A run refuses a folder whose classes have changed since.
    cfg.DATASETS.CLASSES = ()
    # Share of the images that is held out for evaluation where the folder has one split only, in (0, 1).
    cfg.DATASETS.HOLD_OUT = 0.2
    # Another seed holds out other images. It does not depend on SEED.
    cfg.DATASETS.HOLD_OUT_SEED = 0

    # Share of the training images whose INPUT.CROP is placed on an object, in [0, 1): a class of the image is drawn,
    # then an object of it. 0: all at random places, as Detectron2 does, where few objects mean many empty crops.
    cfg.INPUT.CROP.OBJECT_SHARE = 0.0

    cfg.INPUT.TILES = CfgNode()
    # Train on overlapping tiles instead of whole images; every epoch shows every tile.
    cfg.INPUT.TILES.ENABLED = False
    # Height and width of a tile, px of the file's image. Images that are not larger stay whole.
    cfg.INPUT.TILES.SIZE = [1024, 1024]
    # Least overlap of neighbors, as a share of the tile's sides, in [0, 1): wider than the largest object of interest.
    cfg.INPUT.TILES.OVERLAP = 0.2
    # A box stays an object if at least this share of its area lies in the tile. Less becomes an ignore region.
    cfg.INPUT.TILES.MIN_VISIBLE = 0.4

    # YAML file with a list of albumentations' transforms by name, applied in training after Detectron2's own.
    cfg.INPUT.ALBUMENTATIONS = ""
    # Hand ignore regions (crowd boxes, VisDrone's classes 0 and 11) to the detector as rows of class -1, instead of
    # dropping them, which would train the objects inside them as background.
    cfg.INPUT.IGNORE_REGIONS = False


def add_run_config(cfg: CfgNode) -> None:
    """Add the keys of the training loop, evaluation and logs; all that is new is off by default."""
    # Weights, and with them all maps, in channels-last memory format: faster convolutions on most machines, the same
    # numbers to rounding.
    cfg.MODEL.CHANNELS_LAST = False
    # One positive number for each class: weight of its objects in the classification loss of a dense detector, beside 1
    # for the background; above 1 for rare classes. Empty: all 1.
    cfg.MODEL.CLASS_WEIGHTS = []

    # "SGD" (Detectron2's) or "AdamW" (betas 0.9 and 0.999; SOLVER.MOMENTUM is not used).
    cfg.SOLVER.OPTIMIZER = "SGD"
    # AdamW's weight decay of layer scales and other factors per channel or level; the recipes of MogaNet have none.
    cfg.SOLVER.WEIGHT_DECAY_SCALE = 0.0

    # Use only algorithms that give the same result each time, also on a GPU; slower, and an operation that has none
    # stops the run. See docs/determinism.md.
    cfg.DETERMINISTIC = False

    # Batches whose gradients are averaged before each step of the optimizer: SOLVER.IMS_PER_BATCH is then the number
    # of images in memory, and this times as many make a step. Iterations count steps.
    cfg.SOLVER.ACCUMULATE_BATCHES = 1
    # What an infinite or NaN loss does: "stop" the run before the weights change, or "skip" the step (after ten in a
    # row the run stops).
    cfg.SOLVER.NONFINITE_LOSS = "stop"

    cfg.SOLVER.EMA = CfgNode()
    # Exponential moving average of the weights: evaluated, and saved as model_final_ema.pth, in place of the trained
    # ones.
    cfg.SOLVER.EMA.ENABLED = False
    # Weight of the old average in a step, in [0, 1).
    cfg.SOLVER.EMA.DECAY = 0.9998
    # Steps over which the decay rises from 0: after t of them it is DECAY * (1 - exp(-t / WARMUP_ITERS)); 0: at once.
    cfg.SOLVER.EMA.WARMUP_ITERS = 2000

    # How many images of each test set are drawn, with their detections (and CEASC's masks), when a run ends.
    cfg.TEST.NUM_PICTURES = 0
    # Every so many iterations of the training the masks of a sparse head (CEASC) on the first test image go to
    # TensorBoard; 0: never. One pass of the backbone each.
    cfg.TEST.MASK_PERIOD = 0
    # Score from which a detection is drawn, in [0, 1].
    cfg.TEST.PICTURE_SCORE_THRESH = 0.3

    # At each evaluation also compute the losses over the first test set, without augmentation: val_loss/total and
    # each loss, beside those of the training. Costs about a second evaluation.
    cfg.TEST.VAL_LOSS = False

    cfg.TEST.BEST = CfgNode()
    # The metric that model_best.pth and early stopping go by, as metrics.json names it, such as "bbox/AP", or
    # "val_loss/total" with MODE "min" and TEST.VAL_LOSS; needs TEST.EVAL_PERIOD > 0.
    cfg.TEST.BEST.METRIC = "bbox/AP"
    # "max" or "min": which values are good.
    cfg.TEST.BEST.MODE = "max"
    # Keep the weights of the best evaluation as model_best.pth.
    cfg.TEST.BEST.SAVE = False
    # Stop after this many evaluations in a row without a better one; 0: never.
    cfg.TEST.BEST.PATIENCE = 0

    tile = cfg.TEST.TILE = CfgNode()  # inference on tiles of large images
    # Side of a square tile in px of the image; 0 = whole images. Each tile is then treated as an image, resized to
    # INPUT.MIN_SIZE_TEST: choose SIZE so that objects get the size they had in training.
    tile.SIZE = 0
    tile.OVERLAP = 0.2  # least share of SIZE that neighbors see both, 0 to 0.9; larger than the objects is best
    tile.BATCH_SIZE = 4  # tiles computed at a time
    # IoU, in the part that two tiles share, from which their detections of one class are the same object.
    tile.MERGE_IOU = 0.5
    tile.WHOLE_IMAGE = False  # also look at the whole image, resized: for objects larger than a tile
    # Skip tiles in which a first look at the image, reduced so many times (2, 3, ...), finds nothing; 0 = all tiles.
    tile.SELECT = 0
    tile.SELECT_SCORE = 0.3  # SCORE_THRESH_TEST of that first look: lower finds more and skips less; docs/predict.md

    cfg.WANDB = CfgNode()
    # Log to Weights & Biases what TensorBoard gets, too. It sends the metrics and the config to the server that the
    # package is logged in to; needs: pip install -e ".[wandb]".
    cfg.WANDB.ENABLED = False
    cfg.WANDB.PROJECT = "d2_ext"  # project that the run belongs to
    cfg.WANDB.NAME = ""  # name of the run; "": that of OUTPUT_DIR
    # "online", "offline" (files below OUTPUT_DIR/wandb for `wandb sync`) or "": as the environment's WANDB_MODE says.
    cfg.WANDB.MODE = ""
