"""Data sets, loaders, mappers, samplers and augmentations."""

from detectron2._missing import refuse

from . import transforms
from .build import (
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .common import DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper

from . import datasets, samplers  # isort: skip  # registers COCO's names, which needs the catalogs

__all__ = [name for name in globals() if not name.startswith("_") and name != "refuse"]
__getattr__ = refuse(__name__, "load_proposals_into_dataset")
