"""The tables of the page, in Markdown, from the records."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evidence.figures import HEADS, OURS, REFERENCE, Row, Spread, find, paired, rows, spread
from evidence.paper import COSINE, TABLE_3, TABLE_4
from evidence.plan import NO_TEACHER, TOKEN, TWO_TOKENS, Plan

NOTHING = "–"
Records = Sequence[Mapping[str, Any]]


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; numbers stand on the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def accuracy_table(table: Sequence[Row]) -> str:
    """Table 3: accuracy by arm and head, and what it has on the arm without teacher."""
    base = find(table, NO_TEACHER, "cls").accuracies
    lines = []
    for row in table:
        found = spread(list(row.accuracies.values()))
        difference = None if row.arm.name == NO_TEACHER else spread(paired(row.accuracies, base))
        tiny, large = TABLE_3.get((row.arm.name, row.head), (None, None))
        lines.append(
            [
                f"{row.arm.title}: {HEADS[row.head]}",
                str(len(row.accuracies)),
                _percent(found),
                _points(difference),
                str(len(row.failures)),
                _figure(tiny),
                _figure(large),
            ]
        )
    head = ["arm", "seeds", "top-1 %", "to no teacher, paired", "diverged", "*DeiT-Ti*", "*DeiT-B*"]
    return markdown(head, lines)


def disagreement_table(records: Records) -> str:
    """Table 4: means over the seeds, the paper's in italics."""
    found = [record for record in records if record["what"] == "disagreement"]
    if not found:
        return "Not measured yet."
    names = found[0]["classifiers"]
    lines = []
    for i, name in enumerate(names):
        cells = [name]
        for j, other in enumerate(names):
            mean = sum(record["shares"][i][j] for record in found) / len(found)
            paper = TABLE_4.get((name, other)) or TABLE_4.get((other, name))
            cells.append(f"{mean:.3f} *{paper:.3f}*" if paper else f"{mean:.3f}")
        lines.append(cells)
    return markdown(["", *names], lines)


def cosine_table(records: Records) -> str:
    """How alike the two tokens are, on the way through the blocks: means over the seeds."""
    columns = {name: _cosines(records, name) for name in (TOKEN, TWO_TOKENS)}
    columns = {name: each for name, each in columns.items() if each}
    if not columns:
        return "Not measured yet."

    places = list(next(iter(columns.values())))
    lines = []
    for place in places:
        cells = [place]
        for name in (TOKEN, TWO_TOKENS):
            value = columns.get(name, {}).get(place)
            paper = COSINE.get((name, place))
            cells += [_figure(value, 2), _figure(paper, 3 if paper == 0.999 else 2)]
        lines.append(cells)
    head = ["", "class and distillation token", "*paper*", "two class tokens", "*paper*"]
    return markdown(head, lines)


def _cosines(records: Records, arm: str) -> dict[str, float]:
    """Mean cosine by place."""
    found = [
        r["cosine"] for r in records if r["what"] == "run" and r["arm"] == arm and "cosine" in r
    ]
    if not found:
        return {}
    named = []
    for each in found:
        first, *blocks = each["input_and_blocks"]
        after = {f"after block {number}": value for number, value in enumerate(blocks, 1)}
        named.append(
            {"learned": each["learned"], "with its position": first, **after, "end": each["end"]}
        )
    return {place: sum(each[place] for each in named) / len(named) for place in named[0]}


def reference_table(records: Records, plan: Plan) -> str:
    """The same runs by timm and torch, seed by seed."""
    ours, theirs = (rows(records, plan.arms, library) for library in (OURS, REFERENCE))
    lines = []
    for name in plan.reference["arms"]:
        head = "both" if name == TOKEN else "cls"
        a, b = (find(table, name, head).accuracies for table in (ours, theirs))
        for seed in sorted(a.keys() & b.keys()):
            cells = [f"{100 * a[seed]:.2f}", f"{100 * b[seed]:.2f}"]
            lines.append([name, str(seed), *cells, f"{100 * (a[seed] - b[seed]):+.2f}"])
        if len(difference := paired(a, b)) > 1:
            lines.append([name, "mean", "", "", _points(spread(difference), 2)])
    if not lines:
        return "Not run yet."
    return markdown(["arm", "seed", "deit_tf, top-1 %", "timm, top-1 %", "difference"], lines)


def run_table(records: Records) -> str:
    """Every run, as it was."""
    lines = []
    for record in records:
        if record["what"] not in ("run", "teacher"):
            continue
        accuracy = record.get("accuracy", {})
        lines.append(
            [
                f"{record['what']} {record['arm']}",
                record.get("library", OURS),
                str(record.get("seed", "")),
                *(_percent_of(accuracy.get(head)) for head in HEADS),
                f"{record['training_seconds']:.0f}" if "training_seconds" in record else NOTHING,
                record.get("failed", ""),
            ]
        )
    head = ["", "by", "seed", *(f"{name}, %" for name in HEADS.values()), "seconds", "failed"]
    return markdown(head, lines)


def _percent(found: Spread | None) -> str:
    if found is None:
        return NOTHING
    deviation = "" if found.deviation is None else f" ± {100 * found.deviation:.1f}"
    return f"{100 * found.mean:.1f}{deviation}"


def _points(found: Spread | None, decimals: int = 1) -> str:
    """A difference in points, with its interval where one is claimed."""
    if found is None:
        return NOTHING
    text = f"{100 * found.mean:+.{decimals}f}"
    if found.bounds is None:
        return text
    low, high = (f"{100 * bound:+.{decimals}f}" for bound in found.bounds)
    return f"{text} [{low}, {high}]"


def _percent_of(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.2f}"


def _figure(value: float | None, decimals: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{decimals}f}"
