"""Checkpoints from strangers: read without running what they contain."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.durable import raise_unless_damaged, save_durably, verify_archive, write_durably
from d2_ext.checkpoint.fit import check_fit
from d2_ext.checkpoint.safetensors_file import read_safetensors
from d2_ext.checkpoint.torchvision import is_torchvision_resnet, trunk_name
from d2_ext.checkpoint.zoo import local_weights
from d2_ext.errors import CheckpointError, TrainingError, is_out_of_memory
from d2_ext.files import remove_temporaries

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

logger = logging.getLogger(__name__)

# Earlier ones write out of bounds while they read a crafted .pth, weights_only or not (CVE-2026-24747).
SAFE_TORCH = "2.10"
TRUST_VARIABLE = "D2_EXT_TRUST_CHECKPOINTS"  # 1: read files with an older torch all the same

TRUNK_PREFIXES = ("backbone.bottom_up.", "backbone.", "")  # where a ResNet's names may lie in a model
# What a pickled array needs to come back; numpy moved the modules between versions 1 and 2.
_ARRAY_MODULES = (
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
)
_ARRAY_NAMES = ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer")  # the last from protocol 5 on
_ARRAYS = (torch.Tensor, np.ndarray, np.generic)
_OTHER_GLOBALS = {("collections", "OrderedDict"), ("_codecs", "encode")}


class SafeCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that never executes anything from a file and never leaves a broken one.

    Files are written in one step, and compared with their checksums when they are read. A run resumes from the newest
    one that is whole. ``.pth`` files are read with torch's ``weights_only`` reader; ``.pkl`` files of the model zoo may
    hold arrays, numbers, strings and containers only; ``.safetensors`` hold weights only. ``d2_ext://NAME`` is a model
    of the package. A file of torchvision's ResNet gets the names of Detectron2's,
    if that is what the model has. Weights that do not fit the model are refused, see
    :func:`d2_ext.checkpoint.fit.check_fit`.

    Args:
        model: gets the weights; may be wrapped for data parallel training.
        save_dir: of the run.
        save_to_disk: whether this process writes; the main one if not given.
        whole: every weight of the model must be in the file, as for evaluation. Resuming asks for it anyway.
        class_names: saved in every file, so that a checkpoint alone is enough to name what a detector finds.
        checkpointables: other objects with a state, saved under their keywords.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        whole: bool = False,
        class_names: Sequence[str] = (),
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.whole = whole
        self.class_names = class_names
        self._path = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Save model, checkpointables and ``kwargs`` as ``<name>.pth`` and make it the one to resume from.

        ``class_names`` join them if there are any.

        Raises:
            TrainingError: if the weights are not finite, or the file cannot be written; what was there before stays.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        for key, value in content["model"].items():  # weights that went wrong must not take the place of good ones
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise TrainingError(
                    f"Checkpoint {name} was not written: {key} holds values that are infinite or not a number. Lower "
                    "SOLVER.BASE_LR or enable SOLVER.CLIP_GRADIENTS, then continue with --resume."
                )
        content.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        if self.class_names:
            content["class_names"] = [str(n) for n in self.class_names]
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        try:
            save_durably({**content, **kwargs}, path)
            self.tag_last_checkpoint(path.name)
        except TrainingError as error:
            raise TrainingError(
                f"{error} {self.last_good()} Make room or choose another OUTPUT_DIR, then continue with --resume."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file of ``save_dir`` the one to resume from."""
        write_durably(Path(self.save_dir) / "last_checkpoint", lambda f: f.write(last_filename_basename.encode()))

    def last_good(self) -> str:
        """A sentence that names the checkpoint to resume from."""
        path = self.get_checkpoint_file() if self.has_checkpoint() else ""
        return f"The last good checkpoint is {path}." if path else "There is no checkpoint yet."

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the newest whole checkpoint of ``save_dir`` if asked to and if there is any, else ``path``.

        Raises:
            CheckpointError: if none of several checkpoints is whole, or ``path`` cannot be loaded.
        """
        if not resume:
            return super().resume_or_load(path, resume=False)
        if self.save_to_disk:
            remove_temporaries(Path(self.save_dir))
        chosen = comm.all_gather(self._newest_whole_checkpoint() if comm.is_main_process() else "")[0]
        self.whole = self.whole or bool(chosen)
        return self.load(chosen) if chosen else self.load(path, checkpointables=[])

    def _newest_whole_checkpoint(self) -> str:
        """Path of the newest file to resume from that is not damaged; damaged ones are named in the log."""
        # The tagged checkpoint, then the other ones of the run from the newest to the oldest.
        folder = Path(self.save_dir)
        others = [*folder.glob("model_[0-9]*.pth"), *folder.glob("model_final.pth")]
        others.sort(key=lambda path: (path.stat().st_mtime, path.name), reverse=True)
        tagged = [self.get_checkpoint_file()] if self.has_checkpoint() else []
        paths = list(dict.fromkeys([*tagged, *map(str, others)]))
        for number, path in enumerate(paths):
            try:
                read_checkpoint(path)
            except (CheckpointError, FileNotFoundError) as error:
                if error.__cause__ is not None and is_out_of_memory(error.__cause__):  # the file may well be whole
                    raise
                logger.error("%s It is skipped.", error)
                continue
            if number or not self.has_checkpoint():
                logger.warning("Resuming from %s instead of %s.", path, ", ".join(paths[:number]) or "the newest file")
                self.tag_last_checkpoint(os.path.basename(path))
            return path
        if paths:
            raise CheckpointError(
                f"--resume: none of the checkpoints in {self.save_dir} can be read ({', '.join(paths)}). Start anew "
                "without --resume, in another OUTPUT_DIR."
            )
        return ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file or URL as ``DetectionCheckpointer`` does.

        Raises:
            CheckpointError: if there is no such file, or it cannot be fetched, or is not safe or damaged, or does not
                fit the model.
        """
        path = local_weights(path)
        check_file(path)
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except OSError as error:
            if "://" not in path:
                raise
            raise CheckpointError(
                f"MODEL.WEIGHTS {path} could not be fetched ({error}). Without network, get the file elsewhere and "
                'give its path: MODEL.WEIGHTS path/to/file; or "" to start from random weights.'
            ) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".safetensors"):
            content = read_safetensors(filename)
            _check_content(content, filename)
            return content
        if filename.endswith(".pkl"):
            with PathManager.open(filename, "rb") as f:
                _check_content(_check_pickle(f, filename), filename)
        elif filename.endswith(".pyth"):
            _check_content(_load_weights_only(filename), filename)
        return super()._load_file(filename)

    def _torch_load(self, filename: str) -> dict[str, Any]:
        content = _load_weights_only(filename)
        _check_content(content, filename)
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        # A file of torchvision's ResNet gets Detectron2's names, if the model has them; its classifier is left out.
        tensors, wanted = checkpoint["model"], self.model.state_dict().keys()
        prefix = next((p for p in TRUNK_PREFIXES if f"{p}stem.conv1.weight" in wanted), None)
        if prefix is not None and is_torchvision_resnet(tensors):
            renamed = {prefix + trunk_name(key): value for key, value in tensors.items()}
            checkpoint["model"] = {key: value for key, value in renamed.items() if key in wanted}
            kept = len(checkpoint["model"])
            logger.info(
                "Weights of torchvision's ResNet: %d of %d are used, under Detectron2's names", kept, len(renamed)
            )
        found = list(checkpoint["model"])
        # fvcore walks to the module of an array of another shape by its key, but keys of VoVNet (published names,
        # "stem.stem_1/conv.weight") are not paths of modules: such arrays are set aside here.
        tensors = checkpoint["model"]
        paths = {name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())}
        own = {key: value for key, value in self.model.state_dict().items() if key not in paths}
        others = {k: v for k, v in tensors.items() if k in own and tuple(v.shape) != tuple(own[k].shape)}
        checkpoint["model"] = {key: value for key, value in tensors.items() if key not in others}
        incompatible = super()._load_model(checkpoint)
        if incompatible is not None:
            incompatible.incorrect_shapes.extend((k, tuple(v.shape), tuple(own[k].shape)) for k, v in others.items())
            check_fit(self.model, incompatible, found, self._path, whole=self.whole)
        return incompatible


def load_weights(model: nn.Module, path: str) -> dict[str, Any]:
    """Fill every weight of a model from a file: the one way in which commands load a trained detector.

    Args:
        model: changed in place.
        path: file or URL.

    Returns:
        What else is in the file.

    Raises:
        CheckpointError: if the file cannot be read, is not safe, or does not fill the model.
    """
    return SafeCheckpointer(model, save_to_disk=False, whole=True).load(path)


def check_file(path: str) -> None:
    """Check that ``MODEL.WEIGHTS`` is empty, a URL, or an existing file that is not empty.

    Raises:
        CheckpointError: it is not.
    """
    if not path or "://" in path:
        return
    file = path.partition("?")[0]
    if os.path.isdir(file):
        raise CheckpointError(
            f"MODEL.WEIGHTS {os.path.abspath(file)} is a folder. Give the path of a .pth, .safetensors or .pkl file, "
            f"such as {os.path.join(file, 'model_final.pth')}."
        )
    if not os.path.isfile(file):
        raise CheckpointError(
            f"There is no checkpoint {os.path.abspath(path)}. Give the path of a .pth, .safetensors or .pkl file; a "
            "training with an empty MODEL.WEIGHTS starts from random weights."
        )
    if os.path.getsize(file) == 0:
        raise CheckpointError(f"Checkpoint {os.path.abspath(file)} is empty (0 bytes). Get the file again.")


def read_checkpoint(filename: str) -> dict[str, Any]:
    """Read a local ``.pth``, ``.pkl`` or ``.safetensors`` file without running code from it.

    Raises:
        CheckpointError: if it is damaged, or holds something other than arrays and plain values, or arrays at its top
            or one level below that cannot be weights.
        OSError: naming the file, if the system does not let it be read.
    """
    if filename.endswith(".pkl"):
        with PathManager.open(filename, "rb") as file:
            content = _check_pickle(file, filename)
    elif filename.endswith(".safetensors"):
        content = read_safetensors(filename)
    else:
        content = _load_weights_only(filename)
    groups = [content, *content.values()] if isinstance(content, Mapping) else []
    for group in groups:
        if isinstance(group, Mapping):
            _check_arrays({name: value for name, value in group.items() if isinstance(value, _ARRAYS)}, filename)
    return content


def _load_weights_only(filename: str) -> dict[str, Any]:
    if torch.__version__ < SAFE_TORCH and os.environ.get(TRUST_VARIABLE) != "1":
        raise CheckpointError(
            f"Checkpoint {filename} was not loaded: torch {torch.__version__} can be made to corrupt memory by a "
            f"crafted file (CVE-2026-24747). Install torch {SAFE_TORCH} or newer, or set "
            f"{TRUST_VARIABLE}=1 if you trust whoever made this file and all others that you will read."
        )
    verify_archive(filename)
    try:
        return torch.load(filename, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files raise whatever torch's readers happen to raise
        raise_unless_damaged(error, filename)
        # torch writes a page of advice over what its reader met, and hides that behind it.
        met = error.__context__ if isinstance(error, pickle.UnpicklingError) and error.__context__ else error
        reason = (str(met) or type(met).__name__).partition("\n")[0].partition(". Please")[0]
        raise CheckpointError(
            f"Checkpoint {filename} was not loaded: it is damaged, or holds something other than tensors and plain "
            f"values, which could run code ({reason}). Save it again as a state_dict."
        ) from error


def _check_content(content: Any, filename: str) -> None:
    """Weights by name, at the top or below one of the keys that trainers use."""
    weights = content
    for key in ("model", "model_state", "blobs"):
        if isinstance(content, Mapping) and key in content:
            weights = content[key]
            break
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f"Checkpoint {filename} holds a {type(weights).__name__}, but weights by name were expected. Save a "
            "state_dict, or a dict that holds it under 'model'."
        )
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, _ARRAYS):
            raise CheckpointError(
                f"Checkpoint {filename} holds a {type(value).__name__} under {name!r}, but an array was expected, "
                "under a name. Save a state_dict, or a dict that holds it under 'model'."
            )
    _check_arrays(weights, filename)
    names = content.get("class_names") if content is not weights else None
    if names is not None and not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(
            f"Checkpoint {filename} holds a {type(names).__name__} under 'class_names', but a list of names was "
            "expected. Save them as a list of text, or leave them out."
        )


def _check_arrays(weights: Mapping[Any, Any], filename: str) -> None:
    """Arrays that a model can take over: dense, of real numbers, each of them finite."""
    for name, value in weights.items():
        problem = ""
        if isinstance(value, torch.Tensor):
            if value.is_nested or value.layout != torch.strided or value.is_quantized or value.is_complex():
                problem = "a nested, sparse, quantized or complex tensor"
            elif value.device.type == "meta":
                problem = "a tensor without its values (of the device 'meta')"
            elif not torch.isfinite(value).all():
                problem = "values that are infinite or not a number"
        elif value.dtype.kind not in "biuf":
            problem = f"an array of {value.dtype}"
        elif not np.isfinite(value).all():
            problem = "values that are infinite or not a number"
        if problem:
            raise CheckpointError(
                f"Checkpoint {filename} was not loaded: it holds {problem} under {name!r}, but finite numbers in a "
                "dense array were expected. Take the checkpoint before it, or save the weights again."
            )


def _check_pickle(file: Any, filename: str) -> Any:
    """What a pickle of arrays and plain values holds."""

    class ArraysOnly(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module in _ARRAY_MODULES and name in _ARRAY_NAMES) or (module, name) in _OTHER_GLOBALS:
                return super().find_class(module, name)
            raise CheckpointError(
                f"Checkpoint {filename} was not loaded: it asks for {module}.{name}, and loading that could run code. "
                "Expected arrays and plain values only. Get the file from a source you trust, as a .pth state_dict."
            )

    try:
        return ArraysOnly(file, encoding="latin1").load()
    except CheckpointError:
        raise
    except Exception as error:  # damaged pickles raise whatever their instructions happen to meet
        raise CheckpointError(
            f"Checkpoint {filename} is not a readable pickle: {error or type(error).__name__}. Get the file again."
        ) from error
