"""Configs, by hand; on either implementation of Detectron2."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_values_keep_their_types_and_a_frozen_config_its_values() -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.STEPS", "[1, 2]"])
    assert cfg.SOLVER.STEPS == (1, 2)
    assert get_cfg().SOLVER.STEPS == (30000,)  # a copy of the defaults each time
    with pytest.raises(ValueError, match="Type mismatch"):
        cfg.merge_from_list(["SOLVER.BASE_LR", 1])
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        cfg.MODEL.DEVICE = "cpu"


def test_unknown_keys_newer_versions_and_missing_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Non-existent key"):
        get_cfg().merge_from_list(["SOLVER.BASE_RL", 0.1])
    with pytest.raises(KeyError, match="Non-existent"):
        get_cfg().merge_from_file(write(tmp_path, "a.yaml", "VERSION: 2\nSOLVER: {BASE_RL: 0.1}\n"))
    with pytest.raises(AssertionError, match="3"):
        get_cfg().merge_from_file(write(tmp_path, "a.yaml", "VERSION: 3\n"))
    with pytest.raises(AssertionError, match=r"no/such\.yaml"):
        get_cfg().merge_from_file("no/such.yaml")


@pytest.mark.parametrize("leaf", ["base/all.yaml\nSOLVER: {MAX_ITER: 2}", "[base/all.yaml, b.yaml]", "~/c.yaml"])
def test_values_of_a_file_win_over_its_bases_and_of_these_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaf: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path, "base/all.yaml", "VERSION: 2\nSOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\n")
    write(tmp_path, "b.yaml", "SOLVER: {MAX_ITER: 2}\n")
    write(tmp_path, "home/c.yaml", "_BASE_: ../base/all.yaml\nSOLVER: {MAX_ITER: 2}\n")
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path, "leaf.yaml", f"_BASE_: {leaf}\n"))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.5, 2)


def test_a_dumped_config_reads_back_as_itself(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.STEPS", (3, 4), "SEED", 5, "SOLVER.WEIGHT_DECAY_BIAS", 0.5])
    again = get_cfg()
    again.merge_from_file(write(tmp_path, "config.yaml", cfg.dump()))
    # Equal but for inner tuples, which YAML gives back as lists.
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert again.SOLVER == cfg.SOLVER


def test_arithmetic_under_the_eval_tag_is_computed(tmp_path: Path) -> None:
    sizes = '!!python/object/apply:eval ["[[x, x * 2 ** (1 / 2)] for x in [8, 16]]"]'
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path, "a.yaml", f"VERSION: 2\nMODEL: {{ANCHOR_GENERATOR: {{SIZES: {sizes}}}}}\n"))
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[8, 8 * 2**0.5], [16, 16 * 2**0.5]]
    with pytest.raises(yaml.constructor.ConstructorError):
        get_cfg().merge_from_file(str(tmp_path / "a.yaml"), allow_unsafe=False)


def test_the_global_config_stays_one_object() -> None:
    before = global_cfg
    set_global_cfg(CfgNode({"A": 1}))
    set_global_cfg(CfgNode({"B": 2}))
    assert global_cfg is before
    assert global_cfg == {"B": 2}
    set_global_cfg(CfgNode())


class Pair:
    @configurable
    def __init__(self, a: int, b: int = 2) -> None:
        """Doc of Pair."""
        self.values = (a, b)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, int]:
        return {"a": cfg.A}


class Greedy(Pair):
    @classmethod
    def from_config(cls, cfg: CfgNode, **kwargs: int) -> dict[str, int]:
        return {"a": cfg.A + kwargs["add"]}


def test_configurable_takes_a_config_or_arguments() -> None:
    cfg = CfgNode({"A": 5})
    assert Pair(1).values == (1, 2)
    assert Pair(cfg).values == (5, 2)
    assert Pair(cfg=cfg, b=3).values == (5, 3)
    assert Pair(cfg, a=9).values == (9, 2)  # an argument beats the config
    assert Greedy(cfg, add=1).values == (6, 2)  # from_config takes all keywords, so __init__ sees none of them
    assert Pair.__init__.__doc__ == "Doc of Pair."


def test_configurable_refuses_unusable_classes() -> None:
    class Without:
        @configurable
        def __init__(self, a: int) -> None: ...

    class NotAClassmethod(Without):
        def from_config(self, cfg: CfgNode) -> dict:
            return {}

    class OtherName(Without):
        @classmethod
        def from_config(cls, config: CfgNode) -> dict:
            return {}

    with pytest.raises(AttributeError, match="from_config"):
        Without(1)
    with pytest.raises(TypeError, match="from_config"):
        NotAClassmethod(1)
    with pytest.raises(TypeError, match="cfg"):
        OtherName(CfgNode())


def test_configurable_works_on_functions() -> None:
    @configurable(from_config=lambda cfg, a: {"a": a, "b": cfg.B})
    def pair(a: int, b: int = 2) -> tuple[int, int]:
        return a, b

    assert pair(1) == (1, 2)
    assert pair(CfgNode({"B": 7}), a=3) == (3, 7)
    assert pair.from_config(CfgNode({"B": 7}), 3) == {"a": 3, "b": 7}
