"""Detect on images, folders, glob patterns, videos and cameras; write images, videos, COCO results and tables."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from d2_ext.checkpoint.zoo import PREFIX, list_models
from d2_ext.cli.command import add_overrides, command_parser, number_in, run_command
from d2_ext.errors import ConfigError, DatasetError, did_you_mean, is_out_of_memory
from d2_ext.files import replacing
from d2_ext.inference import BatchPredictor
from d2_ext.inference.loading import detector_config
from d2_ext.inference.sources import Frame, Source, count_frames, find_sources, read_ahead
from d2_ext.inference.writers import (
    CocoWriter,
    CsvWriter,
    DrawingWriter,
    MaskWriter,
    ResultWriter,
    naming_memory,
    note_result,
    remove_results,
)
from d2_ext.utils.devices import choose_device

import numpy as np
import torch
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

EXAMPLES = """examples:
  thermal drone images with the detector that comes with the package:
    python tools/predict.py --model thermal_drone datasets/thermal --output output/predicted
  a folder of images with the quick start's detector (its config.yaml lies beside the weights):
    python tools/predict.py --weights output/quickstart/model_final.pth datasets/images --output output/predicted
  cars and vans of score 0.5 on all images below a folder, as COCO results and a table, nothing drawn:
    python tools/predict.py --weights output/quickstart/model_final.pth 'datasets/**/*.jpg' --output output/predicted \\
        --score 0.5 --classes car,van --save-json --save-csv --no-drawings
  a video, and images of 4000 px on tiles:
    python tools/predict.py --weights output/quickstart/model_final.pth flight.mp4 --output output/video
    python tools/predict.py --weights output/quickstart/model_final.pth large.jpg --output output/large --tile 1024
  only where a sparse head computes, in larger maps:
    python tools/predict.py --weights output/quickstart/model_final.pth street.jpg --output output/masks \\
        --masks --mask-width 640 --no-drawings

exit codes: 0 done, 1 nothing could be read, weights unusable or interrupted, 2 wrong usage
A file that cannot be read, or is too large for the memory, is reported at the end and in unreadable.txt; with --strict
it makes the exit code 1.
"""
SHOWN_PROBLEMS = 10
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"  # never seconds an image


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("input", nargs="+", help="images, folders, glob patterns in quotes, videos, number of a camera")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in a folder that is not empty")
    model = parser.add_argument_group("detector")
    model.add_argument("--model", default="", metavar="NAME", help=f"of the package: {', '.join(list_models())}")
    model.add_argument("--weights", default="", help="checkpoint; MODEL.WEIGHTS of the config if not given")
    model.add_argument("--config-file", default="", help="config.yaml beside the weights if not given")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    model.add_argument(
        "--batch-size", type=number_in(int, 1), default=4, help="images or tiles at a time (%(default)s)"
    )
    model.add_argument("--bfloat16", action="store_true", help="faster where the hardware has it, less exact")
    found = parser.add_argument_group("detections")
    found.add_argument("--score", type=number_in(float, 0, 1), default=0.3, help="lowest score, 0 to 1 (%(default)s)")
    found.add_argument("--classes", default="", metavar="A,B", help="names of the classes to keep (all)")
    tiles = parser.add_argument_group("large images")
    tiles.add_argument(
        "--tile", type=number_in(int, 1), help="side of overlapping tiles in px (the config's TEST.TILE)"
    )
    tiles.add_argument("--overlap", type=float, help="share of a tile that neighbors see too (0.2)")
    tiles.add_argument(
        "--select",
        type=number_in(int, 2),
        metavar="N",
        help="skip tiles in which a look at the image, reduced N times, finds nothing",
    )
    tiles.add_argument("--whole-image", action="store_true", help="look at the whole image too, for large objects")
    written = parser.add_argument_group("results")
    written.add_argument("--no-drawings", action="store_true", help="no images and videos with boxes")
    written.add_argument("--no-labels", action="store_true", help="boxes without class and score")
    written.add_argument("--masks", action="store_true", help="also <name>_masks.jpg: where a sparse head computes")
    written.add_argument(
        "--mask-width", type=number_in(int, 16), default=320, help="px of one map in its grid (%(default)s)"
    )
    written.add_argument("--save-json", action="store_true", help="coco_results.json and coco_images.json")
    written.add_argument("--image-ids", type=Path, metavar="JSON", help="COCO json whose ids the results shall have")
    written.add_argument("--save-csv", action="store_true", help="detections.csv")
    written.add_argument("--max-frames", type=number_in(int, 1), help="stop after so many images and frames")
    written.add_argument("--strict", action="store_true", help="exit code 1 if any file fails")
    add_overrides(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), predict, argv)


def predict(args: argparse.Namespace) -> int:
    """Predict all that the command line names.

    Returns:
        1 if nothing could be read, or not everything with ``--strict``, or it was interrupted; else 0.

    Raises:
        ConfigError: options that cannot work.
        CheckpointError, DatasetError, OSError: weights, inputs or the output folder cannot be used.
    """
    setup_logger(name="d2_ext").setLevel(logging.WARNING)
    # 1. Refuse what cannot work before a model is built.
    if args.no_drawings and not (args.save_json or args.save_csv or args.masks):
        raise ConfigError("--no-drawings leaves nothing to write. Add --save-json, --save-csv or --masks.")
    if args.model and (args.weights or args.config_file):
        raise ConfigError("--model comes with its weights and config. Leave out --weights and --config-file.")
    weights = PREFIX + args.model if args.model else args.weights
    sources = find_sources(args.input)
    _check_output(args, sources)
    print(f"Results go to {args.output.resolve()}")
    # 2. The detector, and the classes to keep.
    tiles = {"SIZE": args.tile, "OVERLAP": args.overlap, "SELECT": args.select, "WHOLE_IMAGE": args.whole_image or None}
    overrides = ["MODEL.DEVICE", choose_device(args.device)]
    for key, value in tiles.items():
        overrides += [f"TEST.TILE.{key}", str(value)] if value is not None else []
    cfg = detector_config(weights, args.config_file, [*overrides, *args.opts])
    predictor = BatchPredictor(cfg, batch_size=args.batch_size, score_thresh=args.score, bfloat16=args.bfloat16)
    wanted = _class_numbers(args.classes, predictor.class_names)
    if args.overwrite and args.output.is_dir():
        removed = remove_results(args.output)
        others = sum(len(files) for _, _, files in os.walk(args.output))
        stay = f"; {others} other files in the folder stay" if others else ""
        if removed or others:
            print(f"Removed {removed} results of an earlier prediction{stay}")
    # 3. A thread reads ahead; batches are predicted and written until the end, or until Ctrl-C.
    total = count_frames(sources)
    if args.max_frames is not None:
        total = args.max_frames if total is None else min(total, args.max_frames)
    wanted_frames = islice((frame for source in sources for frame in source.frames()), args.max_frames)
    images, detections, problems, interrupted = 0, 0, [], False
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writer) for writer in _writers(args, predictor, sources)]
        frames = stack.enter_context(contextlib.closing(read_ahead(wanted_frames, 2 * args.batch_size)))
        bar = stack.enter_context(tqdm(total=total, unit=" images", dynamic_ncols=True, bar_format=BAR))
        try:
            while batch := list(islice(frames, args.batch_size)):
                problems += [frame.error for frame in batch if frame.image is None]
                good = [(frame, frame.image) for frame in batch if frame.image is not None]
                for frame, found in _predicted(predictor, good):
                    written = _written(frame, found, wanted, writers)
                    if isinstance(written, str):
                        problems.append(written)
                    else:
                        images += 1
                        detections += written
                bar.update(len(batch))
        except KeyboardInterrupt:  # what is done is kept; a camera has no other end
            interrupted = any(source.kind != "camera" for source in sources)
    seconds = max(time.perf_counter() - started, 1e-9)
    # 4. Say what was done, and what failed.
    if problems:
        with replacing(args.output / "unreadable.txt") as path:
            path.write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")
        note_result(args.output, args.output / "unreadable.txt")
        shown = [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
        shown += [f"  and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
        print(f"{len(problems)} failed (unreadable.txt):", *shown, sep="\n", file=sys.stderr)
    if interrupted:
        print("interrupted; the results so far are written", file=sys.stderr)
    print(
        f"{detections} detections on {images} images in {seconds:.1f} s ({images / seconds:.1f} images/s), "
        f"written to {args.output.resolve()}"
    )
    if cfg.TEST.TILE.SELECT and predictor.num_tiles:
        share = predictor.num_skipped_tiles / predictor.num_tiles
        print(f"{predictor.num_skipped_tiles} of {predictor.num_tiles} tiles were skipped ({share:.0%})")
    if images and not detections:
        best = f"the best score was {predictor.best_score:.2f}" if predictor.best_score else "nothing had any score"
        kept = f" of the classes {args.classes}" if args.classes else ""
        print(f"Nothing{kept} reached --score {args.score:g}; {best}.")
    return int(images == 0 or interrupted or bool(args.strict and problems))


def _predicted(
    predictor: BatchPredictor, batch: Sequence[tuple[Frame, np.ndarray]]
) -> Iterator[tuple[Frame, Instances | str]]:
    """Detections of each frame, or why it has none: memory that does not suffice for all may suffice for each."""
    if len(batch) > 1:
        try:
            together = predictor.predict_batch([image for _, image in batch])
        except Exception as error:  # MemoryError, and what torch raises in its place
            if not is_out_of_memory(error):
                raise
        else:
            yield from zip((frame for frame, _ in batch), together, strict=True)
            return
    for frame, image in batch:
        try:
            with naming_memory(frame, "computed"):
                found: Instances | str = predictor.predict_batch([image])[0]
        except DatasetError as error:
            if not _costs_one_image(error, frame):
                raise
            found = str(error)
        yield frame, found


def _written(
    frame: Frame, found: Instances | str, wanted: torch.Tensor | None, writers: Sequence[ResultWriter]
) -> int | str:
    """How many detections of the wanted classes were written, or why the frame has none."""
    if isinstance(found, str):
        return found
    kept = found if wanted is None else found[torch.isin(found.pred_classes, wanted)]
    try:
        for writer in writers:
            writer.write(frame, kept)
    except DatasetError as error:
        if not _costs_one_image(error, frame):
            raise
        return str(error)
    return len(kept)


def _costs_one_image(error: DatasetError, frame: Frame) -> bool:
    """Whether an error must not stop a folder: a name that is too long, an image that memory does not suffice for."""
    cause = error.__cause__
    if cause is not None and is_out_of_memory(cause):
        return frame.number is None  # frames of a video are all as large
    return getattr(cause, "errno", None) == errno.ENAMETOOLONG


def _check_output(args: argparse.Namespace, sources: Sequence[Source]) -> None:
    """Refuse an output folder that holds something already, or the inputs."""
    folder = args.output.resolve()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is a file. Expected a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not args.overwrite:
        raise ConfigError(f"--output {folder} is not empty. Name a new folder, or add --overwrite.")
    paths = [source.path for source in sources if source.kind != "camera"]
    paths += [str(args.image_ids)] if args.image_ids else []
    inside = [path for path in paths if folder in Path(path).resolve().parents]
    if inside:
        raise ConfigError(f"--output {folder} holds the input {inside[0]}, which would be overwritten. Name another.")


def _class_numbers(text: str, names: Sequence[str]) -> torch.Tensor | None:
    """Numbers of the classes in ``"car,van"``; None for all."""
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"--classes: the detector has no class {name!r}. {did_you_mean(name, names)}".rstrip())
    return torch.tensor([list(names).index(name) for name in wanted]) if wanted else None


def _writers(args: argparse.Namespace, predictor: BatchPredictor, sources: Sequence[Source]) -> Iterator[ResultWriter]:
    """The writers that the command line asks for."""
    if not args.no_drawings:
        rates = {source.name: source.video_properties()[1] for source in sources if source.kind != "image"}
        yield DrawingWriter(args.output, predictor.metadata, rates, labels=not args.no_labels)
    if args.masks:
        yield MaskWriter(args.output, predictor, args.mask_width)
    if args.save_json:
        ids = None
        if args.image_ids:
            try:
                content = json.loads(args.image_ids.read_text(encoding="utf-8"))
                ids = {Path(row["file_name"]).name: row["id"] for row in content["images"]}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DatasetError(f"--image-ids {args.image_ids} is no COCO json with images ({error!r}).") from error
        yield CocoWriter(args.output, predictor.metadata, predictor.num_classes, ids)
    if args.save_csv:
        yield CsvWriter(args.output / "detections.csv", predictor.metadata)
