"""Detect on images, folders, glob patterns, videos and cameras; write images, videos, COCO results and tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from d2_ext.checkpoint.safe import check_file
from d2_ext.engine import build_config
from d2_ext.errors import CheckpointError, ConfigError, DatasetError, did_you_mean
from d2_ext.files import replacing
from d2_ext.inference import BatchPredictor
from d2_ext.inference.sources import Frame, Source, count_frames, find_sources, read_ahead
from d2_ext.inference.writers import CocoWriter, CsvWriter, DrawingWriter, ResultWriter, image_name, write_image
from d2_ext.utils.devices import choose_device
from d2_ext.visualization import draw_masks

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

EXAMPLES = """examples:
  a folder of images with the quick start's detector (its config.yaml lies beside the weights):
    python tools/predict.py --weights output/quickstart/model_final.pth datasets/images --output output/predicted
  cars and vans of score 0.5 on all images below a folder, as COCO results and a table, nothing drawn:
    python tools/predict.py --weights output/quickstart/model_final.pth 'datasets/**/*.jpg' --output output/predicted \\
        --score 0.5 --classes car,van --save-json --save-csv --no-drawings
  a video, and images of 4000 px on tiles:
    python tools/predict.py --weights output/quickstart/model_final.pth flight.mp4 --output output/video
    python tools/predict.py --weights output/quickstart/model_final.pth large.jpg --output output/large --tile 1024

exit codes: 0 done, 1 nothing could be read, weights unusable or interrupted, 2 wrong usage
A file that cannot be read is reported at the end and in unreadable.txt; with --strict it makes the exit code 1.
"""
SHOWN_PROBLEMS = 10
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"  # never seconds an image


@dataclass
class Outcome:
    """What a run did."""

    images: int = 0
    detections: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", nargs="+", help="images, folders, glob patterns in quotes, videos, number of a camera")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    model = parser.add_argument_group("detector")
    model.add_argument("--weights", default="", help="checkpoint; MODEL.WEIGHTS of the config if not given")
    model.add_argument("--config-file", default="", help="config.yaml beside the weights if not given")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    model.add_argument("--batch-size", type=int, default=4, help="images or tiles at a time (%(default)s)")
    model.add_argument("--bfloat16", action="store_true", help="faster where the hardware has it, less exact")
    found = parser.add_argument_group("detections")
    found.add_argument("--score", type=float, default=0.3, help="lowest score, 0 to 1 (%(default)s)")
    found.add_argument("--classes", default="", metavar="A,B", help="names of the classes to keep (all)")
    tiles = parser.add_argument_group("large images")
    tiles.add_argument(
        "--tile", type=int, default=None, help="side of overlapping tiles in px (the config's TEST.TILE)"
    )
    tiles.add_argument("--overlap", type=float, default=None, help="share of a tile that neighbours see too (0.2)")
    tiles.add_argument("--whole-image", action="store_true", help="look at the whole image too, for large objects")
    written = parser.add_argument_group("results")
    written.add_argument("--no-drawings", action="store_true", help="no images and videos with boxes")
    written.add_argument("--masks", action="store_true", help="also <name>_masks.jpg: where a sparse head computes")
    written.add_argument("--save-json", action="store_true", help="coco_results.json and coco_images.json")
    written.add_argument("--image-ids", type=Path, metavar="JSON", help="COCO json whose ids the results shall have")
    written.add_argument("--save-csv", action="store_true", help="detections.csv")
    written.add_argument("--max-frames", type=int, default=None, help="stop after so many images and frames")
    written.add_argument("--strict", action="store_true", help="exit code 1 if any file cannot be read")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config changes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    setup_logger(name="d2_ext").setLevel(logging.WARNING)
    try:
        outcome = run(args)
    except ConfigError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, DatasetError, OSError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 1
    report(outcome, args.output)
    failed = outcome.images == 0 or outcome.interrupted or (args.strict and outcome.problems)
    return 1 if failed else 0


def run(args: argparse.Namespace) -> Outcome:
    """Predict all that the command line names.

    Raises:
        ConfigError: options that cannot work.
        CheckpointError, DatasetError, OSError: weights, inputs or the output folder cannot be used.
    """
    check_options(args)
    sources = find_sources(args.input)
    check_output(args, sources)
    print(f"Results go to {args.output.resolve()}")
    predictor = BatchPredictor(
        config(args), batch_size=args.batch_size, score_thresh=args.score, bfloat16=args.bfloat16
    )
    wanted = class_numbers(args.classes, predictor.class_names)
    if args.masks:
        predictor.activation_masks([])  # refused here, not after an hour
    outcome, started = Outcome(), time.perf_counter()
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writer) for writer in make_writers(args, predictor, sources)]
        frames = stack.enter_context(contextlib.closing(read_ahead(all_frames(args, sources), 2 * args.batch_size)))
        total = total_frames(args, sources)
        bar = stack.enter_context(tqdm(total=total, unit=" images", dynamic_ncols=True, bar_format=BAR))
        try:
            while batch := list(islice(frames, args.batch_size)):
                predict(batch, predictor, wanted, writers, args, outcome)
                bar.update(len(batch))
        except KeyboardInterrupt:  # what is done is kept; a camera has no other end
            outcome.interrupted = any(source.kind != "camera" for source in sources)
    outcome.seconds = time.perf_counter() - started
    return outcome


def predict(
    batch: Sequence[Frame],
    predictor: BatchPredictor,
    wanted: torch.Tensor | None,
    writers: Sequence[ResultWriter],
    args: argparse.Namespace,
    outcome: Outcome,
) -> None:
    """Predict and write one batch, and note what happened."""
    outcome.problems += [frame.error for frame in batch if frame.image is None]
    good = [frame for frame in batch if frame.image is not None]
    for frame, instances in zip(good, predictor.predict_batch([frame.image for frame in good])):
        kept = instances if wanted is None else instances[torch.isin(instances.pred_classes, wanted)]
        for writer in writers:
            writer.write(frame, kept)
        if args.masks:
            write_masks(frame, predictor, args.output)
        outcome.images += 1
        outcome.detections += len(kept)


def write_masks(frame: Frame, predictor: BatchPredictor, folder: Path) -> None:
    """Draw where the sparse head computes on one frame."""
    (masks,) = predictor.activation_masks([frame.image])
    name = image_name(frame.name)
    number = "" if frame.number is None else f"_{frame.number:06d}"
    write_image(folder / name.with_name(f"{name.stem}{number}_masks.jpg"), draw_masks(frame.image, masks))


def config(args: argparse.Namespace) -> CfgNode:
    """The config of the detector, with what the command line says."""
    config_file = args.config_file
    if not config_file and args.weights:
        check_file(args.weights)
        beside = Path(args.weights).with_name("config.yaml")
        if not beside.is_file():
            raise ConfigError(f"There is no {beside}. Name the config of the weights with --config-file.")
        config_file = str(beside)
    if not config_file:
        raise ConfigError("No detector is named. Give --weights (and --config-file, unless it lies beside them).")
    options = ["MODEL.DEVICE", choose_device(args.device)]
    options += ["MODEL.WEIGHTS", args.weights] if args.weights else []
    for key, value in (("SIZE", args.tile), ("OVERLAP", args.overlap), ("WHOLE_IMAGE", args.whole_image or None)):
        options += [f"TEST.TILE.{key}", str(value)] if value is not None else []
    cfg = build_config(argparse.Namespace(config_file=config_file, opts=[*options, *args.opts]), needs_data=False)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(f"{config_file} names no weights. Give them with --weights.")
    return cfg


def check_options(args: argparse.Namespace) -> None:
    """Refuse numbers out of range.

    Raises:
        ConfigError: naming the option.
    """
    if not 0 <= args.score <= 1:
        raise ConfigError(f"--score {args.score}: expected 0 to 1.")
    for name in ("batch_size", "tile", "max_frames"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected 1 or more.")
    if args.no_drawings and not (args.save_json or args.save_csv or args.masks):
        raise ConfigError("--no-drawings leaves nothing to write. Add --save-json, --save-csv or --masks.")


def check_output(args: argparse.Namespace, sources: Sequence[Source]) -> None:
    """Refuse an output folder that holds something already, or the inputs.

    Raises:
        ConfigError: saying which.
    """
    folder = args.output.resolve()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is a file. Expected a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not args.overwrite:
        raise ConfigError(f"--output {folder} is not empty. Name a new folder, or add --overwrite.")
    inside = [s.path for s in sources if s.kind != "camera" and folder in Path(s.path).resolve().parents]
    if inside:
        raise ConfigError(f"--output {folder} holds the input {inside[0]}, which would be overwritten. Name another.")


def class_numbers(text: str, names: Sequence[str]) -> torch.Tensor | None:
    """Numbers of the classes in ``"car,van"``; None for all.

    Raises:
        ConfigError: for a name the detector does not know, with the nearest ones.
    """
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"--classes: the detector has no class {name!r}. {did_you_mean(name, names)}".rstrip())
    return torch.tensor([list(names).index(name) for name in wanted]) if wanted else None


def make_writers(
    args: argparse.Namespace, predictor: BatchPredictor, sources: Sequence[Source]
) -> Iterator[ResultWriter]:
    """The writers that the command line asks for."""
    if not args.no_drawings:
        rates = {source.name: source.video_properties()[1] for source in sources if source.kind != "image"}
        yield DrawingWriter(args.output, predictor.metadata, rates)
    if args.save_json:
        ids = image_ids(args.image_ids) if args.image_ids else None
        yield CocoWriter(args.output, predictor.metadata, predictor.num_classes, ids)
    if args.save_csv:
        yield CsvWriter(args.output / "detections.csv", predictor.metadata)


def image_ids(path: Path) -> dict[str, int]:
    """Id of each image of a COCO json, by base name.

    Raises:
        DatasetError: if it cannot be read.
    """
    try:
        return {Path(row["file_name"]).name: row["id"] for row in json.loads(path.read_text())["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"--image-ids {path} is no COCO json with images ({error!r}).") from error


def all_frames(args: argparse.Namespace, sources: Iterable[Source]) -> Iterator[Frame]:
    """The frames of all sources, one after the other, up to ``--max-frames``."""
    return islice((frame for source in sources for frame in source.frames()), args.max_frames)


def total_frames(args: argparse.Namespace, sources: Sequence[Source]) -> int | None:
    """Length of the progress bar, if it is known."""
    counted = count_frames(sources)
    if args.max_frames is None:
        return counted
    return args.max_frames if counted is None else min(counted, args.max_frames)


def report(outcome: Outcome, folder: Path) -> None:
    """Say what was done, and what could not be read."""
    if outcome.problems:
        with replacing(folder / "unreadable.txt") as path:
            path.write_text("".join(f"{problem}\n" for problem in outcome.problems), encoding="utf-8")
        print(f"predict: {len(outcome.problems)} could not be read (unreadable.txt):", file=sys.stderr)
        for problem in outcome.problems[:SHOWN_PROBLEMS]:
            print(f"  {problem}", file=sys.stderr)
        if len(outcome.problems) > SHOWN_PROBLEMS:
            print(f"  and {len(outcome.problems) - SHOWN_PROBLEMS} more", file=sys.stderr)
    if outcome.interrupted:
        print("predict: interrupted; the results so far are written", file=sys.stderr)
    rate = outcome.images / max(outcome.seconds, 1e-9)
    print(
        f"{outcome.detections} detections on {outcome.images} images in {outcome.seconds:.1f} s "
        f"({rate:.1f} images/s), written to {folder.resolve()}"
    )


if __name__ == "__main__":
    sys.exit(main())
