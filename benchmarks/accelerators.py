"""Every .tflite variant, with float and uint8 input, on LiteRT's CPU and GPU: taken whole or not,
what is left out, deviation and agreement, size and time.

Times are processor time of one CPU thread, which other programs disturb least, all files in turns,
as shares of the float32 file that takes float32; those of a GPU in software would say nothing.
A name of a model stands for random weights and two bundled photographs, cut into windows.

    python benchmarks/accelerators.py RUN --pictures 500 --gpu-pictures 100
    python benchmarks/accelerators.py deit_tiny_distilled_patch16_224
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import machine
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

import deit_tf
from deit_tf.evaluation.pictures import held_out, training
from deit_tf.exporting.accelerators import DEVICES, SOFTWARE_ADAPTER, compile_for
from deit_tf.exporting.compare import agreement, deviation, share_text
from deit_tf.exporting.litert import load_tflite
from deit_tf.exporting.reference import float32_twin, keras_logits
from deit_tf.exporting.sidecar import INPUTS
from deit_tf.exporting.tflite import VARIANTS, converted
from deit_tf.runs import load_run

FLOAT32 = ("float32", "float32")
WINDOWS = 64  # of the bundled photographs
WARM_UP = 2


def opened(name: str, pictures: int, calibration: int):
    """The model, its processor, pictures to compare on and pictures to calibrate on."""
    if name in deit_tf.list_models():
        keras.utils.set_random_seed(0)
        model = deit_tf.create_model(name)
        processor = deit_tf.ImageProcessor(model.input_shape[1:3])
        windows = photographs(processor)
        half = WINDOWS // 2
        return model, processor, windows[:half][:pictures], windows[half:][:calibration]

    run = load_run(name)
    compared, calibrated = held_out(run, pictures), training(run, calibration)
    if compared is None or calibrated is None:
        sys.exit(f"{name} has no data at hand to calibrate and compare on.")
    return float32_twin(run.model), run.processor, compared.images, calibrated.images


def photographs(processor: deit_tf.ImageProcessor) -> np.ndarray:
    """`WINDOWS` random windows of the two photographs that scikit-learn brings."""
    random, images = np.random.default_rng(0), []
    for number in range(WINDOWS):
        photo = load_sample_images().images[number % 2]
        side = random.integers(150, 400)
        top, left = (random.integers(0, size - side) for size in photo.shape[:2])
        images.append(processor(tf.io.encode_png(photo[top : top + side, left : left + side])))
    return np.stack(images)


def on_device(file: Path, device: str, images: np.ndarray, reference: np.ndarray) -> dict | None:
    """The figures of one file on one device; None without a GPU."""
    taken = compile_for(file, device, images)
    if taken is None:
        return None
    figures = {"whole": taken.whole, "left_out": list(taken.left_out)}
    if taken.logits is None:
        return figures

    figures |= deviation(taken.logits, reference)
    return figures | {"agreement": agreement(taken.logits, reference)}


def cells(figures: dict | None) -> tuple[str, str, str]:
    """Whole or not, largest difference, agreement, as the table shows them."""
    if figures is None:
        return "no GPU", "", ""
    whole = "whole" if figures["whole"] else f"without {len(figures['left_out'])}"
    if "agreement" not in figures:
        return whole, "refused", ""
    return whole, f"{figures['max_difference']:.1e}", share_text(figures["agreement"]["top1"])


def show(rows: dict, title: str) -> None:
    """Print a row per file, then what devices leave out."""
    table = Table("variant", "input", "MB", "of float32", "time", title=title)
    devices = [device for device in DEVICES if device in rows[FLOAT32]]
    for device in devices:
        for heading in (device.upper(), "largest diff.", "top-1"):
            table.add_column(heading)

    whole = rows[FLOAT32]
    for (variant, kind), row in rows.items():
        size = f"{row['bytes'] / 1e6:.2f}", f"{row['bytes'] / whole['bytes']:.3f}"
        time_share = f"{row['cpu_ms'] / whole['cpu_ms']:.2f}"
        shown = (cell for device in devices for cell in cells(row[device]))
        table.add_row(variant, kind, *size, time_share, *shown)

    Console(width=190).print(table)
    print(f"float32: {whole['cpu_ms']:.2f} ms of processor time")
    for (variant, kind), row in rows.items():
        for device in devices:
            for reason in (row[device] or {}).get("left_out", ()):
                print(f"{variant}, {kind}, {device}: {reason}")


def measured(name: str, options: argparse.Namespace, folder: Path) -> dict:
    """Figures by variant and input."""
    model, processor, images, calibration = opened(name, options.pictures, options.calibration)
    # Of pixels, Keras sees what the file sees: normalized from whole gray levels.
    references = {
        "float32": keras_logits(model, images),
        "uint8": keras_logits(model, processor.normalize(processor.to_pixels(images)).numpy()),
    }

    rows, files = {}, {}
    for variant in (v for v in VARIANTS if v == "float32" or v in options.variants):
        for kind in INPUTS:
            file = files[variant, kind] = folder / f"{variant}_{kind}.tflite"
            file.write_bytes(converted(model, variant, kind, processor, calibration))
            row = rows[variant, kind] = {"bytes": file.stat().st_size}
            fed = images if kind == "float32" else processor.to_pixels(images)
            for device in options.devices:
                count = options.gpu_pictures if device == "gpu" else len(images)
                row[device] = on_device(file, device, fed[:count], references[kind][:count])

    for key, milliseconds in processor_times(files, images, processor, options.rounds).items():
        rows[key]["cpu_ms"] = milliseconds
    return rows


def processor_times(files: dict, images: np.ndarray, processor, rounds: int) -> dict:
    """The least milliseconds of processor time that a picture takes, by file, taking turns."""
    loaded = {name: load_tflite(file, num_threads=1) for name, file in files.items()}
    inputs = {name: model.prepared(images[:1], processor) for name, model in loaded.items()}
    times = {name: [] for name in files}

    for _ in range(rounds + WARM_UP):
        for name, model in loaded.items():
            start = time.process_time()
            model(inputs[name])
            times[name].append(1000 * (time.process_time() - start))

    return {name: min(taken[WARM_UP:]) for name, taken in times.items()}


def main() -> None:
    """Make every file, then measure them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a run or .keras file, or a name of `deit-tf models`")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=DEVICES)
    parser.add_argument("--pictures", type=int, default=32, help="compared on the CPU")
    parser.add_argument("--gpu-pictures", type=int, default=4, help="of them, on the GPU")
    parser.add_argument("--calibration", type=int, default=256, help="training pictures for int8")
    parser.add_argument("--rounds", type=int, default=20, help="turns of the timing")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        rows = measured(options.model, options, Path(folder))
    about = machine.describe()
    show(rows, f"{options.model} on {options.pictures} pictures; {about['processor']}")
    if any(row.get("gpu", row) is None for row in rows.values()):
        print(SOFTWARE_ADAPTER)
    if options.json:
        figures = {", ".join(key): row for key, row in rows.items()}
        report = {"machine": about, "files": figures}
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
