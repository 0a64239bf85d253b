"""The page that says what came out, written from the records alone."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from deit_tf.files import write_text
from evidence.figures import ENOUGH, OURS, Row, rows, verdict
from evidence.plan import NO_TEACHER, Plan
from evidence.records import ONEDNN
from evidence.tables import (
    accuracy_table,
    cosine_table,
    disagreement_table,
    reference_table,
    run_table,
)

NO_RUN = "No run is finished yet"
PAGE = Path(__file__).parent / "page.md"


def write_page(
    records: Sequence[Mapping[str, Any]],
    plan: Plan,
    docs: Path,
    lines: Path,
    pictures: Mapping[str, Sequence[Path]],
) -> Path:
    """Write `evidence.md` into the folder of the documents.

    Args:
        records: All of the plan.
        plan: The plan.
        docs: The folder.
        lines: The file of the records, below it.
        pictures: Their files, light and dark, below it.
    """
    table = rows(records, plan.arms)
    values = {
        "lines": _link(lines, docs),
        "lines_name": lines.name,
        "state": _state(records, plan),
        "verdict": "\n".join(f"- {sentence}" for sentence in verdict(table)),
        "enough": ENOUGH,
        "accuracy": accuracy_table(table),
        "disagreement": disagreement_table(records),
        "cosine": cosine_table(records),
        "reference": reference_table(records, plan),
        "runs": run_table(records),
        "picture_runs": _picture(pictures["runs"], docs, _dots_in_words(table)),
        "picture_curves": _picture(pictures["curves"], docs, _curves_in_words(records)),
        **_settings(records, plan),
        **_circumstances(records),
    }
    file = docs / "evidence.md"
    template = Template(PAGE.read_text(encoding="utf-8"))
    write_text(template.substitute(values), file)
    return file


def _state(records: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """How much of the plan was run."""
    planned = len(list(plan.runs()))
    done = _own_runs(records)
    seeds = {arm.title: sum(run["arm"] == arm.name for run in done) for arm in plan.arms}
    missing = [f"{title} ({seeds[title]})" for title in seeds if seeds[title] < ENOUGH]
    text = f"**{len(done)} of the {planned} runs of the plan were run.**"
    if len(done) == planned:
        return text
    return (
        f"{text} With fewer than {ENOUGH} seeds: {'; '.join(missing) or 'none'}.\n"
        "The same command goes on with the rest."
    )


def _own_runs(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in records if each["what"] == "run" and each["library"] == OURS]


def _settings(records: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    """The plan in words."""
    config = plan.config(plan.arm(NO_TEACHER).settings)
    model, optim, augment = config.model, config.optim, config.augment.resolve()
    search = next((record for record in records if record["what"] == "learning-rate"), None)
    tried = "not chosen yet"
    if search:
        candidates = search["candidates"].items()
        each = ", ".join(f"{lr} gave {100 * accuracy:.1f} %" for lr, accuracy in candidates)
        tried = f"{search['chosen']:g} ({each})"

    teacher = next(iter(plan.teachers.values()))
    per_class = plan.photographs_per_class
    return {
        "search": tried,
        "search_seed": plan.learning_rate["seed"],
        "search_epochs": _epochs(plan.learning_rate["epochs"]),
        "student": f"patches of {model.patch_size} pixels, width {model.embed_dim}, depth "
        f"{model.depth}, {model.num_heads} heads",
        "photographs": f"{per_class:,} of each class" if per_class else "all",
        "images": next((f"{r['images']:,}" for r in records if "images" in r), "the"),
        "recipe": f"AdamW, batch {config.data.batch_size}, weight decay {optim.weight_decay:g}, "
        f"clipping at {optim.clip_norm}, {_epochs(config.epochs)} under a cosine, horizontal flips "
        f"with probability {augment.hflip:g}, {config.precision}",
        "epochs": _epochs(config.epochs),
        "teacher_title": teacher["title"],
        "plan_name": plan.file.name,
    }


def _circumstances(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The machines and the hours."""
    machines = {
        f"{record['machine']['cpus']} cores of {record['machine']['processor']} "
        f"({', '.join(record['machine']['instructions'])})"
        for record in records
    }
    loads = [record["load"][0] for record in records]
    hours = sum(record.get("training_seconds", 0) for record in records) / 3600
    return {
        "plan": records[0]["plan"][:12] if records else "",
        "machine": "; ".join(sorted(machines)),
        "hours": f"{hours:.1f} hours",
        "load": f"{min(loads):.1f} to {max(loads):.1f}" if loads else "unknown",
        "onednn": ONEDNN,
        "onednn_value": ", ".join(sorted({str(record[ONEDNN]) for record in records})),
    }


def _picture(files: Sequence[Path], docs: Path, words: str) -> str:
    """A picture for either ground, with what it shows in words."""
    light, dark = (_link(file, docs) for file in files)
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img src="{light}" width="720" alt="{words}">\n'
        "</picture>"
    )


def _dots_in_words(table: Sequence[Row]) -> str:
    means = [
        f"{row.arm.title}, {row.head}: "
        + ", ".join(f"{100 * value:.1f}" for value in row.accuracies.values())
        for row in table
        if row.accuracies
    ]
    return f"Held-out top-1 of every run, in percent. {'; '.join(means) or NO_RUN}."


def _curves_in_words(records: Sequence[Mapping[str, Any]]) -> str:
    ends = [
        f"{record['arm']}, seed {record['seed']}: {100 * record['curve'][0]:.1f} after the first "
        f"epoch, {100 * record['curve'][-1]:.1f} after the last"
        for record in _own_runs(records)
        if "curve" in record
    ]
    return f"Held-out top-1 after each epoch, in percent. {'; '.join(ends) or NO_RUN}."


def _link(file: Path, docs: Path) -> str:
    return Path(os.path.relpath(file, docs)).as_posix()


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count != 1 else ''}"
