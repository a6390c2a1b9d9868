"""d2_ext: detectors of small objects for Detectron2.

Importing it makes ``detectron2`` importable (the installed one, or the stand-in where there is none) and registers
all models, backbones and data sets. Then::

    cfg = detectron2.config.get_cfg()
    d2_ext.add_d2_ext_config(cfg)
"""

import warnings

from d2_ext._detectron2 import ensure_detectron2

with warnings.catch_warnings():  # fvcore compiles a loss that nobody calls while it is imported
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
    import fvcore.nn

ensure_detectron2()  # before anything below imports detectron2

from d2_ext import data, modeling  # noqa: E402, RUF100  (registers data sets, backbones and meta-architectures)
from d2_ext.config import add_d2_ext_config  # noqa: E402

__version__ = "0.1.0"
__all__ = ["__version__", "add_d2_ext_config", "ensure_detectron2"]
