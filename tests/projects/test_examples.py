from __future__ import annotations

from pathlib import Path

from d2_ext.modeling.backbone import VoVNet

import pytest
import torch

from helpers.scripts import ROOT, load_script

PROJECTS = ROOT / "projects"


def test_a_backbone_is_used_in_every_documented_way(
    tmp_path: Path, capsys: pytest.CaptureFixture, detectron2_kind: str
) -> None:
    example = load_script("projects/VoVNetV2/use_in_your_project.py")
    weights = tmp_path / "weights.pth"
    trunk = VoVNet(body="V-19-slim-dw-eSE", norm="BN")
    torch.save({f"backbone.bottom_up.{key}": value for key, value in trunk.state_dict().items()}, weights)
    assert example.main(["--weights", str(weights)]) == 0
    printed = capsys.readouterr().out
    assert "from_arguments:\n  stage3: stride 8, (1, 256, 16, 24)\n" in printed
    assert "  p7: stride 128, (1, 256, 1, 2)" in printed
    assert ("from_lazy_config:" in printed) == (detectron2_kind == "stock")


@pytest.mark.parametrize("project", ["VoVNetV2", "DetNet", "MogaNet"])
def test_model_cards_say_what_differs_and_what_was_not_checked(project: str) -> None:
    card = (PROJECTS / project / "README.md").read_text()
    for part in ("arXiv:", "## Use it", "## What differs", "## How it was checked", "**Not checked**", "bibtex"):
        assert part in card
    for folder in (f"configs/{project}/", "d2_ext/config/backbones.py"):
        assert folder in card
        assert (PROJECTS.parent / folder).exists()
