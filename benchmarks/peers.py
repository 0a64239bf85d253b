"""Contenders of a benchmark in processes of their own, taking turns: who they are, how they run,
what is shown.

Peers live in two environments of their own, each named by an option or a variable:
requirements-peers-torch.txt and DEIT_TF_TORCH_PYTHON for timm and transformers,
requirements-peers-keras.txt and DEIT_TF_KERAS_HUB_PYTHON for keras-hub; else this interpreter is
tried. TensorFlow's oneDNN kernels are on for all who run on it, as deit_tf asks for them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
from rich.console import Console
from rich.table import Table

from deit_tf import onednn
from deit_tf.config import ModelConfig

MODEL = ModelConfig(embed_dim=192, num_heads=3)  # deit_tiny_distilled_patch16_224
OURS = "deit_tf"
REST = 0.3  # seconds between turns, in which a contender's idle threads stop spinning
COMPILERS = {OURS: "XLA", "keras-hub": "XLA", "timm": "torch.compile"}
NO_ONEDNN = "without oneDNN"
FILE_RUNTIMES = ((OURS, "LiteRT"), ("timm", "ONNX Runtime"), ("timm", "OpenVINO"))
TASKS = {"inference": machine.forward_flops, "train": machine.train_flops}


@dataclass(frozen=True)
class Contender:
    """A library and how it is run.

    `runtime` is what runs it in the place of its own eager or graph mode: a compiler (XLA,
    torch.compile), what its exported file goes through (LiteRT, ONNX Runtime, OpenVINO), or
    TensorFlow's kernels without oneDNN.
    `automatic` mixed precision is torch's; `parts`, above 1, are the micro-batches of this
    project's Distiller, which make the same update of the same batch.
    """

    library: str
    precision: str
    runtime: str = ""
    automatic: bool = False
    parts: int = 1

    @property
    def name(self) -> str:
        """As the tables show it."""
        words = [self.runtime] * bool(self.runtime) + ["autocast"] * self.automatic
        words += [f"{self.parts} micro-batches"] * (self.parts > 1)
        return self.library + (f", {' '.join(words)}" if words else "")


def contenders(task: str, precision: str) -> list[Contender]:
    """Who takes part; a peer that trains has float32 weights where there is a choice, and is shown
    without, too.
    """
    found = [
        Contender(library, precision, runtime)
        for library, compiler in COMPILERS.items()
        for runtime in ("", compiler)
    ]
    found.insert(1, Contender(OURS, precision, NO_ONEDNN))
    if precision == "bfloat16":
        found.append(Contender("timm", precision, automatic=True))
    if task == "train":
        found.insert(1, Contender(OURS, precision, parts=2))
    if task == "inference":
        found.append(Contender("transformers", precision))
    if task == "inference" and precision == "float32":
        found += [Contender(library, precision, runtime) for library, runtime in FILE_RUNTIMES]

    return found


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender, task: str, batch: int, options: argparse.Namespace):
        self.contender, self.seconds, self.peak_mb, self.error = contender, [], 0.0, None
        spec = asdict(contender) | {
            "task": task,
            "batch": batch,
            "threads": options.threads,
            "warm_up": 2,
        }
        python = options.python[contender.library]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        if contender.runtime == NO_ONEDNN:
            environment[onednn.SETTING] = "0"
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("peer_worker.py")), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        answer = (
            json.loads(line) if line else {"error": f"its process ended with {self.process.wait()}"}
        )
        self.error = answer.get("error", self.error)
        return answer

    def turn(self, steps: int) -> None:
        """Run some steps and keep their seconds."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._read()
        self.seconds += answer.get("seconds", [])
        self.peak_mb = answer.get("peak_mb", self.peak_mb)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def measure(
    task: str, precision: str, batch: int, options: argparse.Namespace
) -> tuple[dict, list[str]]:
    """Let the contenders take turns: figures by name, and who was left out and why."""
    workers, left_out = [], []
    try:
        for contender in contenders(task, precision):
            if contender.name in options.skip or contender.library in options.skip:
                left_out.append(f"{contender.name}: not asked for")
                continue
            workers.append(Worker(contender, task, batch, options))
        left_out += [
            f"{worker.contender.name}, {precision}: {worker.error}"
            for worker in workers
            if worker.error
        ]
        running = [worker for worker in workers if not worker.error]
        for turn in range(options.rounds):
            for worker in (
                running[turn % len(running) :] + running[: turn % len(running)]
            ):  # nobody is always first
                time.sleep(REST)
                worker.turn(max(1, options.steps // batch))
    finally:
        for worker in workers:
            worker.close()

    return {worker.contender.name: _figures(worker, batch) for worker in running}, left_out


def _figures(worker: Worker, batch: int) -> dict[str, float]:
    return {
        "images_per_s_best": batch / min(worker.seconds),
        "images_per_s_median": batch / statistics.median(worker.seconds),
        "peak_mb": worker.peak_mb,
    }


def show(results: dict, title: str, flops: int, peak: float) -> None:
    """Print one table; ratios are of the best rates, to the best contender that is not this
    project.
    """
    peers = [row["images_per_s_best"] for name, row in results.items() if not name.startswith(OURS)]
    table = Table("contender", title=title)
    for column in (
        "images / s, best",
        "median",
        "ratio to best peer",
        "peak memory, MB",
        "share of peak",
    ):
        table.add_column(column, justify="right")

    for name, row in results.items():
        ratio = f"{row['images_per_s_best'] / max(peers):.2f}" if peers else "-"
        best, median = row["images_per_s_best"], row["images_per_s_median"]
        cells = (
            f"{best:.1f}",
            f"{median:.1f}",
            ratio,
            f"{row['peak_mb']:.0f}",
            f"{best * flops / peak:.0%}",
        )
        table.add_row(name, *cells)

    Console(width=110).print(table)


def parser(description: str, steps: int, batches: list[int]) -> argparse.ArgumentParser:
    """The options that the benchmarks share."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    options.add_argument(
        "--steps", type=int, default=steps, help="images per turn; one batch at least"
    )
    options.add_argument("--batches", type=int, nargs="+", default=batches, help="images per batch")
    options.add_argument(
        "--precisions", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"]
    )
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contender")
    options.add_argument(
        "--skip", nargs="*", default=[], help="contenders to leave out, by library or by name"
    )
    torch, keras_hub = (
        os.environ.get(f"DEIT_TF_{name}_PYTHON", sys.executable) for name in ("TORCH", "KERAS_HUB")
    )
    options.add_argument(
        "--torch-python", default=torch, help="interpreter that has timm and transformers"
    )
    options.add_argument(
        "--keras-hub-python", default=keras_hub, help="interpreter that has keras-hub"
    )
    options.add_argument(
        "--json", metavar="FILE", help="write the figures and the machine here as well"
    )

    return options


def compare(task: str, options: argparse.Namespace) -> None:
    """Measure a task at every batch size and precision asked for; print the tables and write the
    JSON file.
    """
    torch, keras_hub = options.torch_python, options.keras_hub_python
    options.python = {
        OURS: sys.executable,
        "keras-hub": keras_hub,
        "timm": torch,
        "transformers": torch,
    }
    report = {
        "machine": machine.describe(),
        "peak_flops": machine.measured_peaks(options.threads),
        "tables": [],
    }
    flops = TASKS[task](MODEL)
    print(machine.sentence(report["machine"]))

    for batch in options.batches:
        for precision in options.precisions:
            results, left_out = measure(task, precision, batch, options)
            peak = report["peak_flops"][precision]
            title = (
                f"{task}, batch {batch}, {precision}; {options.threads} threads, peak "
                f"{peak / 1e12:.2f} TFLOP/s"
            )
            show(results, title, flops, peak)
            print(*(f"left out: {line}" for line in left_out), sep="\n")
            table = {
                "batch": batch,
                "precision": precision,
                "results": results,
                "left_out": left_out,
            }
            report["tables"].append(table | {"flops_per_image": flops})

    write(report, options.json)


def write(report: dict, file: str | None) -> None:
    """Write a report as JSON, if asked to."""
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
