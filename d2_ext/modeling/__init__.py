"""Models. Importing this package registers all meta-architectures and backbones with Detectron2."""

from d2_ext.modeling import backbone, meta_arch
