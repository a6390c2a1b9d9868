"""A run folder as one HTML file, section by section. What is missing says so in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2_ext.files import replacing
from d2_ext.report.accuracy import accuracy_blocks, class_accuracies, confusion_blocks, curve_blocks
from d2_ext.report.blocks import Block, Missing, MissingInput, Section, Tiles, number
from d2_ext.report.configuration import configuration_blocks, run_config
from d2_ext.report.cost import inference_seconds, iteration_seconds, operation_blocks, speed_blocks
from d2_ext.report.environment import environment_blocks, report_environment
from d2_ext.report.images import embedded_file, image_blocks
from d2_ext.report.judged import Judged, judge
from d2_ext.report.page import render
from d2_ext.report.run_folder import RunFolder, read_run
from d2_ext.report.training import ap_blocks, loss_blocks, mask_blocks
from d2_ext.report.verdicts import Verdict, judge_image

from detectron2.data import DatasetCatalog

__all__ = ["ReportOptions", "write_report"]

DEFAULT_SCORE = 0.3
MAX_MASK_IMAGES = 2
PROBLEMS = (ValueError, OSError)  # ValueError: the errors of this project, and json's


@dataclass(frozen=True)
class ReportOptions:
    """What a user may choose.

    Attributes:
        score_threshold: of the confusion matrix and the images; None takes ``TEST.PICTURE_SCORE_THRESH``.
        num_images: so many worst and so many best images of each test set.
        recipe: the run's config file; None takes the one that the log names.
    """

    score_threshold: float | None = None
    num_images: int = 4
    recipe: Path | None = None


@dataclass(frozen=True)
class TestSet:
    """A judged test set, or why it could not be judged."""

    name: str
    judged: Judged | None
    problem: Missing | None

    def get(self) -> Judged:
        """The judged set.

        Raises:
            MissingInput: why there is none.
        """
        if self.judged is None:
            assert self.problem is not None, f"{self.name} is neither judged nor says why not"
            raise MissingInput(self.problem.why, self.problem.command)
        return self.judged


def write_report(folder: str | Path, output: str | Path, options: ReportOptions | None = None) -> Path:
    """Write the report of a run folder.

    Args:
        folder: ``OUTPUT_DIR`` of a training.
        output: HTML file; its folder is made if it is not there.
        options: see :class:`ReportOptions`.

    Returns:
        Path of the file.

    Raises:
        ConfigError: if the folder is no run folder.
        OSError: if the file cannot be written.
    """
    run = read_run(folder)
    sections = build_sections(run, options or ReportOptions())
    title = f"{run.setting('MODEL.META_ARCHITECTURE', 'Run')} in {run.path.name or run.path.resolve().name}"
    page = render(title, str(run.path), sections)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(output)


def build_sections(run: RunFolder, options: ReportOptions) -> list[Section]:
    """All sections of a run, in the order of the page."""
    # Each test set is judged once, for several sections; what cannot be judged says why in each of them.
    sets = []
    limit = int(run.number("TEST.DETECTIONS_PER_IMAGE", 100))
    for name in run.test_sets():
        results = run.inference_folder(name) / "coco_instances_results.json"
        try:
            if name not in DatasetCatalog and run.setting("DATASETS.FOLDER"):
                run_config(run)  # registers the folder of a run on a user's own data
            judged = judge(name, results, max_detections=limit, command=run.evaluate_command())
            sets.append(TestSet(name, judged, None))
        except MissingInput as missing:
            sets.append(TestSet(name, None, missing.block))
        except PROBLEMS as error:
            sets.append(TestSet(name, None, Missing(str(error))))
    sections = [
        _section("summary", "Summary", lambda: _summary(run, sets)),
        _section("losses", "Losses", lambda: loss_blocks(run)),
        _section("ap", "AP over the training", lambda: ap_blocks(run)),
    ]
    if not sets:
        problem = run.config_problem or "DATASETS.TEST of the run is empty."
        sets = [TestSet("", None, Missing(problem, run.train_command()))]
    for test_set in sets:
        sections += _set_sections(run, test_set, options, several=len(sets) > 1)
    return [
        *sections,
        _section("masks", "Mask ratios", lambda: [*mask_blocks(run), *_mask_images(run)]),
        _section("speed", "Speed and operations", lambda: _cost(run)),
        _section("config", "Configuration", lambda: configuration_blocks(run, options.recipe)),
        _section("environment", "Environment", lambda: environment_blocks(run), after=[report_environment()]),
    ]


def _set_sections(run: RunFolder, test_set: TestSet, options: ReportOptions, *, several: bool) -> Iterator[Section]:
    threshold = options.score_threshold
    if threshold is None:
        threshold = run.number("TEST.PICTURE_SCORE_THRESH", DEFAULT_SCORE)
    suffix = f" ({test_set.name})" if several else ""
    end = f"-{test_set.name}" if several else ""
    verdicts: dict[Any, Verdict] = {}
    if test_set.judged is not None:
        verdicts = {key: judge_image(test_set.judged, key, threshold) for key in test_set.judged.records}

    def of_the_set(build: Callable[[Judged], list[Block]]) -> Callable[[], list[Block]]:
        return lambda: build(test_set.get())

    parts: dict[tuple[str, str], Callable[[Judged], list[Block]]] = {
        ("classes", "AP by class and size"): accuracy_blocks,
        ("curves", "Precision and recall"): curve_blocks,
        ("confusion", "Confusion matrix"): lambda judged: confusion_blocks(judged, [*verdicts.values()], threshold),
        ("images", "Worst and best images"): lambda judged: image_blocks(
            judged, verdicts, threshold, options.num_images
        ),
    }
    for (key, title), build in parts.items():
        yield _section(f"{key}{end}", f"{title}{suffix}", of_the_set(build))


def _section(key: str, title: str, build: Callable[[], list[Block]], after: Sequence[Block] = ()) -> Section:
    """A section; a problem of its input becomes a note in its place."""
    try:
        blocks = build()
    except MissingInput as missing:
        blocks = [missing.block]
    except PROBLEMS as error:
        blocks = [Missing(str(error))]
    return Section(key, title, [*blocks, *after])


def _summary(run: RunFolder, sets: Sequence[TestSet]) -> list[Block]:
    tiles: dict[str, str] = {}
    for (dataset, task), scalars in run.evaluations().items():
        for metric in ("AP", "AP50", "APs", "mMR"):
            if metric in scalars:
                where = " ".join(word for word in ("" if task == "bbox" else task, dataset) if word)
                tiles[f"{metric} ({where})" if where else metric] = number(run.last(scalars[metric]))
    if not tiles:
        for test_set in sets:
            if test_set.judged is not None:
                finite = [row.ap for row in class_accuracies(test_set.judged) if row.ap == row.ap]
                tiles[f"AP ({test_set.name})"] = number(100 * sum(finite) / len(finite) if finite else None)
    planned = run.setting("SOLVER.MAX_ITER")
    if run.metrics:
        done = max((row["iteration"] for row in run.metrics if "total_loss" in row), default=None)
        if done is not None:
            tiles["iterations"] = f"{done + 1} of {planned}" if planned else str(done + 1)
    seconds = {"ms an iteration": iteration_seconds(run), "ms an image": inference_seconds(run)}
    tiles |= {name: number(1e3 * value) for name, value in seconds.items() if value}
    if not tiles:
        raise MissingInput(f"{run.path} has neither metrics nor detections.", run.train_command())
    return [Tiles(tiles)]


def _cost(run: RunFolder) -> list[Block]:
    blocks: list[Block] = []
    records: Sequence[dict[str, Any]] = ()
    try:
        blocks += speed_blocks(run)
    except MissingInput as missing:
        blocks.append(missing.block)
    registered = [name for name in run.test_sets() if name in DatasetCatalog]
    if registered:
        try:
            records = DatasetCatalog.get(registered[0])
        except PROBLEMS as error:
            blocks.append(Missing(str(error)))
    try:
        blocks += operation_blocks(run, records)
    except MissingInput as missing:
        blocks.append(missing.block)
    except PROBLEMS as error:
        blocks.append(Missing(str(error)))
    return blocks


def _mask_images(run: RunFolder) -> list[Block]:
    paths = sorted((run.path / "inference").glob("**/*_masks.jpg"))[:MAX_MASK_IMAGES]
    return [
        embedded_file(
            path,
            f"Activation masks over the image {path.stem.removesuffix('_masks')}: a row a branch, a column a level.",
            f"{path.name}: where each branch of each level computed; the rest is dark.",
        )
        for path in paths
    ]
