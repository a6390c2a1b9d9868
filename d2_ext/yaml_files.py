"""YAML files from strangers: plain values, or one error that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError

import yaml


def read_yaml(path: Path, refusal: type[ValueError] = ConfigError) -> Any:
    """Read a file's plain values; nothing of it is executed.

    Args:
        path: of the file, in UTF-8.
        refusal: the error to raise.

    Raises:
        ConfigError: (or ``refusal``) it cannot be read, or is not a safe, well-formed YAML file.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise refusal(f"{path} cannot be read: {error.strerror}. Restore it, or name another file.") from error
    except Exception as error:  # besides YAMLError, what PyYAML's conversions of tags, dates and numbers happen to meet
        reason = error if isinstance(error, yaml.YAMLError | UnicodeError) else f"{type(error).__name__}: {error}"
        in_one_line = " ".join(str(reason).replace('in "<unicode string>", ', "in ").split())
        raise refusal(f"{path} is not a safe, well-formed YAML file: {in_one_line}") from error
