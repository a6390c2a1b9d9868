"""Registration of builders whose names other packages use as well.

Detectron2's registry stops with an assertion when a name comes twice. The names of published configs
(``build_vovnet_fpn_backbone``, ...) come twice as soon as one of the original packages is imported beside d2_ext. Here
the first one stays, the log says so, and ours is always reachable under ``d2_ext_<name>`` too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from detectron2.modeling import BACKBONE_REGISTRY

logger = logging.getLogger(__name__)

PREFIX = "d2_ext_"
_OURS: dict[str, Callable[..., Any]] = {}


def register_backbone(builder: Callable[..., Any]) -> Callable[..., Any]:
    """Register a builder under its name, if it is free, and under ``d2_ext_<name>``.

    Args:
        builder: function of (cfg, input_shape), or a class with ``from_config``.

    Returns:
        The builder, so that this is a decorator.
    """
    name = builder.__name__
    _tolerate_later_packages()
    _OURS[name] = builder
    if name in BACKBONE_REGISTRY:
        logger.warning(
            "The backbone %r is that of %s, which was imported first; the one of d2_ext is %r.",
            name,
            getattr(BACKBONE_REGISTRY.get(name), "__module__", "another package"),
            PREFIX + name,
        )
    else:
        BACKBONE_REGISTRY._do_register(name, builder)
    BACKBONE_REGISTRY._do_register(PREFIX + name, builder)
    return builder


def _tolerate_later_packages() -> None:
    """Let a package that is imported after d2_ext register a name of ours without effect, with a line in the log."""
    original = BACKBONE_REGISTRY._do_register
    if getattr(original, "tolerates_d2_ext", False):
        return

    @wraps(original)
    def do_register(name: str, obj: Any) -> None:
        if name in _OURS and BACKBONE_REGISTRY._obj_map.get(name) is _OURS[name] and obj is not _OURS[name]:
            logger.warning(
                "The backbone %r stays that of d2_ext; the one of %s is not registered. To use that one, import its "
                "package before d2_ext.",
                name,
                getattr(obj, "__module__", "another package"),
            )
            return
        original(name, obj)

    vars(do_register)["tolerates_d2_ext"] = True
    BACKBONE_REGISTRY._do_register = do_register
