"""Export a trained model as .tflite files, each run by LiteRT and compared with Keras before it
gets its name.

python export/to_tflite.py runs/deit --out phone --variants float32,float16,dynamic_int8,int8
python export/to_tflite.py runs/deit --out phone --variants dynamic_int8 --input uint8      # pixels
in, as phones have
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from pictures import held_out, read_labels, training
from rich.console import Console
from rich.table import Table

from deit_tf.exporting.sidecar import INPUTS, sidecar_path
from deit_tf.exporting.tflite import (
    SUFFIX,
    VARIANTS,
    check_variant,
    comparison_images,
    export_tflite,
    latencies,
)
from deit_tf.runs import Run, load_run

COLUMNS = (
    "variant",
    "MB",
    "max diff.",
    "mean diff.",
    "top-1",
    "top-5",
    "where clear",
    "ms",
    "of float32",
    "file",
)
WIDTH = 160


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", metavar="RUN_OR_KERAS_FILE", help="run directory, or .keras file")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE_OR_DIR",
        help="one .tflite file, or a folder for several",
    )
    parser.add_argument(
        "--variants", default="float32", help=f"of {','.join(VARIANTS)} (default: float32)"
    )
    parser.add_argument(
        "--input", choices=INPUTS, default="float32", help="normalized images, or pixels 0..255"
    )
    parser.add_argument(
        "--source", help="pictures, as `data.source` of a config (default: the run's own)"
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="class names, one a line (default: the run's)"
    )
    parser.add_argument(
        "--pictures", type=int, default=200, help="held-out pictures to compare on (default: 200)"
    )
    parser.add_argument(
        "--calibration", type=int, default=256, help="training pictures for int8 (default: 256)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of an image when timed (default: 1)"
    )
    return parser.parse_args()


def main() -> None:
    """Export, and print a row per variant; a rejected one makes the command fail."""
    args = parse()
    variants, out = args.variants.split(","), Path(args.out)
    try:
        for variant in variants:
            check_variant(variant)
        if out.suffix == SUFFIX and len(variants) > 1:
            raise ValueError(
                f"`--out` must be a folder for {len(variants)} variants. Received: {out}"
            )
        if min(counts := (args.pictures, args.calibration, args.threads)) < 1:
            raise ValueError(
                f"`--pictures`, `--calibration` and `--threads` count from 1. Received: {counts}"
            )
        run = load_run(args.run)
        found = held_out(run, args.pictures, args.source)
        trained_on = training(run, args.calibration, args.source) if "int8" in variants else None
        labels = run.labels if args.labels is None else read_labels(args.labels)
    except (OSError, ValueError) as error:
        sys.exit(f"Not exported: {error}")
    images = None if found is None else found.images
    calibration = None if trained_on is None else trained_on.images
    described = dict(
        processor=run.processor, labels=labels, input_type=args.input, calibration=calibration
    )
    reports, failed = {}, False
    for variant in variants:
        ending = "" if args.input == "float32" else f"_{args.input}"
        file = out if out.suffix == SUFFIX else out / f"{run.name}_{variant}{ending}{SUFFIX}"
        try:
            reports[variant] = export_tflite(
                run.model, file, variant=variant, images=images, **described
            )
        except (
            RuntimeError,
            OSError,
            ValueError,
        ) as error:  # LiteRT's where a file does not run, and ExportError
            print(f"{variant:14}Not exported: {error}")
            failed = True
    if reports:
        times = timed(run, reports, images, args.threads)
        show(reports, times, "noise" if images is None else f"{len(images)} held-out images")
    sys.exit(failed)


def timed(
    run: Run, reports: dict[str, dict], images: np.ndarray | None, threads: int
) -> dict[str, dict]:
    """Time the files against a float32 one, and note the figures in their JSON files."""
    samples = comparison_images(run.model, images)
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder, f"float32{SUFFIX}")
        export_tflite(run.model, reference, images=samples[:1])
        times = latencies(
            {"": reference} | {v: r["file"] for v, r in reports.items()},
            samples,
            num_threads=threads,
        )
    for variant, report in reports.items():
        times[variant]["of_float32"] = times[variant]["best_ms"] / times[""]["best_ms"]
        path = sidecar_path(Path(report["file"]))
        content = json.loads(path.read_text(encoding="utf-8"))
        content["verified"]["latency"] = times[variant]
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return times


def show(reports: dict[str, dict], times: dict[str, dict], compared_on: str) -> None:
    """Print a row per file, and its ops."""
    threads = times[""]["threads"]
    table = Table(
        *COLUMNS,
        title=f"compared with Keras on {compared_on}; best of 20 runs, {threads} thread(s)",
    )
    for variant, r in reports.items():
        differences = [f"{r[key]:.1e}" for key in ("max_difference", "mean_difference")]
        agreed = [share(r["agreement"][key]) for key in ("top1", "top5", "clear")]
        taken = [f"{times[variant]['best_ms']:.2f}", f"{times[variant]['of_float32']:.2f}"]
        table.add_row(
            variant, f"{r['bytes'] / 1e6:.2f}", *differences, *agreed, *taken, Path(r["file"]).name
        )
    console = Console(width=WIDTH)
    console.print(table)
    for variant, r in reports.items():
        ops = ", ".join(f"{name} {count}" for name, count in r["ops"].items())
        console.print(f"{variant}: {sum(r['ops'].values())} ops: {ops}", highlight=False)


def share(counted: dict) -> str:
    """`198/200 0.964-0.997`: hits, images and the interval."""
    low, high = counted["interval"]
    return f"{counted['hits']}/{counted['images']} {low:.3f}-{high:.3f}"


if __name__ == "__main__":
    main()
