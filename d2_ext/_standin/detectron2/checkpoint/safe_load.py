"""Reading checkpoint files without running code from them. (Detectron2 has no such module.)

A pickle can call any function while it is loaded. Both readers here refuse everything but arrays, numbers, strings
and plain containers.
"""

from __future__ import annotations

import collections
import importlib
import pickle
from typing import IO, Any, NoReturn

import numpy as np
import torch

_CONTAINERS = {"set": set, "frozenset": frozenset, "bytearray": bytearray, "complex": complex}
# numpy.core became numpy._core in numpy 2; files with either name can be read under any numpy.
_NUMPY_FUNCTIONS = {
    ("multiarray", "_reconstruct"),
    ("multiarray", "scalar"),
    ("numeric", "_frombuffer"),
}


def load_pickle(filename: str, file: IO[bytes]) -> Any:
    """Read a pickle of numpy arrays and plain containers; text of Python 2 is decoded as latin-1.

    pickle.UnpicklingError, which names the file, if it refers to anything else; nothing of it has been called then.
    """
    return _ArrayUnpickler(filename, file).load()


def load_torch(filename: str, file: Any) -> Any:
    """Read a file of ``torch.save`` to CPU memory: tensors, numbers, strings and plain containers; raises as above."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        names_it = [line for line in lines if "GLOBAL" in line or "global" in line]  # of PyTorch's long message
        raise pickle.UnpicklingError(
            f"{filename} was not loaded, because it holds more than tensors, numbers, strings and plain containers, "
            "and loading that could run code. Save a file of the state dicts only. What was found: "
            + " ".join(names_it[-1:] or lines[:1])
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, filename: str, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")
        self._filename = filename

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _CONTAINERS:
            return _CONTAINERS[name]
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        package, _, leaf = module.rpartition(".")
        if package in ("numpy.core", "numpy._core") and (leaf, name) in _NUMPY_FUNCTIONS:
            core = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"
            return getattr(importlib.import_module(f"{core}.{leaf}"), name)
        return self._refuse(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        self._refuse(f"a persistent id ({pid!r})")

    def _refuse(self, what: str) -> NoReturn:
        raise pickle.UnpicklingError(
            f"{self._filename} was not loaded, because it refers to {what}, and loading that could run code. A .pkl "
            "checkpoint may hold numpy arrays, numbers, strings and plain containers; save tensors as .pth."
        )


def _encode_latin1(text: str, encoding: str) -> bytes:
    """What ``_codecs.encode`` does in pickles of bytes of protocol 2; any other codec is refused."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"a pickle asked for the codec {encoding!r}")
    return text.encode("latin1")
