"""Wrong command lines of the tools that take images, data sets, checkpoints and run folders.

They run in a folder that holds ``given``, see :func:`write_given`, and links to the project's configs and README.
"""

from __future__ import annotations

from pathlib import Path

from faults.case import Case
from faults.command_cases import RECIPE, tool
from faults.data_cases import write_honest

IMAGE = "given/data/images/a.jpg"
DAMAGED = f"--config-file {RECIPE} --weights given/damaged.pth"


def write_given(folder: Path) -> None:
    """An honest data set, folders and files that are in the way, and damaged ones."""
    write_honest(folder / "data")
    for name in ("empty", "full"):
        (folder / name).mkdir()
    (folder / "full/notes.txt").write_text("mine")
    (folder / "damaged.pth").write_bytes(b"PK\x03\x04" + bytes(50))
    (folder / "bad.jpg").write_text("no image")
    for name, text in (("no_json", "[1,\n"), ("no_masks", '{"iteration": 1, "total_loss": 2}\n')):
        (folder / name).mkdir()
        (folder / name / "metrics.json").write_text(text)


def _predict(what: str, where: str, arguments: str, *says: str, code: int = 2) -> Case:
    return tool("predict", what, where, f"{IMAGE} --output out {arguments}", *says, code=code)


PREDICT = [
    tool("predict", "no images", "", "--output out", "required: input"),
    tool("predict", "no output", "--output", IMAGE, "required: --output"),
    _predict("no detector", "--weights", "", "--weights", "--config-file"),
    _predict(
        "no config beside the weights", "--config-file", "--weights given/damaged.pth", "config.yaml", "--config-file"
    ),
    _predict(
        "neither weights nor a config", "--weights", "--weights nowhere.pth", "no checkpoint", "nowhere.pth", code=1
    ),
    _predict("recipe without weights", "--weights", f"--config-file {RECIPE}", RECIPE, "--weights"),
    _predict("no such config", "--config-file", "--weights a.pth --config-file nowhere.yaml", "nowhere.yaml"),
    _predict("no such weights", "--weights", f"--config-file {RECIPE} --weights no.pth", "no.pth", code=1),
    _predict("damaged weights", "--weights", DAMAGED, "given/damaged.pth", "damaged", code=1),
    _predict("unknown config key", "--opts", f"{DAMAGED} --opts MODEL.FCOSS 1", "MODEL.FCOSS", "Did you mean"),
    _predict("unknown device", "--device", f"{DAMAGED} --device gpu", "'gpu'", "cuda"),
    _predict("score above 1", "--score", "--score 1.5", "'1.5'", "0 to 1"),
    _predict("score not a number", "--score", "--score nan", "'nan'"),
    _predict("text as a score", "--score", "--score high", "--score", "'high'"),
    _predict("no batch", "--batch-size", "--batch-size 0", "--batch-size", "'0'"),
    _predict("tiles of negative size", "--tile", "--tile -5", "--tile", "'-5'"),
    _predict("no frames", "--max-frames", "--max-frames 0", "--max-frames", "'0'"),
    _predict("nothing to write", "--no-drawings", "--no-drawings", "--no-drawings", "--save-json"),
    tool("predict", "output not empty", "--output", f"{IMAGE} --output given/full", "full is not empty"),
    tool("predict", "file as output", "--output", f"{IMAGE} --output README.md", "README.md is a file"),
    tool(
        "predict",
        "output over the input",
        "--output",
        f"{IMAGE} --output given/data/images --overwrite",
        IMAGE,
        "overwritten",
    ),
    tool("predict", "no such image", "", f"nowhere.jpg --output out {DAMAGED}", "nowhere.jpg", code=1),
    tool("predict", "pattern of nothing", "", f"no/*.jpg --output out {DAMAGED}", "'no/*.jpg'", code=1),
    tool("predict", "folder without images", "", f"given/full --output out {DAMAGED}", "'given/full'", code=1),
]

EXPORT = [
    tool("export", "no arguments", "", "", "--config-file, --format, --output"),
    tool("export", "unknown format", "--format", f"--config-file {RECIPE} --format onx --output a.onnx", "'onx'"),
    tool(
        "export",
        "file of another format",
        "--output",
        f"--config-file {RECIPE} --format onnx --output a.pt2",
        "a.pt2",
        ".onnx",
    ),
    tool("export", "no such config", "--config-file", "--config-file no.yaml --format torch --output a.pt2", "no.yaml"),
    *(
        tool("export", what, where, f"--config-file {RECIPE} --format torch --output a.pt2 {given}", *says, code=code)
        for what, where, given, says, code in (
            ("16 bits where there are none", "--half", "--half", ("--half", "onnx"), 2),
            ("16 and 8 bits", "--half", "--half --int8", ("--int8", "--half"), 2),
            ("8 bits where there are none", "--int8", "--int8", ("--int8", "onnx"), 2),
            ("negative threads", "--threads", "--threads=-3", ("--threads", "'-3'"), 2),
            ("no such weights", "--weights", f"--images {IMAGE} --weights no.pth", ("no.pth",), 1),
            ("damaged weights", "--weights", f"--images {IMAGE} --weights given/damaged.pth", ("damaged.pth",), 1),
        )
    ),
]

DATA = [
    tool("check_dataset", "no folder", "", "", "required: folder"),
    tool("check_dataset", "no such folder", "", "nowhere", "nowhere"),
    tool("check_dataset", "empty folder", "", "given/empty", "'given/empty'", "no files", code=1),
    tool("check_dataset", "folder without data", "", "given/full", "'given/full'", "notes.txt", code=1),
    tool("check_dataset", "unknown format", "--format", "given/data --format cocoo", "--format", "'cocoo'"),
    tool("check_dataset", "another format", "--format", "given/data --format yolo", "'given/data'", "YOLO", code=1),
    tool("check_dataset", "unknown type of image", "--chart", "given/data --chart a.txt", "a.txt", ".png"),
    tool("check_dataset", "negative number", "--max-listed", "given/data --max-listed=-3", "--max-listed", "'-3'"),
    tool("convert_dataset", "no folders", "", "", "--input, --output"),
    tool("convert_dataset", "no such folder", "--input", "--input nowhere --output out", "--input", "nowhere"),
    tool("convert_dataset", "empty folder", "--input", "--input given/empty --output out", "'given/empty'", code=1),
    tool("convert_dataset", "folder without data", "--input", "--input given/full --output out", "notes.txt", code=1),
    *(
        tool("convert_dataset", what, where, f"--input given/data --output {given}", *says)
        for what, where, given, says in (
            ("output in the input", "--output", "given/data/out", ("given/data/out", "inside")),
            ("output of somebody else", "--output", "given/full", ("given/full", "not made by this tool")),
            ("share above 1", "--hold-out", "out --hold-out 2", ("--hold-out 2", "between 0 and 1")),
            ("unknown way of images", "--images", "out --images move", ("--images", "'move'")),
        )
    ),
    tool("visualize_data", "no arguments", "", "", "--config-file, --output"),
    tool("visualize_data", "no such config", "--config-file", "--config-file no.yaml --output out", "no.yaml"),
    *(
        tool("visualize_data", what, where, f"--config-file {RECIPE} {given}", *says, code=code)
        for what, where, given, says, code in (
            ("no images", "--count", "--output out --count 0", ("--count", "'0'"), 2),
            ("text as a number", "--repeat", "--output out --repeat two", ("--repeat", "'two'"), 2),
            ("negative seed", "--seed", "--output out --seed=-1", ("--seed", "'-1'"), 2),
            ("no such data", "--data", "--output out --data nowhere", ("--data", "nowhere"), 2),
            ("empty folder", "--data", "--output out --data given/empty", ("'given/empty'",), 1),
            ("output not empty", "--output", "--output given/full --data given/data", ("given/full", "holds files"), 2),
            ("file as output", "--output", "--output README.md --data given/data", ("README.md is a file",), 2),
            ("unknown config key", "SOLVER.MAX_ITR", "--output out SOLVER.MAX_ITR 5", ("'SOLVER.MAX_ITER'",), 2),
        )
    ),
]

MASKS = [
    _predict("maps too small", "--mask-width", f"{DAMAGED} --masks --mask-width 3", "--mask-width", "'3'", "16"),
    tool("report", "no metrics to plot", "--mask-plot", "given/empty --mask-plot a.png", "metrics.json", code=1),
    tool("report", "metrics without masks", "--mask-plot", "given/no_masks --mask-plot a.png", "mask_ratio", code=1),
    tool("report", "metrics that are no json", "--mask-plot", "given/no_json --mask-plot a.png", "line 1", code=1),
    tool("report", "unknown type of image", "--mask-plot", "given --mask-plot a.txt", "'a.txt'", ".png"),
]

RUNS = [
    tool("report", "no run", "", "", "required: run_folder"),
    tool("report", "no such run", "", "nowhere", "nowhere"),
    tool("report", "folder that is no run", "", "given/empty", "empty is no run folder", "config.yaml"),
    tool("report", "score above 1", "--score-threshold", "given --score-threshold 2", "--score-threshold", "'2'"),
    tool("report", "text as a score", "--score-threshold", "given --score-threshold high", "'high'"),
    tool("report", "negative number of images", "--images", "given --images=-1", "--images", "'-1'"),
    tool("demo", "no such folder", "--root", "--root nowhere", "--root", "nowhere"),
    tool("demo", "folder without runs", "--root", "--root given/empty", "--root: no run folder", "empty"),
    tool("demo", "text as a port", "--port", "--port high", "--port", "'high'"),
    tool("demo", "port that does not exist", "--port", "--port 99999", "--port", "'99999'", "65535"),
    *(
        tool("analyze_duplicates", what, where, f"--output out --model a {RECIPE} {given}", *says, code=code)
        for what, where, given, says, code in (
            ("model without weights", "--model", "", ("--model",), 2),
            ("no such weights", "--model", "no.pth", ("no.pth",), 1),
            ("damaged weights", "--model", "given/damaged.pth", ("given/damaged.pth", "damaged"), 1),
            ("unknown data set", "--dataset", "no.pth --dataset cocoo", ("--dataset cocoo",), 2),
            ("IoU above 1", "--nms-thresh", "no.pth --nms-thresh 2", ("--nms-thresh", "'2'"), 2),
            ("negative IoU", "--min-iou", "no.pth --min-iou=-1", ("--min-iou", "'-1'"), 2),
            ("negative number of images", "--limit", "no.pth --limit=-1", ("--limit", "'-1'"), 2),
        )
    ),
]

TOOL_CASES = [*PREDICT, *EXPORT, *DATA, *MASKS, *RUNS]
