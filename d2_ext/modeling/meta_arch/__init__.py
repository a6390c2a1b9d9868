"""Meta-architectures; importing this package registers them."""

from d2_ext.modeling.meta_arch import defcn, fcos, gfl, retinanet_ceasc, retinanet_ignore
