"""Track what a detector finds in a video, and count what crosses a line.

The detector is one of this project, the tracker ByteTrack of the package ``trackers``, and supervision counts and
draws: ``pip install supervision trackers``.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from d2_ext.cli.command import command_parser, number_in, run_command
from d2_ext.errors import ConfigError, DatasetError
from d2_ext.files import replacing
from d2_ext.images import read_image
from d2_ext.inference import BatchPredictor, to_supervision
from d2_ext.inference.loading import detector_config
from d2_ext.inference.sources import find_sources
from d2_ext.utils.devices import choose_device

import cv2

EXAMPLES = """examples:
  a video that moves over a thermal image, then the objects that pass its middle:
    python projects/tracking/count_crossings.py --pan docs/images/thermal.jpg output/pan.mp4 --output output/counted
  your video and your detector, a line across the lower third:
    python projects/tracking/count_crossings.py flight.mp4 --output output/flight \\
        --weights output/quickstart/model_final.pth --line 0 0.67 1 0.67

exit codes: 0 done, 1 the video or the weights cannot be used, 2 wrong usage
"""
PAN_STEP = 4  # px between two frames
LOWEST_SCORE = 0.1  # ByteTrack follows objects through frames in which they are found with a low score
SAME_OBJECT = 0.6  # IoU above which two boxes are one object, whatever their classes: trackers know no classes


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("video", help="a video; with --pan it is written first")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="gets tracked.mp4, crossings.csv")
    parser.add_argument("--pan", type=Path, metavar="IMAGE", help="write the video: a window that moves over an image")
    parser.add_argument("--model", default="thermal_drone", help="of the package, if no --weights (%(default)s)")
    parser.add_argument("--weights", default="", help="checkpoint; its config.yaml lies beside it")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (%(default)s)")
    parser.add_argument(
        "--score", type=number_in(float, LOWEST_SCORE, 1), default=0.5, help="that starts a track (%(default)s)"
    )
    parser.add_argument(
        "--line",
        type=number_in(float, 0, 1),
        nargs=4,
        default=[0.5, 0, 0.5, 1],
        metavar=("X0", "Y0", "X1", "Y1"),
        help="its ends as shares of width and height (0.5 0 0.5 1, upright in the middle)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), count, argv)


def write_pan(image: Path, video: Path) -> None:
    """Write a video in which a window, half as wide as an image and as high, moves over it from left to right.

    Args:
        image: the file; its right half comes into view with ``PAN_STEP`` px a frame, 25 frames a second.
        video: to write, MPEG-4.

    Raises:
        DatasetError: the image cannot be read, or the video not be written.
    """
    pixels = read_image(image)
    height, width = pixels.shape[0], pixels.shape[1] // 2
    with replacing(video) as path:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (width, height))
        if not writer.isOpened():
            raise DatasetError(f"{video}: OpenCV cannot write MPEG-4 video there. Name a file that ends in .mp4.")
        for left in range(0, pixels.shape[1] - width + 1, PAN_STEP):
            writer.write(pixels[:, left : left + width])
        writer.release()


def count(args: argparse.Namespace) -> None:
    """Track, draw and count.

    Raises:
        ConfigError: a package is not installed, or the options make no sense.
        CheckpointError, DatasetError: the weights or the video cannot be used.
    """
    try:
        import supervision as sv
        from trackers import ByteTrackTracker
    except ImportError as error:
        raise ConfigError(f"{error}. Tracking needs: pip install supervision trackers") from error
    if args.line[:2] == args.line[2:]:
        raise ConfigError(f"--line {' '.join(map(str, args.line))}: both ends are one point. Expected two.")
    if args.pan:
        write_pan(args.pan, Path(args.video))
    (source, *others) = find_sources([args.video])
    if others or source.kind != "video":
        raise ConfigError(f"{args.video} is no video. Expected one file, such as flight.mp4.")

    weights = args.weights or f"d2_ext://{args.model}"
    cfg = detector_config(weights, overrides=["MODEL.DEVICE", choose_device(args.device)])
    predictor = BatchPredictor(cfg, score_thresh=LOWEST_SCORE)
    frames = source.frames()
    first = next(frames)
    if first.image is None:
        raise DatasetError(first.error)
    height, width = first.image.shape[:2]
    _, rate = source.video_properties()

    tracker = ByteTrackTracker(
        frame_rate=rate, track_activation_threshold=args.score, high_conf_det_threshold=args.score
    )
    x0, y0, x1, y1 = args.line
    # An object crosses with its center: with all four corners, the default, a wide one may never be on one side.
    line = sv.LineZone(
        sv.Point(x0 * width, y0 * height), sv.Point(x1 * width, y1 * height), triggering_anchors=[sv.Position.CENTER]
    )
    by_track = {"color_lookup": sv.ColorLookup.TRACK}
    annotators = [sv.BoxAnnotator(thickness=1, **by_track), sv.TraceAnnotator(thickness=1, **by_track)]
    crossings: list[tuple[int, str, int, str, str]] = []
    args.output.mkdir(parents=True, exist_ok=True)
    info = sv.VideoInfo(width=width, height=height, fps=round(rate))
    with replacing(args.output / "tracked.mp4") as path, sv.VideoSink(str(path), info) as sink:
        for number, frame in enumerate((first, *frames)):
            (found,) = predictor([frame.image])
            detections = to_supervision(found, predictor.class_names).with_nms(SAME_OBJECT, class_agnostic=True)
            tracked = tracker.update(detections)
            tracked = tracked[tracked.tracker_id >= 0]  # -1: not yet, or too low a score
            for direction, crossed in zip(("in", "out"), line.trigger(tracked), strict=True):
                for track, name in zip(tracked.tracker_id[crossed], tracked.data["class_name"][crossed]):
                    crossings.append((number, f"{number / rate:.2f}", int(track), str(name), direction))
            image = frame.image.copy()
            for annotator in annotators:
                image = annotator.annotate(image, tracked)
            sink.write_frame(sv.LineZoneAnnotator(thickness=1, text_scale=0.4).annotate(image, line))

    with replacing(args.output / "crossings.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("frame", "second", "track", "class", "direction"), *crossings])
    for (name, direction), total in sorted(Counter((row[3], row[4]) for row in crossings).items()):
        print(f"{total:>5} {name} {direction}")
    print(f"{line.in_count} in, {line.out_count} out; tracked.mp4 and crossings.csv are in {args.output.resolve()}")


if __name__ == "__main__":
    raise SystemExit(main())
