"""From the name of a data set to batches: catalogs, records, mapper, samplers and loaders."""

from detectron2._missing import refuse

from . import transforms  # isort: skip

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

# After the catalogs, in which it registers the built-in names.
from . import datasets, samplers  # isort: skip

__all__ = [name for name in globals() if not name.startswith("_") and name != "refuse"]

__getattr__ = refuse(__name__, ["load_proposals_into_dataset"])
