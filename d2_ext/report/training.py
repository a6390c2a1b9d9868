"""What a training wrote into metrics.json: losses, learning rate, AP over time, and CEASC's mask ratios."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from d2_ext.report.blocks import Block, Chart, MissingInput, Table, Text, number, percent
from d2_ext.report.charts import line_chart, panels_chart
from d2_ext.report.run_folder import RunFolder

X_LABEL = "iteration"
MAX_LINES = 8
VALIDATION_PREFIX = "val_loss/"
MASK_PREFIX = "mask_ratio/"
RECALL_PREFIX = "mask_recall/"
SEEN = re.compile(r"(?:.+/)?masks/(?:recall|active).*")  # of evaluation
MEANS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "mMR", "recall")  # of all classes
RECENT = 5  # records; the masks of one batch say little
_LEVEL_AND_ROW = re.compile(r"(?:(?P<level>[^_/]+)_)?(?P<row>[^_/]+)")


def loss_blocks(run: RunFolder) -> list[Block]:
    """Losses and the learning rate."""
    names = [*(["total_loss"] if run.names("total_loss") else []), *run.names("loss_")]
    losses = {name: run.series(name) for name in names if run.series(name)[0]}
    if not losses:
        raise MissingInput(f"There are no losses in {run.path / 'metrics.json'}.", run.train_command())
    blocks: list[Block] = []
    if run.damaged_lines:
        blocks.append(Text(f"{run.damaged_lines} damaged lines of metrics.json were left out."))
    shown = dict(list(losses.items())[:MAX_LINES])
    blocks.append(
        Chart(
            line_chart(shown, x_label=X_LABEL, y_label="loss", log=True),
            "Losses over the iterations. " + _first_to_last(shown),
            "Losses (logarithmic axis), each a median over the iterations since the last record.",
        )
    )
    blocks += _validation_blocks(run)
    rate = run.series("lr")
    if rate[0]:
        blocks.append(
            Chart(
                line_chart({"lr": rate}, x_label=X_LABEL, y_label="learning rate"),
                f"Learning rate over the iterations, highest {max(rate[1]):g}.",
                "Learning rate.",
            )
        )
    return blocks


def _validation_blocks(run: RunFolder) -> list[Block]:
    """The losses over the test set beside those of the training, if ``TEST.VAL_LOSS`` was on."""
    validation, training = run.series(f"{VALIDATION_PREFIX}total"), run.series("total_loss")
    if not validation[0]:
        return []
    both = {"training": training, "validation": validation}
    best = min(range(len(validation[1])), key=lambda n: validation[1][n])
    rise = validation[1][-1] / validation[1][best] - 1 if validation[1][best] > 0 else 0.0
    verdict = f"The validation loss is lowest at iteration {validation[0][best]} ({number(validation[1][best], 3)})"
    verdict += f" and {percent(rise)} higher at the end." if best + 1 < len(validation[1]) else ", the last evaluation."
    rows = []
    for name in run.names(VALIDATION_PREFIX):
        loss = name.removeprefix(VALIDATION_PREFIX)
        trained, values = run.last("total_loss" if loss == "total" else loss), run.series(name)[1]
        rows.append([loss, number(trained, 3), number(min(values, default=None), 3), number(run.last(name), 3)])
    return [
        Chart(
            line_chart(both, x_label=X_LABEL, y_label="total loss", log=True),
            "Total loss of the training and over the test set, over the iterations. " + _first_to_last(both),
            "Training and validation loss (logarithmic axis). Falls the one while the other rises, the detector learns "
            "its training images by heart. The levels differ also by the augmentation.",
        ),
        Text(verdict),
        Table("Losses", ["loss", "training, last record", "validation, lowest", "validation, last"], rows),
    ]


def ap_blocks(run: RunFolder) -> list[Block]:
    """AP, AP50, ... of each evaluation during the training."""
    evaluations = run.evaluations()
    if not evaluations:
        raise MissingInput(f"There is no evaluation in {run.path / 'metrics.json'}.", run.evaluate_command())
    blocks: list[Block] = []
    for (dataset, task), scalars in evaluations.items():
        by_class = {metric: run.series(name) for metric, name in scalars.items() if metric not in MEANS}
        means = {metric: run.series(scalars[metric]) for metric in MEANS if metric in scalars}
        means = {metric: series for metric, series in means.items() if series[0]}
        where = f"{task} on {dataset}" if dataset else task
        count = max((len(x) for x, _ in means.values()), default=0)
        if count < 2:  # a point is no curve: its figures, and how to get a curve the next time
            rows = [[metric, str(x[-1]), number(y[-1])] for metric, (x, y) in {**means, **by_class}.items() if x]
            advice = "A training with TEST.EVAL_PERIOD 500, for instance, evaluates more often and gives a curve here."
            blocks += [Table(f"{where}: the only evaluation", ["metric", "iteration", "%"], rows), Text(advice)]
        else:
            shown = dict(list(means.items())[:MAX_LINES])
            blocks.append(
                Chart(
                    line_chart(shown, x_label=X_LABEL, y_label="%"),
                    f"{where} over the iterations. " + _first_to_last(shown),
                    f"{where}: {count} evaluations.",
                )
            )
    return blocks


def mask_blocks(run: RunFolder) -> list[Block]:
    """Active shares of a sparse head against their targets, and whether its masks let the objects through."""
    # Level ("" for all together) -> branch or "target" -> series.
    table: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for name in run.names(MASK_PREFIX):
        match = _LEVEL_AND_ROW.fullmatch(name.removeprefix(MASK_PREFIX))
        if match and run.series(name)[0]:
            table.setdefault(match["level"] or "", {})[match["row"]] = run.series(name)
    if not table:
        raise MissingInput(
            "This run has no sparse head, or did not log its masks: metrics.json has no mask_ratio/ keys. Detectors "
            "with CEASC's towers write them.",
            "d2_ext train --config-file quickstart/retinanet_ceasc_R18_synthetic.yaml",
        )
    overall = table.pop("", {})
    blocks: list[Block] = [
        Text(
            "Share of positions at which the sparse head computes, in training, by branch. The target is the share "
            "that holds objects: the ratio loss draws the masks towards it, the detection losses keep them open."
        )
    ]
    if overall:
        top = max(0.01, 1.08 * max(max(y) for _, y in overall.values()))
        blocks.append(
            Chart(
                line_chart(overall, x_label=X_LABEL, y_label="active share", y_range=(0, top)),
                "Active shares over all levels and their target over the iterations. " + _first_to_last(overall, 3),
                "All levels together.",
            )
        )
    if table:
        last = {level: {row: _recent(y) for row, (_, y) in rows.items()} for level, rows in table.items()}
        words = "; ".join(
            f"{level}: {', '.join(f'{r} {percent(v)}' for r, v in row.items())}" for level, row in last.items()
        )
        rows = {**last, **({"all": {row: _recent(y) for row, (_, y) in overall.items()}} if overall else {})}
        columns = list(next(iter(rows.values())))
        cells = [[level, *(percent(v.get(column), 2) for column in columns)] for level, v in rows.items()]
        blocks += [
            Table(f"Active shares, mean of the last {RECENT} records", ["level", *columns], cells),
            Chart(
                panels_chart(table, x_label=X_LABEL, y_label="active share"),
                f"Active shares by level over the iterations. At the end: {words}.",
                "By level of the pyramid, finest first.",
                wide=True,
            ),
        ]
    # Do they let the objects through? In training the positions of objects, in evaluation whole objects.
    recall = {branch: run.series(f"{RECALL_PREFIX}{branch}") for branch in ("cls", "reg")}
    recall = {branch: series for branch, series in recall.items() if series[0]}
    if recall:
        blocks.append(
            Chart(
                line_chart(recall, x_label=X_LABEL, y_label="mask recall", y_range=(0, 1.02)),
                "Mask recall over the iterations. " + _first_to_last(recall, 3),
                "Share of the positions with an object that the masks of inference let through, by branch.",
            )
        )
    seen = [[name.replace("masks/", ""), number(run.last(name), 2)] for name in run.names("") if SEEN.fullmatch(name)]
    if seen:
        title = "Objects with a position that both branches compute, and active positions, in the last evaluation"
        blocks.append(Table(title, ["", "%"], seen))
    return blocks


def _recent(values: Sequence[float]) -> float:
    return sum(values[-RECENT:]) / len(values[-RECENT:])


def _first_to_last(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], digits: int = 2) -> str:
    """For readers who do not see the chart."""
    parts = [
        f"{name} from {number(y[0], digits)} at {x[0]} to {number(y[-1], digits)} at {x[-1]}"
        if len(x) > 1
        else f"{name} {number(y[0], digits)} at {x[0]}"
        for name, (x, y) in series.items()
    ]
    return "; ".join(parts) + "."
