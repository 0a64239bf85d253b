"""What a GPU does with deit_tf, in about ten minutes: one table, and the same as JSON to be pasted
into a report. docs/scale.md says what each row should show.

    make gpu-check
    python benchmarks/gpu_check.py --json gpu_check.json --only step

Each row comes from a process of its own: deterministic kernels cannot be switched off again, memory
at its highest is that of one case alone, and what ends one process leaves the others. Without a GPU
it says so and ends; `--device cpu` runs the same rows on the CPU, of which the numbers mean little.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from gpu import rows
from gpu.rows import Case
from rich.console import Console

# What runs, by module and function; imported in the process that runs it, as it loads TensorFlow.
CASES = {
    "seen": "gpu.devices",
    "step": "gpu.steps",
    "memory": "gpu.steps",
    "loss_scaling": "gpu.steps",
    "mirrored": "gpu.replicas",
    "killed": "gpu.runs",
    "saved_model": "gpu.runs",
}
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
LONGEST = 600  # seconds of a case
NO_GPU = 2  # exit status


def cases(setup: dict, device: str) -> Iterator[Case]:
    """What to look at, in order."""
    yield Case("seen", "seen", {}, rows.seen_text)
    for precision, xla, deterministic in product(PRECISIONS, (False, True), (False, True)):
        way = f"{', XLA' if xla else ''}{', deterministic' if deterministic else ''}"
        options = {"setup": setup, "precision": precision, "xla": xla}
        options |= {"deterministic": deterministic}
        yield Case(f"step, {precision}{way}", "step", options, rows.step_text, rows.step_fault)

    # Logical CPUs share the same cores: there several devices are no faster than one.
    fault = rows.mirrored_fault if device == "gpu" else rows.weights_fault
    options = {"setup": setup, "kind": device}
    yield Case("MirroredStrategy", "mirrored", options, rows.mirrored_text, fault)

    # The plan for a CPU is of a whole training, with its input and the copy of a checkpoint.
    fault = rows.memory_fault if device == "gpu" else rows.no_fault
    for precision in PRECISIONS[:2]:
        options = {"setup": setup, "precision": precision}
        yield Case(f"memory, {precision}", "memory", options, rows.memory_text, fault)
    yield Case(
        "loss scaling", "loss_scaling", {"setup": setup}, rows.scaling_text, rows.scaling_fault
    )
    yield Case("killed run", "killed", {}, rows.killed_text, rows.killed_fault)
    text, fault = rows.saved_model_text, rows.saved_model_fault
    yield Case("SavedModel", "saved_model", {"setup": setup}, text, fault)


def run_here(name: str, options: dict) -> dict:
    """Run a case in this process."""
    return getattr(importlib.import_module(CASES[name]), name)(**options)


def run_apart(case: Case, device: str) -> dict:
    """Run a case in a process of its own; `failure` says why it gave nothing."""
    command = [sys.executable, __file__, "--case", case.run, json.dumps(dict(case.options))]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {})
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"It took more than {LONGEST} seconds"}
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return {"failure": f"It ends with {done.returncode}: {last[:300]}"}

    found = json.loads(done.stdout.splitlines()[-1])
    if found.get("devices") == 1:
        return {"skipped_because": "there is one device"}
    return found


def checked(given: argparse.Namespace) -> list[dict]:
    """A row for each case, or none where there is no GPU to look at."""
    setup = {name: getattr(given, name) for name in ("model", "image_size", "batch", "steps")}
    found = []
    for case in cases(setup, given.device):
        if case.run != "seen" and given.only and case.run not in given.only:
            continue
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        row = rows.row(case, run_apart(case, given.device))
        if case.run == "seen" and given.device == "gpu" and not row["found"].get("gpus"):
            return []
        found.append(row)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--model", default="deit_tiny_distilled_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64, help="images of each device")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), help="these alone")
    parser.add_argument("--json", type=Path, help="file for the rows, as JSON")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Look at everything, print the table and write the file; 1 where a row fails."""
    given = _parser().parse_args()
    if given.case:
        print(json.dumps(run_here(given.case[0], json.loads(given.case[1]))))
        return 0

    found = checked(given)
    if not found:
        print("TensorFlow sees no GPU here: nothing to check. --device cpu runs the rows on a CPU.")
        return NO_GPU

    Console(width=120).print(rows.table(found))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"Wrote {given.json}")
    return int(any(row["verdict"] == "FAILS" for row in found))


if __name__ == "__main__":
    sys.exit(main())
