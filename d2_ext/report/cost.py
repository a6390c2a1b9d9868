"""What a detector costs: seconds of training and inference as the run logged them, parameters and multiply-adds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from d2_ext.checkpoint.safe import load_weights
from d2_ext.errors import CheckpointError, ConfigError
from d2_ext.report.blocks import Block, Missing, MissingInput, Table, Text, number, percent
from d2_ext.report.configuration import run_config
from d2_ext.report.run_folder import RunFolder
from d2_ext.utils.analysis import Count, count_on_images, count_parameters, totals

from detectron2.data import DatasetMapper
from detectron2.modeling import build_model

MAX_MEASURED = 4  # images; masks differ from image to image, shapes do not
_INFERENCE = re.compile(r"Total inference (?P<what>pure compute )?time: .*?\((?P<seconds>[\d.]+) s / iter per device")
_OVERALL = re.compile(r"Total training time: (?P<total>[^\n(]+) \((?P<hooks>[^\n)]+) on hooks\)")


def inference_seconds(run: RunFolder) -> float | None:
    """Seconds an image of the last evaluation, computing alone, as Detectron2 logs it; None if it is not there."""
    found = [float(m["seconds"]) for m in _INFERENCE.finditer(run.log) if m["what"]]
    return found[-1] if found else None


def iteration_seconds(run: RunFolder) -> float | None:
    """Median seconds of a training iteration."""
    times = run.series("time")[1]
    return statistics.median(times) if times else None


def speed_blocks(run: RunFolder) -> list[Block]:
    """Times of training and inference, on the machine of the run."""
    seconds, data = iteration_seconds(run), run.series("data_time")[1]
    batch = run.setting("SOLVER.IMS_PER_BATCH")
    rows = []
    if seconds:
        rows.append(["training, an iteration", f"{number(1e3 * seconds)} ms", "median of the records"])
        if isinstance(batch, int) and batch:
            rows.append(["training, an image", f"{number(1e3 * seconds / batch)} ms", f"batches of {batch}"])
    if data:
        rows.append(["of it waiting for data", f"{number(1e3 * statistics.median(data))} ms", "an iteration"])
    overall = _OVERALL.findall(run.log)
    if overall:
        rows.append(["training, whole", overall[-1][0].strip(), f"of it {overall[-1][1]} in hooks (evaluation, files)"])
    for match in list(_INFERENCE.finditer(run.log))[-2:]:
        what = "computing alone" if match["what"] else "with reading and judging"
        rows.append(["inference, an image", f"{number(1e3 * float(match['seconds']))} ms", what])
    if not rows:
        raise MissingInput(f"Neither {run.path / 'metrics.json'} nor log.txt has times.", run.evaluate_command())
    device = run.setting("MODEL.DEVICE", "unknown")
    return [
        Table("Speed on the machine of the run", ["what", "time", "how"], rows, texts=3),
        Text(f"MODEL.DEVICE was '{device}'. The times are those of the run's log, on whatever else the machine did."),
    ]


def operation_blocks(run: RunFolder, records: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Parameters and multiply-adds of one inference, sparse heads at the masks of the trained model.

    Args:
        run: of the model.
        records: of its test set; some are measured. Without, only parameters can be counted.

    Raises:
        MissingInput: if there is no config.
        ConfigError: if the model cannot be built from it.
    """
    cfg = run_config(run, datasets=False)
    model = build_model(cfg).eval()
    parameters = count_parameters(model)
    trained = f"{parameters['trained'] / 1e6:.2f} M of them are trained."
    try:
        counts, note = _measure(run, cfg, model, records)
    except (MissingInput, ConfigError, CheckpointError, OSError) as error:
        rows = [[part, number(parameters[part] / 1e6, 2)] for part in ("backbone", "fpn", "head", "total")]
        problem = error.block if isinstance(error, MissingInput) else Missing(str(error))
        return [Table("Parameters", ["part", "parameters (M)"], rows), Text(trained), problem]
    sums = totals(counts)
    whole = sums["total"].multiply_adds
    rows = [
        [
            part,
            number(parameters[part] / 1e6, 2),
            number(count.multiply_adds / 1e9, 2),
            percent(count.multiply_adds / whole),
            number(count.dense / 1e9, 2),
        ]
        for part, count in sums.items()
    ]
    header = ["part", "parameters (M)", "multiply-adds (G)", "share", "dense equivalent (G)"]
    return [Table("Parameters and multiply-adds of one inference", header, rows), Text(f"{trained} {note}")]


def _measure(run: RunFolder, cfg: Any, model: Any, records: Sequence[Mapping[str, Any]]) -> tuple[list[Count], str]:
    """Multiply-adds, the mean over some images, and how they were measured."""
    if not records:
        raise MissingInput("Multiply-adds need images of the test set, which is not there.", run.evaluate_command())
    step = max(1, len(records) // MAX_MEASURED)
    mapper = DatasetMapper(cfg, is_train=False)
    inputs = [mapper(dict(record)) for record in records[::step][:MAX_MEASURED]]
    is_sparse = hasattr(getattr(model, "head", None), "hard_masks")
    if is_sparse:
        if not run.weights().is_file():
            raise MissingInput(
                f"The masks depend on the weights, and there is no {run.weights()}.", run.train_command()
            )
        load_weights(model, str(run.weights()))
    counts, shares = count_on_images(model, inputs)
    note = (
        f"Means over {len(inputs)} images of the test set, as they are resized and padded in testing. One "
        "multiplication with its addition counts as one."
    )
    if is_sparse:
        measured = [share for share in shares if share is not None]
        active = {branch: statistics.mean(statistics.mean(s[branch]) for s in measured) for branch in measured[0]}
        words = ", ".join(f"{branch} {percent(share)}" for branch, share in active.items())
        note += f" The sparse layers at their active positions (mean over levels: {words})."
    return counts, note
