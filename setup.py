"""Packaging of d2_ext: pure Python, no compiler."""

import re
import shutil
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "d2_ext/__init__.py").read_text()).group(1)

# `_standin` has no __init__.py: it is a folder that joins sys.path, not a package of ours.
STANDIN = find_namespace_packages(str(ROOT), include=["d2_ext._standin*"])


class BuildWithRecipes(build_py):
    """A wheel carries the recipes of ``configs/`` inside the package; a checkout has them beside it."""

    def run(self) -> None:
        """Build, then copy them."""
        super().run()
        if not self.editable_mode:
            for source in sorted((ROOT / "configs").rglob("*.yaml")):
                target = Path(self.build_lib) / "d2_ext/configs" / source.relative_to(ROOT / "configs")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


setup(
    name="d2_ext",
    version=VERSION,
    description="Fast detectors of small objects for Detectron2: CEASC, FCOS, DeFCN, VoVNet, DetNet, MogaNet",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["d2_ext", "d2_ext.*"]), *STANDIN],
    package_data={
        "d2_ext": ["py.typed"],
        "d2_ext.report": ["page.html", "page.css"],
        "d2_ext.model_zoo": ["*/model.safetensors", "*/config.yaml", "*/README.md"],
        "d2_ext._standin.detectron2": ["README.md"],
    },
    cmdclass={"build_py": BuildWithRecipes},
    entry_points={"console_scripts": ["d2_ext = d2_ext.cli.main:main"]},
    install_requires=[
        "torch>=2.10",  # older ones corrupt memory on a crafted checkpoint; see docs/install.md
        "torchvision>=0.25",
        "numpy>=1.26",
        "Pillow>=10.3",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "pyyaml>=6.0",
        "safetensors>=0.4.3",
        "pycocotools>=2.0.7",
        "opencv-python>=4.8.1.78",
        "tabulate>=0.9",
        "termcolor>=1.1",
        "cloudpickle>=2.2",
        "tensorboard>=2.14",
        "matplotlib>=3.7",
        "jinja2>=3.1",  # torch needs it too
        "tqdm>=4.66.3",
    ],
    extras_require={
        "test": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ruff==0.17.5",
            "mypy==2.4.1",
            "packaging",
            "scipy",
            "triton; platform_system == 'Linux'",
            "supervision",
            "trackers",
            "sahi",
            "albumentations>=2",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "openvino",
            "gradio>=6",
            "selenium",
            "nbclient",
            "nbformat",
            "ipykernel",
            "mkdocs-material",
            "mkdocstrings[python]",
        ],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "release": ["twine"],
        "detectron2": ["omegaconf>=2.1", "hydra-core>=1.1"],  # of a checkout of it, see docs/install.md
        "track": ["supervision", "trackers"],
        "export": ["onnx", "onnxruntime", "onnxscript"],
        "demo": ["gradio>=6"],
        "augment": ["albumentations>=2"],
        "wandb": ["wandb>=0.18"],
    },
)
