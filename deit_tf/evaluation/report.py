"""What runs have to show: side by side in a terminal, and one of them on a page.

The page is one HTML file with nothing outside it: no script, no font, no picture is fetched.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from deit_tf.data.unreadable import naming_unreadable
from deit_tf.distillation.kinds import KINDS, NONE
from deit_tf.evaluation.charts import line_chart, span, tint, where
from deit_tf.evaluation.findings import Decisions, Findings
from deit_tf.evaluation.multilabel import Labelings
from deit_tf.evaluation.pages import WHO, interval_text, percent, write_page
from deit_tf.evaluation.scores import class_scores, wilson
from deit_tf.runs import RunFolder

# column: field of the evaluation
_SHARES = {
    "top-1": "accuracy",
    "cls head": "accuracy_cls",
    "dist head": "accuracy_dist",
    "as teacher": "teacher_agreement",
}
_OF_SEVERAL = {"F1": "f1_samples"}  # where a run has images with any number of labels

# title of a chart: label and field of metrics.jsonl for each line; what a run has not is left out
_CHARTS: dict[str, dict[str, str]] = {
    "Loss": {"training": "loss", "held out": "val_loss"},
    "Parts of the loss": {
        "true labels, training": "base_loss",
        "teacher, training": "distillation_loss",
        "true labels, held out": "val_base_loss",
        "teacher, held out": "val_distillation_loss",
    },
    "Accuracy": {
        "training": "accuracy",
        "held out": "val_accuracy",
        "held out, moving average": "val_ema_accuracy",
    },
    "Accuracy of each head, held out": {
        "class head": "val_accuracy_cls",
        "distillation head": "val_accuracy_dist",
    },
    "F1 of an image": {
        "training": "f1_samples",
        "held out": "val_f1_samples",
        "held out, moving average": "val_ema_f1_samples",
    },
    "F1 of an image by each head, held out": {
        "class head": "val_f1_samples_cls",
        "distillation head": "val_f1_samples_dist",
    },
    "Agreement with the teacher": {
        "training": "teacher_agreement",
        "held out": "val_teacher_agreement",
    },
    "Learning rate": {"": "learning_rate"},
    "Gradient norm": {"": "gradient_norm"},
    "Images per second": {"": "images_per_second"},
}
_MAIN = ("Loss", "Accuracy", "F1 of an image")  # charts that come first, and larger
_HEADLINE = {
    "top-1, held out": "accuracy",
    "top-1 of the class head": "accuracy_cls",
    "top-1 of the distillation head": "accuracy_dist",
    "F1 of an image, held out": "f1_samples",
    "agrees with the teacher": "teacher_agreement",
}
MATRIX_CLASSES = 20  # the widest confusion matrix that is still read
LISTED = 40  # classes, or pairs of classes, in a list


def compare(runs: Sequence[str]) -> Table:
    """Put the final evaluations of several runs into one table.

    Args:
        runs: Run directories.
    Returns:
        A table with a row per run: kind of distillation, top-1 of the model and of its heads,
        agreement with the teacher, F1 where a run has images with any number of labels, epochs
        where a run stopped early, images it was evaluated on, seconds of training.
    Raises:
        FileNotFoundError: If a folder holds no finished run.
    """
    summaries = [(Path(run).name, RunFolder(Path(run)).read_summary()) for run in runs]
    several = any(_OF_SEVERAL["F1"] in each["evaluation"] for _, each in summaries)
    shares = _SHARES | _OF_SEVERAL if several else _SHARES

    epochs = ["epochs"] if any(each.get("stopped_early") for _, each in summaries) else []

    table = Table("run", "kind", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("weights", *shares, *epochs, "images", "seconds"):
        table.add_column(column, justify="right")
    for name, summary in summaries:
        table.add_row(*_row(name, summary, shares, bool(epochs)))
    return table


def _row(name: str, summary: dict, columns: dict[str, str], with_epochs: bool) -> list[str]:
    figures = summary["evaluation"]
    weights = f"{summary['parameters'] / 1e6:.2f} M"
    shares = [percent(figures.get(field)) for field in columns.values()]
    epochs = [str(summary.get("epochs", ""))] if with_epochs else []
    images, seconds = str(summary["evaluation_images"]), f"{summary['training_seconds']:.0f}"
    return [name, str(summary["kind"]), weights, *shares, *epochs, images, seconds]


def write_report(
    run: str | Path, out: str | Path | None = None, exports: str | Path | None = None
) -> Path:
    """Write one self-contained HTML page about a run: curves, decisions, pictures, attention,
    exports.

    Args:
        run: A run directory of `deit-tf train` or `deit-tf train-teacher`.
        out: The file to write; `report.html` in the run by default.
        exports: A folder to look for exported artifacts in, besides the run itself.
    Returns:
        The file.
    Raises:
        FileNotFoundError: If `run` is no finished run.
    """
    findings = Findings(run, exports)
    out = Path(out) if out else RunFolder(findings.path).report
    out.parent.mkdir(parents=True, exist_ok=True)
    with naming_unreadable(findings.held_out):
        shown = _page(findings)

    return write_page("report.html", shown, out)


def _page(findings: Findings) -> dict:
    """Everything that the template shows."""
    decisions = findings.decisions
    page = {
        "name": findings.run.name,
        "summary": findings.summary,
        "headline": _headline(findings),
        "model": _model_rows(findings),
        "charts": _charts(findings.epochs),
        "reconstructions": findings.reconstructions,
        "rollouts": _attended(findings),
        "artifacts": findings.artifacts,
        "config": RunFolder(findings.path).config.read_text(encoding="utf-8"),
        "size": findings.run.processor.size,
        "decided": None,
        "labeled": None,
    }
    if decisions is not None:
        page["decided"] = _decided(findings, decisions)
    if findings.labelings is not None:
        page["labeled"] = _labeled(findings, findings.labelings)

    return page | {"notes": findings.notes}  # last: looking at the rest makes the notes


def _labeled(findings: Findings, labelings: Labelings) -> dict:
    """What the template shows of images with any number of labels."""
    names = _names(findings)
    classes = [row for row in labelings.classes("model", names) if row["images"]]
    weakest = sorted(classes, key=lambda row: row["average_precision"])[:LISTED]
    worst = labelings.worst("model").tolist()
    pixels = findings.pictures(worst)
    has_teacher = "teacher" in labelings.logits

    return {
        "images": len(labelings.truth),
        "who": {who: labelings.figures(who) for who in labelings.logits},
        "agreement": {
            who: labelings.agreement(who, "teacher") for who in labelings.logits if has_teacher
        },
        "classes": classes if len(classes) <= LISTED else weakest,
        "labels": names,
        "worst": [
            {
                "number": i + 1,
                "pixels": pixels[i],
                "truth": _listed(labelings.truth[i], names),
                "said": {"model": _listed(labelings.logits["model"][i] > 0, names)},
            }
            for i in worst
        ],
    }


def _listed(there: np.ndarray, names: Sequence[str]) -> str:
    """The labels of an image in words."""
    return ", ".join(names[i] for i in np.flatnonzero(there)) or "none of them"


def _decided(findings: Findings, decisions: Decisions) -> dict:
    labels = _names(findings)
    confusion = decisions.confusion(len(labels))
    shown = {"mistakes": decisions.mistakes(), "disagreements": decisions.disagreements()}
    pixels = findings.pictures({int(i) for indices in shown.values() for i in indices})
    accuracy = decisions.accuracy()
    return {
        "accuracy": accuracy,
        "intervals": {
            name: interval_text(wilson(share, len(decisions.truth)))
            for name, share in accuracy.items()
        },
        "agreement": decisions.agreement(),
        "voices": [WHO[name] for name in decisions.voices],
        "images": len(decisions.truth),
        "labels": labels,
        "classes": _classes(confusion, labels),
        "confusion": confusion if len(labels) <= MATRIX_CLASSES else None,
        "confused": _confused(confusion, labels),
        **{
            name: [_case(decisions, labels, int(i), pixels[int(i)]) for i in each]
            for name, each in shown.items()
        },
    }


def _case(decisions: Decisions, labels: Sequence[str], index: int, pixels: np.ndarray) -> dict:
    """One held-out picture and what everyone says about it."""
    said = {WHO[name]: labels[top[index]] for name, top in decisions.top.items()}
    truth, confidence = labels[decisions.truth[index]], float(decisions.confidence[index])
    return {
        "number": index + 1,
        "pixels": pixels,
        "truth": truth,
        "said": said,
        "confidence": confidence,
    }


def _classes(confusion: np.ndarray, labels: Sequence[str]) -> list[dict]:
    """How good the answers are per class; the weakest alone where there are many classes."""
    scores = class_scores(confusion)
    rows = [
        {
            "label": label,
            "images": int(scores.images[i]),
            "share": float(scores.recall[i]),
            "precision": float(scores.precision[i]),
            "f1": float(scores.f1[i]),
        }
        for i, label in enumerate(labels)
        if scores.images[i]
    ]
    return rows if len(rows) <= LISTED else sorted(rows, key=lambda row: row["share"])[:LISTED]


def _confused(confusion: np.ndarray, labels: Sequence[str]) -> list[tuple[str, str, int]]:
    """Pairs (true class, decision, images) that are mixed up, the most frequent first."""
    wrong = confusion * (1 - np.eye(len(labels), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    pairs = [np.unravel_index(i, wrong.shape) for i in order]
    return [(labels[t], labels[d], int(wrong[t, d])) for t, d in pairs if wrong[t, d]]


def _attended(findings: Findings) -> list[dict]:
    """What the template shows of attention: pictures, and what they are and are said to be."""
    names = _names(findings)

    def in_words(label: np.ndarray) -> str:
        return _listed(label > 0.5, names) if findings.multilabel else names[int(label)]

    def answer(logits: np.ndarray) -> str:
        return in_words(logits > 0 if findings.multilabel else logits.argmax())

    return [
        {
            "pixels": each.pixels,
            "tinted": tint(each.pixels, each.rollout),
            "where": where(each.rollout),
            "span": span(each.rollout),
            "truth": in_words(each.label),
            "said": {WHO[head]: answer(logits) for head, logits in each.logits.items()},
        }
        for each in findings.rollouts
    ]


def _names(findings: Findings) -> tuple[str, ...]:
    """The class names, numbers where nothing tells them."""
    return findings.run.labels or tuple(map(str, range(findings.run.model.output_shape[-1])))


def _headline(findings: Findings) -> list[tuple[str, str, str]]:
    """Figures of the whole run: what each is, its value, and a note on it."""
    figures, summary = findings.summary["evaluation"], findings.summary
    shares = [
        (name, percent(figures[field]), "") for name, field in _HEADLINE.items() if field in figures
    ]
    if "accuracy" in figures:
        name, value, _ = shares[0]
        interval = wilson(figures["accuracy"], summary["evaluation_images"])
        shares[0] = (name, value, f"95 %: {interval_text(interval)}")

    if findings.labelings is not None:
        average = findings.labelings.figures("model")["mean_average_precision"]
        shares.insert(0, ("mean average precision, held out", percent(average), ""))
    loss = (
        [("loss, held out", f"{figures['loss']:.4f}", "")]
        if "loss" in figures and not shares
        else []
    )
    rest = [
        ("weights", f"{summary['parameters'] / 1e6:.2f} M", ""),
        ("training", f"{summary['training_seconds']:.0f} s", ""),
    ]
    return [*shares, *loss, *rest]


def _model_rows(findings: Findings) -> list[tuple[str, str]]:
    """Student and teacher in words."""
    config, summary, size = findings.run.config, findings.summary, findings.run.processor.size
    is_teacher = summary["kind"] == "teacher"
    trained = config.teacher if is_teacher else config.model
    planned = config.teacher.epochs if is_teacher else config.epochs
    rows = [
        (
            "Model",
            f"{summary['model']}, {summary['parameters']:,} weights, images of {size[0]} x "
            f"{size[1]} pixels",
        ),
        (
            "Trained on",
            f"{summary['training_images']:,} images of {config.data.source}, "
            f"{_epochs(summary, planned)}",
        ),
        *_best_rows(summary),
        ("Held out", f"{summary['evaluation_images']:,} images"),
        ("Trunk from", trained.weights or "scratch"),
        ("Learns from", _LEARNS[summary["kind"]]),
    ]
    if findings.teacher:
        rows.append(
            (
                "Teacher",
                f"{findings.teacher.name}: {findings.teacher.model.count_params():,} weights, "
                "frozen",
            )
        )

    return rows


def _epochs(summary: dict, planned: int) -> str:
    """The epochs of a run in words."""
    if not summary.get("stopped_early"):
        before = ", ".join(map(str, summary.get("extended_from", [])))
        extended = f", extended from {before}" if before else ""
        return f"{summary['epochs']} epochs{extended}"
    return f"{summary['epochs']} of {planned} epochs: nothing better came, and it stopped early"


def _best_rows(summary: dict) -> list[tuple[str, str]]:
    """Which epoch was the best, where that was not the last, whose model the page is about."""
    epoch = summary.get("best_epoch")
    if epoch is None or epoch == summary["epochs"]:
        return []
    [(monitor, figure)] = summary["best"].items()
    return [("Best epoch", f"{epoch}, by {monitor.replace('_', ' ')} held out: {figure:.4f}")]


_LEARNS = {kind: entry.sentence for kind, entry in KINDS.items()} | {
    NONE: "true labels alone",
    "teacher": "true labels alone; it is a teacher",
    "masked": "the images themselves: hidden patches are guessed (SimMIM)",
}


def _charts(epochs: list[dict]) -> dict[str, list[dict]]:
    """The charts that there are figures for: `main`, and `lesser`, which are drawn smaller."""
    charts: dict[str, list[dict]] = {"main": [], "lesser": []}
    for title, lines in _CHARTS.items():
        known = {
            label: [epoch[field] for epoch in epochs if field in epoch]
            for label, field in lines.items()
        }
        if chart := line_chart(title, known):
            charts["main" if title in _MAIN else "lesser"].append(chart)
    return charts
