"""Wrong command lines of ``train_net.py`` and of the tools for models; the others are in ``tool_cases``."""

from __future__ import annotations

from faults.case import Case

RECIPE = "configs/quickstart/fcos_R18_synthetic.yaml"


def _train(what: str, where: str, arguments: str, *says: str, code: int = 2) -> Case:
    return Case(what, where, says, code, tuple(arguments.split()), "train_net.py")


def tool(name: str, what: str, where: str, arguments: str, *says: str, code: int = 2) -> Case:
    """A wrong command line of a tool."""
    return Case(what, f"{name} {where}".strip(), says, code, tuple(arguments.split()), f"tools/{name}.py")


TRAIN = [
    _train("no such config", "--config-file", "--config-file nowhere.yaml", "--config-file", "nowhere.yaml"),
    _train(
        "nearly the name of a config",
        "--config-file",
        "--config-file configs/quickstart/fcos_R18_sintetic.yaml",
        "Did you mean 'fcos_R18_synthetic.yaml'",
    ),
    _train("a folder", "--config-file", "--config-file configs", "--config-file", "configs"),
    _train("unknown option", "--evel-only", f"--config-file {RECIPE} --evel-only", "--evel-only", "--eval-only"),
    _train("option without its value", "--config-file", "--config-file", "--config-file", "expected one argument"),
    _train("key without a value", "SOLVER.MAX_ITER", f"--config-file {RECIPE} SOLVER.MAX_ITER", "pairs of KEY VALUE"),
    _train(
        "unknown key", "SOLVER.MAX_ITR", f"--config-file {RECIPE} SOLVER.MAX_ITR 5", "Did you mean 'SOLVER.MAX_ITER'"
    ),
    _train("option behind the keys", "--resume", f"--config-file {RECIPE} SOLVER.MAX_ITER 5 --resume", "--resume"),
    _train("equals sign", "SOLVER.MAX_ITER=5", f"--config-file {RECIPE} SOLVER.MAX_ITER=5 SEED 1", "SOLVER.MAX_ITER=5"),
    _train("no processes", "--num-gpus", f"--config-file {RECIPE} --num-gpus 0", "--num-gpus is 0"),
    _train("text as a number", "--num-gpus", f"--config-file {RECIPE} --num-gpus two", "--num-gpus", "'two'"),
    _train(
        "machine that is not there", "--machine-rank", f"--config-file {RECIPE} --machine-rank 3", "--machine-rank is 3"
    ),
    _train(
        "batch that cannot be divided",
        "--num-gpus",
        f"--config-file {RECIPE} --num-gpus 3",
        "SOLVER.IMS_PER_BATCH is 2",
        "3 processes",
    ),
    _train("section instead of a key", "SOLVER", f"--config-file {RECIPE} SOLVER 5", "unknown config key 'SOLVER'"),
    _train(
        "nothing to evaluate",
        "DATASETS.TEST",
        f"--config-file {RECIPE} --eval-only DATASETS.TEST ()",
        "DATASETS.TEST",
        "--eval-only",
    ),
    _train("nothing to train", "--config-file", "", "--config-file is missing", "d2_ext configs"),
    _train("no config", "--config-file", "MODEL.META_ARCHITECTURE RetinaNet", "DATASETS.TRAIN is empty"),
]

TOOLS = [
    tool("analyze_model", "no config", "--config-file", "", "--config-file"),
    tool("analyze_model", "no such config", "--config-file", "--config-file nowhere.yaml", "nowhere.yaml"),
    tool("analyze_model", "size of one number", "--size", f"--config-file {RECIPE} --size 800", "'800'", "HxW"),
    tool("analyze_model", "negative size", "--size", f"--config-file {RECIPE} --size=-8x8", "-8x8", "HxW"),
    tool("analyze_model", "share above 1", "--active", f"--config-file {RECIPE} --active 1.5", "1.5"),
    tool("analyze_model", "share that is not a number", "--active", f"--config-file {RECIPE} --active nan", "nan"),
    tool("analyze_model", "no such image", "--images", f"--config-file {RECIPE} --images no.jpg", "no.jpg", code=1),
    tool(
        "analyze_model",
        "image that is none",
        "--images",
        f"--config-file {RECIPE} --images README.md",
        "README.md",
        code=1,
    ),
    tool("convert_checkpoint", "no arguments", "", "", "required"),
    tool("convert_checkpoint", "unknown source", "--source", "--input a --output b --source torchvison", "torchvis"),
    tool(
        "convert_checkpoint",
        "no such file",
        "",
        "--input nowhere.pth --output o.pth --source torchvision",
        "nowhere.pth",
        code=1,
    ),
    tool(
        "convert_checkpoint",
        "file that is no checkpoint",
        "",
        "--input README.md --output o.pth --source torchvision",
        "README.md",
        code=1,
    ),
    tool("make_demo_data", "nothing to do", "", "", "--output"),
    tool("make_demo_data", "unknown option", "--num-trane", "--output x --num-trane 5", "--num-trane", "--num-train"),
    tool("make_demo_data", "size of one number", "--size", "--output x --size 800", "'800'"),
    tool("make_demo_data", "size too small", "--size", "--output x --size 1x1", "1"),
    tool("make_demo_data", "negative number of images", "--num-train", "--output x --num-train -5", "-5"),
    tool("make_demo_data", "share above 1", "--empty-fraction", "--output x --empty-fraction 2", "2"),
    tool("make_demo_data", "no processes", "--processes", "--output x --processes 0", "processes=0"),
    tool("make_demo_data", "unknown type of image", "--contact-sheet", "--contact-sheet a.txt", "a.txt", "'.txt'"),
    tool("analyze_duplicates", "no model", "--model", "--output x", "--model"),
    tool("analyze_duplicates", "no such config", "--model", "--output x --model a nowhere.yaml a.pth", "nowhere.yaml"),
]

COMMAND_CASES = [*TRAIN, *TOOLS]
