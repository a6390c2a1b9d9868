"""Detect with an exported ONNX file: needs numpy, onnxruntime and OpenCV, and neither torch, Detectron2 nor d2_ext.

Everything else it has to know (names of the classes, order of the channels, size of the images) is in the file. The
file may come from a stranger: it is checked before onnxruntime opens it, and cannot ask for more memory than --memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

EXAMPLES = """examples:
  python projects/deploy/onnx_predict.py detector.onnx image.jpg
  python projects/deploy/onnx_predict.py detector.onnx photos/ flight.mp4 --output drawn --threshold 0.5 --overwrite

exit codes: 0 done, 1 a file cannot be used, 2 wrong usage
"""


INPUT, OUTPUTS = "images", ["boxes", "scores", "classes", "image"]
LARGEST_FILE = 2**31  # bytes
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
# The parts of an ONNX file that are looked at: kind of message -> number of a field -> kind of the message in it.
PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {},
}
OPERATOR, DOMAIN, EXTERNAL_DATA, DATA_LOCATION = 4, 7, 13, 14  # fields of nodes and tensors


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="written by tools/export.py --format onnx")
    parser.add_argument("images", nargs="+", type=Path, help="images, videos, and folders of them (not subfolders)")
    parser.add_argument("--output", type=Path, default=Path("detections"), help="folder of drawings (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    parser.add_argument("--memory", type=float, default=8, help="GB that this program may use; Linux only (8)")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score to draw and print (0.3)")
    return parser


def fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and content of each field of a protobuf message: a whole number or bytes.

    Raises:
        ValueError: it is none.
    """

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while at < len(message) and shift < 70:
            value |= (message[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if message[at - 1] < 128:
                return value, at
        raise ValueError("it is no ONNX file, or cut off")

    position = 0
    while position < len(message):
        key, position = number(position)
        if key & 7 == 0:
            value, position = number(position)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, position = number(position)
        else:
            size = {1: 8, 5: 4}.get(key & 7, len(message))
        if size > len(message) - position:
            raise ValueError("it is no ONNX file, or cut off")
        yield key >> 3, message[position : position + size]
        position += size


def check_file(message: memoryview, kind: str = "model", depth: int = 0) -> None:
    """Refuse weights in other files, and operators that are not ONNX's own, in a part of a file and all within it.

    Raises:
        ValueError: there are some, or the file is damaged.
    """
    if kind == "function" or depth > 50:
        raise ValueError(
            "it brings functions of its own, or is nested without end; tools/export.py writes no such file"
        )
    operator = ""
    for number, value in fields(message):
        if kind == "node" and number in (OPERATOR, DOMAIN) and not isinstance(value, int):
            text = bytes(value).decode("utf-8", "replace")
            operator = text if number == OPERATOR else operator
            if number == DOMAIN and text not in ("", "ai.onnx"):
                raise ValueError(f"its operator {text}.{operator} is not ONNX's own")
        if kind == "tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value)):
            raise ValueError("it has weights in another file; tools/export.py writes no such file")
        if number in PARTS[kind]:
            if isinstance(value, int):
                raise ValueError("it is no ONNX file, or damaged")
            check_file(value, PARTS[kind][number], depth + 1)


def limit_memory(gigabytes: float) -> None:
    """Let whatever would use more memory fail, instead of the machine."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 1e9), resource.getrlimit(resource.RLIMIT_AS)[1]))


class Detector:
    """An exported detector.

    Args:
        path: of the ``.onnx`` file.

    Attributes:
        class_names: K names.

    Raises:
        ValueError: the file is refused, or holds no metadata of d2_ext.
    """

    def __init__(self, path: str) -> None:
        if os.path.getsize(path) > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE} bytes")
        content = Path(path).read_bytes()
        check_file(memoryview(content))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = [[x.name for x in given] for given in (self.session.get_inputs(), self.session.get_outputs())]
        if names != [[INPUT], OUTPUTS]:
            raise ValueError(f"it takes {names[0]} and gives {names[1]}; expected {[INPUT]} and {OUTPUTS}")
        self.stored = self.session.get_modelmeta().custom_metadata_map
        if "class_names" not in self.stored:
            raise ValueError("it holds no metadata of d2_ext. Export it with tools/export.py")
        self.class_names: list[str] = self.value(
            "class_names", "a list of names", lambda v: isinstance(v, list) and v and all(type(x) is str for x in v)
        )
        self.is_rgb = self.value("input_format", "BGR or RGB", lambda v: v in ("BGR", "RGB")) == "RGB"
        self.dtype = np.dtype(self.value("input_dtype", "uint8 or float32", lambda v: v in ("uint8", "float32")))
        self.min_size, self.max_size = (
            self.value(key, "px, 0 to 100000", lambda v: type(v) is int and 0 <= v <= 100_000)
            for key in ("min_size", "max_size")
        )

    def value(self, key: str, expected: str, holds: Callable[[Any], Any]) -> Any:
        """A value of the metadata.

        Raises:
            ValueError: it is missing, or not as expected.
        """
        text = self.stored.get(key, "")
        try:
            value = json.loads(text)
            if holds(value):
                return value
        except (ValueError, RecursionError):
            pass
        raise ValueError(f"its metadata {key} is {text[:80]!r}; expected {expected}")

    def __call__(self, image: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        """Detect in one image.

        Args:
            image: (H, W, 3) BGR, as ``cv2.imread`` gives it.

        Returns:
            Boxes (D, 4) XYXY px of the image, scores (D,), classes (D,), best first.

        Raises:
            ValueError: the graph gives something other than detections.
        """
        height, width = image.shape[:2]
        resized = self.resize(image)
        pixels = resized[:, :, ::-1] if self.is_rgb else resized
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]).astype(self.dtype)
        boxes, scores, classes, _ = (np.asarray(x) for x in self.session.run(OUTPUTS, {INPUT: batch}))
        count = scores.shape[0] if scores.ndim == 1 else -1
        if boxes.shape != (count, 4) or classes.shape != (count,) or classes.dtype.kind not in "iu":
            raise ValueError(f"it gives boxes {boxes.shape}, scores {scores.shape} and classes {classes.shape}")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError("it gives boxes or scores that are not finite")
        if count and not 0 <= classes.min() <= classes.max() < len(self.class_names):
            raise ValueError(f"it gives classes beyond its {len(self.class_names)} names")
        scale = np.array([width / resized.shape[1], height / resized.shape[0]], dtype=np.float32)
        return np.clip(boxes * np.tile(scale, 2), 0, [width, height] * 2), scores, classes

    def resize(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Bring an image to the size that the model was tested at."""
        if self.min_size == 0:
            return image
        height, width = image.shape[:2]
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def draw(image: np.ndarray[Any, Any], box: np.ndarray[Any, Any], label: str, color: tuple[int, ...]) -> None:
    """Draw one box with its label, in place; lines and letters grow with the image."""
    left, top, right, bottom = (round(float(v)) for v in box)
    longer = max(image.shape[:2])
    width, letter = max(1, round(longer / 800)), max(0.35, longer / 2600)
    cv2.rectangle(image, (left, top), (right, bottom), color, width)
    above = (left, max(top - 3 * width, round(24 * letter)))
    cv2.putText(image, label, above, cv2.FONT_HERSHEY_SIMPLEX, letter, color, width, cv2.LINE_AA)


def class_color(number: int) -> tuple[int, ...]:
    """A bright color (blue, green, red) for a class."""
    hue = np.array([[[number * 47 % 180, 200, 255]]], dtype=np.uint8)
    return tuple(int(v) for v in cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0])


def find_files(inputs: Sequence[Path]) -> list[Path]:
    """The files that are named, and in place of each folder the images and videos in it, sorted.

    Raises:
        ValueError: a folder holds none.
    """
    found: list[Path] = []
    for path in inputs:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES + VIDEOS) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"the folder {path} holds no image and no video ({', '.join(IMAGES + VIDEOS)})")
        found += inside
    return list(dict.fromkeys(found))


def drawing_of(path: Path, output: Path) -> Path:
    """Where the drawing of an image or video goes."""
    return output / f"{path.stem}{'.mp4' if path.suffix.lower() in VIDEOS else '.png'}"


def detect_and_draw(detector: Detector, image: np.ndarray[Any, Any], name: str, threshold: float) -> None:
    """Print the detections of an image and draw them, in place."""
    for box, score, number in zip(*detector(image)):
        if score >= threshold:
            label = detector.class_names[number]
            print(f"{name}\t{label}\t{score:.3f}\t" + "\t".join(f"{v:.1f}" for v in box))
            draw(image, box, f"{label} {score:.2f}", class_color(int(number)))


def detect_in_video(detector: Detector, path: Path, drawn: Path, threshold: float) -> None:
    """Print the detections of each frame, named ``file#number``, and write a video with them.

    Raises:
        ValueError: no frame can be read, or the video cannot be written; nothing is left of it then.
    """
    capture = cv2.VideoCapture(str(path))
    rate = capture.get(cv2.CAP_PROP_FPS)
    writer: Any = None
    number = 0
    try:
        while (frame := capture.read())[0]:
            image = np.ascontiguousarray(frame[1])
            detect_and_draw(detector, image, f"{path.name}#{number}", threshold)
            if writer is None:
                size = image.shape[1], image.shape[0]
                writer = cv2.VideoWriter(
                    str(drawn), cv2.VideoWriter.fourcc(*"mp4v"), rate if 0 < rate < 1000 else 25.0, size
                )
                if not writer.isOpened():
                    raise ValueError(f"{drawn} could not be written")
            writer.write(image)
            number += 1
        if number == 0:
            raise ValueError("no frame could be read")
    except BaseException:
        if writer is not None:
            writer.release()
            drawn.unlink(missing_ok=True)
        raise
    finally:
        capture.release()
    writer.release()


def refusal(images: Sequence[Path], output: Path, *, overwrite: bool) -> str | None:
    """Why nothing should be written there; None if it may be."""
    if output.exists() and not output.is_dir():
        return f"--output {output} is a file. Expected a folder."
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        return f"--output {output} is not empty. Name a new folder, or add --overwrite."
    drawn: dict[Path, Path] = {}
    for path in images:
        target = drawing_of(path, output)
        if drawn.setdefault(target, path) != path:
            return f"{drawn[target]} and {path} would both be drawn into {target.name}. Run once for each."
    same = [path for path in images if path.resolve() == drawing_of(path, output).resolve()]
    return f"{same[0]} would be overwritten. Name another --output." if same else None


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and print detections; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    try:
        files = find_files(args.images)
    except (ValueError, OSError) as error:
        print(f"onnx_predict: {error}.", file=sys.stderr)
        return 1
    refused = refusal(files, args.output, overwrite=args.overwrite)
    if refused:
        print(f"onnx_predict: {refused}", file=sys.stderr)
        return 2
    if not Path(args.model).is_file():
        print(f"onnx_predict: there is no file {Path(args.model).absolute()}.", file=sys.stderr)
        return 1
    limit_memory(args.memory)
    try:
        detector = Detector(args.model)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        print(f"onnx_predict: {args.model} cannot be used: {error or type(error).__name__}.", file=sys.stderr)
        return 1
    args.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in files:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        drawn = drawing_of(path, args.output)
        try:
            # OpenCV crashes on names that are not UTF-8.
            if path.suffix.lower() in VIDEOS and name == str(path):
                detect_in_video(detector, path, drawn, args.threshold)
                continue
            image = cv2.imread(str(path)) if name == str(path) else None
            if image is None:
                raise ValueError("no readable image, or its name is not UTF-8")
            detect_and_draw(detector, image, path.name, args.threshold)
            if not cv2.imwrite(str(drawn), image):
                raise ValueError(f"{drawn} could not be written")
        except Exception as error:  # of OpenCV and onnxruntime; the other images go on
            print(f"onnx_predict: {name}: {error or type(error).__name__}.", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
