"""Detect with an exported ONNX file: needs numpy, onnxruntime and OpenCV, and neither torch, Detectron2 nor d2_ext.

Everything else it has to know (names of the classes, order of the channels, size of the images) is in the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

EXAMPLES = """examples:
  python projects/deploy/onnx_predict.py detector.onnx image.jpg
  python projects/deploy/onnx_predict.py detector.onnx photos/*.jpg --output drawn --threshold 0.5 --overwrite

exit codes: 0 done, 1 a file cannot be used, 2 wrong usage
"""


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="written by tools/export.py --format onnx")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("detections"), help="folder of drawings (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score to draw and print (0.3)")
    return parser


class Detector:
    """An exported detector.

    Args:
        path: of the ``.onnx`` file.

    Attributes:
        class_names: K names.

    Raises:
        ValueError: the file holds no metadata of d2_ext.
    """

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        stored = self.session.get_modelmeta().custom_metadata_map
        if "class_names" not in stored:
            raise ValueError(f"{path} holds no metadata of d2_ext. Export it with tools/export.py.")
        self.class_names: list[str] = json.loads(stored["class_names"])
        self.is_rgb: bool = json.loads(stored["input_format"]) == "RGB"
        self.dtype = np.dtype(json.loads(stored["input_dtype"]))
        self.min_size, self.max_size = json.loads(stored["min_size"]), json.loads(stored["max_size"])

    def __call__(self, image: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        """Detect in one image.

        Args:
            image: (H, W, 3) BGR, as ``cv2.imread`` gives it.

        Returns:
            Boxes (D, 4) XYXY px of the image, scores (D,), classes (D,), best first.
        """
        height, width = image.shape[:2]
        resized = self.resize(image)
        pixels = resized[:, :, ::-1] if self.is_rgb else resized
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]).astype(self.dtype)
        boxes, scores, classes, _ = self.session.run(None, {"images": batch})
        scale = np.array([width / resized.shape[1], height / resized.shape[0]], dtype=np.float32)
        return boxes * np.tile(scale, 2), scores, classes

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


def refusal(images: Sequence[Path], output: Path, *, overwrite: bool) -> str | None:
    """Why nothing should be written there; None if it may be."""
    if output.exists() and not output.is_dir():
        return f"--output {output} is a file. Expected a folder."
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        return f"--output {output} is not empty. Name a new folder, or add --overwrite."
    drawn: dict[str, Path] = {}
    for path in images:
        if drawn.setdefault(path.stem, path) != path:
            return f"{drawn[path.stem]} and {path} would both be drawn into {path.stem}.png. Run once for each."
    same = [path for path in images if path.resolve() == (output / f"{path.stem}.png").resolve()]
    return f"{same[0]} would be overwritten. Name another --output." if same else None


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and print detections; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    refused = refusal(args.images, args.output, overwrite=args.overwrite)
    if refused:
        print(f"onnx_predict: {refused}", file=sys.stderr)
        return 2
    if not Path(args.model).is_file():
        print(f"onnx_predict: there is no file {Path(args.model).absolute()}.", file=sys.stderr)
        return 1
    try:
        detector = Detector(args.model)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        print(f"onnx_predict: {args.model} cannot be used: {error}", file=sys.stderr)
        return 1
    args.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in args.images:
        image = cv2.imread(str(path))
        if image is None:
            print(f"onnx_predict: {path} is no readable image.", file=sys.stderr)
            failed += 1
            continue
        boxes, scores, classes = detector(image)
        for box, score, number in zip(boxes, scores, classes):
            if score >= args.threshold:
                name = detector.class_names[number]
                print(f"{path.name}\t{name}\t{score:.3f}\t" + "\t".join(f"{v:.1f}" for v in box))
                draw(image, box, f"{name} {score:.2f}", class_color(int(number)))
        cv2.imwrite(str(args.output / f"{path.stem}.png"), image)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
