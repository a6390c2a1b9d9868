"""All commands under one name: ``d2_ext COMMAND ...``, or ``python -m d2_ext COMMAND ...``.

Each is the same as a script of a checkout: ``d2_ext train`` is ``train_net.py``, ``d2_ext predict`` is
``tools/predict.py``. Recipes are named without a path: ``--config-file VisDrone/fcos_R50_FPN.yaml``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from d2_ext.config.recipes import RECIPES, first_line, recipe_names
from d2_ext.errors import did_you_mean
from d2_ext.utils.env import environment_report

__all__ = ["COMMANDS", "main"]

# Words of a command -> module of this folder, arguments put before the user's, what it does.
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "train": ("train", (), "train a detector, or go on with --resume"),
    "eval": ("train", ("--eval-only",), "evaluate a checkpoint"),
    "lr-find": ("lr_find", (), "try learning rates before a training"),
    "predict": ("predict", (), "detect on images, folders, videos, a camera"),
    "export": ("export", (), "write a trained detector as ONNX, torch.export or for OpenVINO"),
    "report": ("report", (), "show a run as one page"),
    "demo": ("demo", (), "try detectors in the browser"),
    "check": ("check_dataset", (), "check a data set"),
    "visualize": ("visualize_data", (), "draw what training sees"),
    "convert dataset": ("convert_dataset", (), "turn a data set into another format"),
    "convert checkpoint": ("convert_checkpoint", (), "turn published weights into ours, or ours into safetensors"),
    "analyze model": ("analyze_model", (), "count parameters and multiply-adds"),
    "analyze duplicates": ("analyze_duplicates", (), "see whether NMS is needed"),
    "generate": ("make_demo_data", (), "generate drone-like data"),
}
# Scripts of a checkout, as the examples of a command name them.
SCRIPTS = {f"python tools/{module}.py": f"d2_ext {words}" for words, (module, _, _) in COMMANDS.items()}
SCRIPTS |= {"python train_net.py": "d2_ext train", "configs/": ""}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Its exit code; 2 for an unknown command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        return 0 if words else 2
    if words[0] == "env":
        sys.stdout.write(environment_report() + "\n")
        return 0
    if words[0] == "configs":
        sys.stdout.write("".join(f"{name}\n    {first_line(name)}\n" for name in recipe_names()))
        return 0
    command = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), "")
    if not command:
        known = [*COMMANDS, "configs", "env"]
        sys.stderr.write(f"error: d2_ext has no command {' '.join(words[:2])!r}. {did_you_mean(words[0], known)}\n")
        return 2
    module_name, first, _ = COMMANDS[command]
    module = importlib.import_module(f"d2_ext.cli.{module_name}")
    rest = words[len(command.split()) :]
    if "-h" in rest or "--help" in rest:
        parser = module.argument_parser()
        parser.prog = f"d2_ext {command}"
        text = parser.format_help()
        for script, name in SCRIPTS.items():
            text = text.replace(script, name)
        sys.stdout.write(text)
        return 0
    return module.main([*first, *rest])


def overview() -> str:
    """The commands with a line each."""
    lines = [*((name, what) for name, (_, _, what) in COMMANDS.items())]
    lines += [("configs", f"list the recipes ({len(recipe_names())} in {RECIPES})"), ("env", "what a bug report needs")]
    rows = "".join(f"  {name:20}{what}\n" for name, what in lines)
    return f"usage: d2_ext COMMAND ...\n\ncommands:\n{rows}\nd2_ext COMMAND --help tells the rest.\n"
