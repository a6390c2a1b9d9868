"""Surviving an exhausted GPU memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["retry_if_cuda_oom"]

T = TypeVar("T")


def _is_cuda_oom(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "CUDA out of memory. " in str(error)


def _to_cpu(value: Any) -> Any:
    return value.to(device="cpu") if getattr(getattr(value, "device", None), "type", None) == "cuda" else value


def retry_if_cuda_oom(func: Callable[..., T]) -> Callable[..., T]:
    """Decorate a stateless function: on CUDA out-of-memory, empty the cache and retry, then retry on the CPU.

    Only direct arguments that have ``device`` and ``to`` are moved to the CPU (not tensors inside containers), and
    the results of that last attempt stay there.
    """

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        for attempt in range(2):
            if attempt:
                torch.cuda.empty_cache()
            try:
                return func(*args, **kwargs)
            except RuntimeError as error:
                if not _is_cuda_oom(error):
                    raise
        logging.getLogger(__name__).info(f"Attempting to copy inputs of {func} to CPU due to CUDA OOM")
        return func(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in kwargs.items()})

    return wrapped
