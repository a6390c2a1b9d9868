"""Models; importing this package registers them."""

from d2_ext.modeling import backbone
