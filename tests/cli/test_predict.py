"""The command line of prediction, as users run it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_ext.cli import predict as tool
from d2_ext.inference import BatchPredictor, writers
from d2_ext.inference.sources import Frame, Source
from d2_ext.visualization.masks import CAPTION_HEIGHT

import cv2
import numpy as np
import pytest
from detectron2.structures import Instances

from helpers.failing_calls import no_memory_of_opencv
from helpers.inference_detectors import CEASC, noise, small_cfg, write_weights


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and config of a sparse detector that finds things in noise, and images."""
    folder = tmp_path_factory.mktemp("run")
    write_weights(small_cfg(CEASC, "DATASETS.TRAIN", "('synthetic_drone_train',)"), folder)
    (folder / "images").mkdir()
    for number, size in enumerate(((48, 64), (64, 48), (40, 200))):
        cv2.imwrite(str(folder / f"images/{number}.png"), noise(*size, number))
    (folder / "images/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return folder


@pytest.fixture
def command(run_folder: Path, tmp_path: Path) -> list[str]:
    weights = str(run_folder / "model_final.pth")
    return ["--weights", weights, "--output", str(tmp_path / "out"), "--score", "0.1", "--device", "cpu"]


def test_a_folder_with_a_broken_file_is_predicted_and_the_file_reported(
    run_folder: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run_folder / "images"), *command, "--save-json", "--save-csv", "--masks", "--batch-size", "2"]
    assert tool.main(arguments) == 0
    out = tmp_path / "out"
    names = {path.name for path in out.glob("[!.]*")}
    drawn = {"0.png", "1.png", "2.png", "0_masks.jpg", "1_masks.jpg", "2_masks.jpg"}
    assert names == drawn | {"coco_results.json", "coco_images.json", "detections.csv", "unreadable.txt"}
    assert cv2.imread(str(out / "2.png")).shape == (40, 200, 3)
    printed = capsys.readouterr()
    assert "1 failed (unreadable.txt):" in printed.err
    assert "broken.jpg' cannot be read" in (out / "unreadable.txt").read_text()
    results = json.loads((out / "coco_results.json").read_text())
    rows = list(csv.DictReader((out / "detections.csv").open()))
    assert len(results) == len(rows) > 0
    assert f"{len(rows)} detections on 3 images" in printed.out
    assert {row["class"] for row in rows} <= {"car", "van", "person", "bike"}
    assert min(row["score"] for row in results) >= 0.1


def test_nothing_found_names_the_threshold_and_the_best_score(
    run_folder: Path, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_batch = tool.BatchPredictor.predict_batch

    def without(self: BatchPredictor, images: list[np.ndarray]) -> list[Instances]:
        found = [instances[instances.scores < 0] for instances in predict_batch(self, images)]
        assert self.best_score > 0.9  # of these random weights
        self.best_score = 0.21
        return found

    monkeypatch.setattr(tool.BatchPredictor, "predict_batch", without)
    assert tool.main([str(run_folder / "images/0.png"), *command]) == 0
    assert "Nothing reached --score 0.1; the best score was 0.21." in capsys.readouterr().out


def test_names_that_are_too_long_to_write_do_not_stop_a_folder(
    run_folder: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for name in ("n" * 251 + ".jpg", "z.jpg"):
        cv2.imwrite(str(tmp_path / "images" / name), noise(48, 64))
    assert tool.main([str(tmp_path / "images"), *command, "--masks", "--save-csv"]) == 0
    names = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert names == {"n" * 251 + ".jpg", "z.jpg", "z_masks.jpg", "detections.csv", "unreadable.txt"}
    assert "could not be written: File name too long" in capsys.readouterr().err


@pytest.mark.parametrize("work", ["computed", "drawn", "drawn with its masks"])
@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_an_image_that_is_too_large_for_the_memory_costs_no_other(
    run_folder: Path,
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    work: str,
    batch_size: str,
) -> None:
    owner, name, error = {
        "computed": (tool.BatchPredictor, "predict_batch", RuntimeError("CUDA out of memory. Tried to allocate 2 TiB")),
        "drawn": (writers, "draw_boxes", no_memory_of_opencv()),
        "drawn with its masks": (writers, "draw_masks", MemoryError()),
    }[work]
    call = getattr(owner, name)

    def fails_if_large(*args: Any, **kwargs: Any) -> Any:
        images = args[1] if work == "computed" else args[:1]
        if any(image.shape[1] == 200 for image in images):
            raise error
        return call(*args, **kwargs)

    images, out = str(run_folder / "images"), tmp_path / "out"
    arguments = [images, *command, "--batch-size", batch_size, "--save-json", "--save-csv", "--masks"]
    monkeypatch.setattr(owner, name, fails_if_large)
    assert tool.main(arguments) == 0
    failed = [line for line in (out / "unreadable.txt").read_text().splitlines() if "broken.jpg" not in line]
    assert failed == [
        f"Image '{images}/2.png' cannot be {work} (memory ran out). Free memory, or make the image smaller."
    ]
    printed = capsys.readouterr()
    assert "2 failed (unreadable.txt):" in printed.err
    assert failed[0] in printed.err
    assert "detections on 2 images" in printed.out
    rows = [row["file"] for row in csv.DictReader((out / "detections.csv").open())]
    assert set(rows) == {"0.png", "1.png"}
    listed = json.loads((out / "coco_images.json").read_text())["images"]
    assert [row["file_name"] for row in listed] == ["0.png", "1.png"]
    assert len(json.loads((out / "coco_results.json").read_text())) == len(rows)
    drawn = {"0.png", "1.png", "0_masks.jpg", "1_masks.jpg"} | ({"2.png"} if work == "drawn with its masks" else set())
    assert {path.name for path in out.glob("*.[pj][np]g")} == drawn
    assert tool.main([*arguments, "--overwrite", "--strict"]) == 1

    monkeypatch.setattr(owner, name, call)  # memory suffices again
    assert tool.main([*arguments, "--overwrite"]) == 0
    assert "2.png" not in (out / "unreadable.txt").read_text()
    assert len(list(out.glob("*.[pj][np]g"))) == 6


def test_images_that_fit_into_memory_alone_but_not_together_are_all_predicted(
    run_folder: Path, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(run_folder / "images"), *command, "--batch-size", "4", "--no-drawings", "--save-csv"]
    assert tool.main(arguments) == 0
    together = (tmp_path / "out/detections.csv").read_bytes()
    sizes = []
    predict_batch = tool.BatchPredictor.predict_batch

    def small_ones(self: BatchPredictor, images: list[np.ndarray]) -> list[Instances]:
        sizes.append(len(images))
        if len(images) > 1:
            raise MemoryError
        return predict_batch(self, images)

    monkeypatch.setattr(tool.BatchPredictor, "predict_batch", small_ones)
    assert tool.main([*arguments, "--overwrite"]) == 0
    assert sizes == [3, 1, 1, 1]
    assert (tmp_path / "out/detections.csv").read_bytes() == together


def no_memory(*args: object) -> None:
    raise MemoryError


def test_memory_that_runs_out_beside_the_images_ends_the_run_with_one_error(
    run_folder: Path,
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writers, "to_coco_results", no_memory)
    assert tool.main([str(run_folder / "images"), *command, "--no-drawings", "--save-json", "--save-csv"]) == 1
    assert capsys.readouterr().err.count("error: Out of memory") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".predicted.jsonl"]


def test_frames_of_a_video_are_all_as_large_so_that_the_first_without_memory_ends_it(
    run_folder: Path,
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tool.BatchPredictor, "predict_batch", no_memory)
    monkeypatch.setattr(
        Source, "frames", lambda self: iter([Frame("flight.mp4", "flight.mp4", n, noise(48, 64)) for n in range(2)])
    )
    assert tool.main([str(run_folder / "images/0.png"), *command]) == 1
    assert "error: Frame 0 of 'flight.mp4' cannot be computed (memory ran out)." in capsys.readouterr().err
    assert not (tmp_path / "out/unreadable.txt").exists()


def test_classes_and_tiles_are_chosen_on_the_command_line(run_folder: Path, command: list[str], tmp_path: Path) -> None:
    image = str(run_folder / "images/2.png")
    chosen = ["--no-drawings", "--save-csv", "--classes", "van, bike", "--tile", "48", "--overlap", "0.25"]
    assert tool.main([image, *command, *chosen]) == 0
    rows = list(csv.DictReader((tmp_path / "out/detections.csv").open()))
    assert {row["class"] for row in rows} <= {"van", "bike"}
    assert max(float(row["x1"]) for row in rows) > 100


def test_the_share_of_skipped_tiles_is_printed(
    run_folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run_folder / "images/2.png"), *command, "--tile", "48", "--select", "2"]
    assert tool.main([*arguments, "--overwrite", "--opts", "TEST.TILE.SELECT_SCORE", "1.0"]) == 0
    told = capsys.readouterr().out
    number = int(re.search(r"(\d+) of \1 tiles were skipped \(100%\)", told)[1])
    assert number > 1
    assert "0 detections on 1 images" in told
    assert tool.main([*arguments, "--overwrite", "--opts", "TEST.TILE.SELECT_SCORE", "0.0"]) == 0
    assert f"0 of {number} tiles were skipped (0%)" in capsys.readouterr().out
    assert tool.main([*arguments[:-2], "--overwrite"]) == 0
    assert "were skipped" not in capsys.readouterr().out


def test_overwriting_removes_the_earlier_results_and_nothing_else(
    run_folder: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside.txt"
    (tmp_path / "deep/sub").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "deep/sub/z.png"), noise(48, 64))
    first = [str(run_folder / "images/0.png"), str(tmp_path / "deep/**/*.png")]
    assert tool.main([*first, *command, "--save-csv", "--masks"]) == 0
    assert (out / "sub/z.png").is_file()
    (out / "notes.txt").write_text("mine")
    outside.write_text("mine")
    with (out / ".predicted.jsonl").open("a") as file:  # a list that was tampered with
        file.write('"../outside.txt"\n')
    assert tool.main([str(run_folder / "images/1.png"), *command]) == 2
    assert tool.main([str(run_folder / "images/1.png"), *command, "--overwrite"]) == 0
    assert {path.name for path in out.glob("[!.]*")} == {"1.png", "notes.txt"}
    assert outside.is_file()
    assert "Removed 5 results of an earlier prediction; 1 other files in the folder stay" in capsys.readouterr().out


def test_a_video_becomes_a_video(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5.0, (64, 48))
    for number in range(5):
        writer.write(noise(48, 64, number))
    writer.release()
    assert tool.main([str(tmp_path / "v.mp4"), *command, "--max-frames", "3"]) == 0
    drawn = cv2.VideoCapture(str(tmp_path / "out/v.mp4"))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (3, 5)
    assert "on 3 images" in capsys.readouterr().out


def test_masks_are_drawn_of_tiles_too(run_folder: Path, command: list[str], tmp_path: Path) -> None:
    arguments = [str(run_folder / "images/0.png"), *command, "--no-drawings", "--masks", "--tile", "48"]
    assert tool.main(arguments) == 0
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["0_masks.jpg"]


def test_the_data_of_the_run_need_not_be_there(run_folder: Path, command: list[str], tmp_path: Path) -> None:
    arguments = [str(run_folder / "images/0.png"), *command, "--opts", "DATASETS.FOLDER", str(tmp_path / "gone")]
    assert tool.main(arguments) == 0


def test_results_carry_the_ids_of_a_data_set(run_folder: Path, command: list[str], tmp_path: Path) -> None:
    ids = tmp_path / "val.json"
    ids.write_text(json.dumps({"images": [{"id": 900, "file_name": "x/0.png"}]}))
    arguments = [str(run_folder / "images/0.png"), *command, "--no-drawings", "--save-json", "--image-ids", str(ids)]
    assert tool.main(arguments) == 0
    assert {row["image_id"] for row in json.loads((tmp_path / "out/coco_results.json").read_text())} == {900}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--classes", "cra"], "Did you mean 'car'"),
        (["--device", "tpu9"], "'tpu9'"),
        (["--no-drawings"], "leaves nothing to write"),
        (["--config-file", "nowhere.yaml"], "no file"),
        (["--opts", "TEST.TILE.SIZ", "3"], "Did you mean 'TEST.TILE.SIZE'"),
    ],
)
def test_wrong_usage_ends_with_one_line_and_code_2(
    run_folder: Path,
    command: list[str],
    change: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tool.main([str(run_folder / "images/0.png"), *command, *change]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--score", "30"], "'30': expected a number from 0 to 1"),
        (["--tile", "0"], "'0': expected a whole number from 1"),
        (["--tile", "48", "--select", "1"], "'1': expected a whole number from 2"),
        (["--masks", "--mask-width", "3"], "'3': expected a whole number from 16"),
    ],
)
def test_numbers_out_of_range_are_wrong_usage(
    command: list[str], change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool.main(["a.png", *command, *change])
    assert message in capsys.readouterr().err


def test_masks_are_a_grid_of_levels_and_branches_of_the_width_asked_for(
    run_folder: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run_folder / "images/0.png"), *command, "--no-drawings", "--masks", "--mask-width", "64"]
    assert tool.main(arguments) == 0
    # 2 branches x 5 levels; a tile is 64 x 48 with caption and border
    size = (2 * (48 + CAPTION_HEIGHT + 2), 5 * (64 + 2))
    assert cv2.imread(str(tmp_path / "out/0_masks.jpg")).shape[:2] == size
    dense = small_cfg("fcos_R18_synthetic")
    write_weights(dense, tmp_path / "dense")
    command[1] = str(tmp_path / "dense/model_final.pth")
    assert tool.main([*arguments[:1], *command, "--masks", "--overwrite"]) == 2
    assert "FCOS has no activation masks" in capsys.readouterr().err


def test_inputs_and_earlier_results_are_not_overwritten(
    run_folder: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(run_folder / "images/0.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.txt").touch()
    assert tool.main([image, *command]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert tool.main([image, *command, "--overwrite"]) == 0
    command[command.index("--output") + 1] = str(run_folder)
    assert tool.main([image, *command, "--overwrite"]) == 2
    assert "would be overwritten" in capsys.readouterr().err


def test_code_1_if_nothing_could_be_read_or_the_weights_do_not_fit(
    run_folder: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, image = str(run_folder / "images/broken.jpg"), str(run_folder / "images/0.png")
    assert tool.main([broken, *command]) == 1
    assert tool.main([str(run_folder / "images/9.png"), *command, "--overwrite"]) == 1
    assert "No image, folder, video" in capsys.readouterr().err
    assert tool.main([image, broken, *command, "--overwrite", "--strict"]) == 1
    assert tool.main([image, *command, "--overwrite", "--opts", "MODEL.RETINANET.NUM_CLASSES", "9"]) == 1
    assert "does not fit the model" in capsys.readouterr().err


def test_the_runs_data_sets_need_not_be_registered(
    run_folder: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = ["--opts", "DATASETS.TRAIN", "('of_another_machine',)", "DATASETS.TEST", "()"]
    assert tool.main([str(run_folder / "images/0.png"), *command, "--no-drawings", "--save-csv", *change]) == 0
    rows = list(csv.DictReader((tmp_path / "out/detections.csv").open()))
    assert {row["class"] for row in rows} <= set("0123")


def test_ctrl_c_keeps_what_is_done(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Endless(Source):
        def frames(self) -> Iterator[Frame]:
            yield from (Frame("camera 0", "camera0", number, noise(48, 64)) for number in range(4))
            raise KeyboardInterrupt

    for kind, code in (("camera", 0), ("video", 1)):
        source = Endless(kind, "0", "camera0")
        monkeypatch.setattr(tool, "find_sources", lambda inputs, source=source: [source])
        assert tool.main(["0", *command, "--overwrite", "--save-csv", "--batch-size", "2"]) == code
        assert cv2.VideoCapture(str(tmp_path / "out/camera0.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 4
        assert len((tmp_path / "out/detections.csv").read_text().splitlines()) > 1
    assert "interrupted" in capsys.readouterr().err


def test_the_help_has_examples() -> None:
    assert tool.argument_parser().format_help().count("python tools/predict.py") == 6
