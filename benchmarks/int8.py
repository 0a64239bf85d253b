"""Ways to make a .tflite file int8, on one trained model: agreement with Keras, accuracy, size and
time.

Times are of one thread, all files in turns. `deit_tf` in a name marks what `export/to_tflite.py
--variants` writes.

    python benchmarks/int8.py RUN --pictures 2000 --json int8.json
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from litert_quantizer import qtyping, quantizer
from rich.console import Console
from rich.table import Table

from deit_tf.evaluation.pictures import Pictures, held_out, training
from deit_tf.exporting.compare import agreement, deviation
from deit_tf.exporting.flatbuffer import op_counts
from deit_tf.exporting.litert import latencies, load_tflite
from deit_tf.exporting.quantize import OPS, SIGNATURE, quantize_int8, smooth
from deit_tf.exporting.reference import float32_twin
from deit_tf.exporting.tflite import convert, save_fixed_batch
from deit_tf.models.parts import blocks
from deit_tf.runs import load_run

FEW, COVERED = 32, 99.9  # calibration images; percent of the values of an image
ENLARGED, FACTOR = 4, 40.0  # channels of each norm, and how much
SHIPPED = "deit_tf int8: products with weights, smoothed"


def trials(model: keras.Model, images: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Every way, by name, with the file that it makes."""
    plain, smoothed = converted(model), converted(smooth(model, images))
    attention, gelu = (*OPS, "BATCH_MATMUL"), (*OPS, "GELU")
    every = tuple(op for op in op_counts(plain) if op in set(qtyping.TFLOperationName))
    yield "deit_tf float32", plain
    yield "deit_tf dynamic_int8", converted(model, "dynamic_int8")
    yield "TFLite's full integer conversion", full_integer(model, images)
    yield "every op, litert-quantizer's own calibration", self_calibrated(plain, images, every)
    yield "every op", quantize_int8(plain, images, ops=every)
    yield "products with weights, its own calibration", self_calibrated(plain, images, OPS)
    yield "products with weights", quantize_int8(plain, images)
    yield SHIPPED, quantize_int8(smoothed, images)
    yield (
        f"the same, {COVERED} % of the values",
        quantize_int8(smoothed, images, measure=most_values),
    )
    yield (
        f"the same, {FEW} calibration pictures",
        quantize_int8(smoothed, images[:: max(1, len(images) // FEW)]),
    )
    yield "the same, attention's products too", quantize_int8(smoothed, images, ops=attention)
    yield "the same, GELU too", quantize_int8(smoothed, images, ops=gelu)
    wild = enlarged(model)
    yield f"norms {FACTOR:g}-fold, products with weights", quantize_int8(converted(wild), images)
    yield f"norms {FACTOR:g}-fold, smoothed", quantize_int8(converted(smooth(wild, images)), images)


def converted(model: keras.Model, variant: str = "float32") -> bytes:
    """The content of a .tflite file."""
    with tempfile.TemporaryDirectory() as folder:
        save_fixed_batch(model, lambda x: model(x, training=False), np.dtype("float32"), folder)
        return convert(folder, variant)


def full_integer(model: keras.Model, images: np.ndarray) -> bytes:
    """What TensorFlow's guide to full integer quantization leads to."""
    with tempfile.TemporaryDirectory() as folder:
        save_fixed_batch(model, lambda x: model(x, training=False), np.dtype("float32"), folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        return converter.convert()


def self_calibrated(content: bytes, images: np.ndarray, ops: tuple[str, ...]) -> bytes:
    """What litert-quantizer makes with its own calibration."""
    made = quantizer.Quantizer(bytearray(content))
    for op in ops:
        made.add_static_config(".*", op, activation_num_bits=8, weight_num_bits=8)
    with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):  # progress bars
        ranges = made.calibrate(
            {SIGNATURE: [{"images": image[None]} for image in images]}, num_threads=1
        )
        return bytes(made.quantize(ranges, enable_progress_report=False).quantized_model)


def most_values(values: np.ndarray) -> tuple[float, float]:
    """The range of the values but for the outermost, as many at either end."""
    low, high = np.percentile(values, [100 - COVERED, COVERED])
    return float(low), float(high)


def enlarged(model: keras.Model) -> keras.Model:
    """The same function, with channels of each block's norms enlarged and the next kernel reduced
    alike.
    """
    copy, random = keras.models.clone_model(model), np.random.default_rng(0)
    copy.set_weights(model.get_weights())
    for block in blocks(copy):
        for norm, dense in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            scale = np.ones(norm.gamma.shape[0], np.float32)
            scale[random.choice(len(scale), ENLARGED, replace=False)] = FACTOR
            norm.gamma.assign(norm.gamma * scale)
            norm.beta.assign(norm.beta * scale)
            dense.kernel.assign(dense.kernel / scale[:, None])
    return copy


def measured(file: Path, pictures: Pictures, reference: np.ndarray) -> dict:
    """The figures of one file, but for its time."""
    logits, labels = load_tflite(file)(pictures.images), pictures.labels
    accuracy = float((logits.argmax(-1) == labels).mean())
    counted = agreement(logits, reference)
    return {
        "bytes": file.stat().st_size,
        "accuracy": accuracy,
        **counted,
        **deviation(logits, reference),
    }


def show(figures: dict[str, dict], pictures: int, accuracy: float) -> None:
    """Print a row per way."""
    title = f"{pictures} held-out pictures, of which Keras gets {accuracy:.4f} right"
    table = Table(
        "", "MB", "of float32", "time", "top-1", "where clear", "accuracy", "rel. RMS", title=title
    )
    whole = figures["deit_tf float32"]

    for name, row in figures.items():
        (low, high), clear = row["top1"]["interval"], row["clear"]
        size = f"{row['bytes'] / 1e6:.2f}", f"{row['bytes'] / whole['bytes']:.3f}"
        agreed = (
            f"{row['top1']['share']:.4f} ({low:.3f}-{high:.3f})",
            f"{clear['hits']}/{clear['images']}",
        )
        time = f"{row['best_ms'] / whole['best_ms']:.2f}"
        table.add_row(
            name, *size, time, *agreed, f"{row['accuracy']:.4f}", f"{row['relative_rms']:.4f}"
        )

    Console(width=160).print(table)


def main() -> None:
    """Make every file, then measure them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "run", metavar="RUN", help="run directory of a student whose data is at hand"
    )
    parser.add_argument(
        "--pictures", type=int, default=1000, help="held-out pictures to compare on (default: 1000)"
    )
    parser.add_argument(
        "--calibration", type=int, default=256, help="training pictures (default: 256)"
    )
    parser.add_argument("--rounds", type=int, default=40, help="turns of the timing (default: 40)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    run = load_run(args.run)
    compared, calibration = held_out(run, args.pictures), training(run, args.calibration)
    if compared is None or calibration is None:
        sys.exit(f"{args.run} has no data at hand to calibrate and compare on.")
    model = float32_twin(run.model)
    reference = model.predict(compared.images, verbose=0)

    with tempfile.TemporaryDirectory() as folder:
        files, figures = {}, {}
        for name, content in trials(model, calibration.images):
            files[name] = Path(folder, f"{len(files)}.tflite")
            files[name].write_bytes(content)
            figures[name] = measured(files[name], compared, reference)
        for name, times in latencies(files, compared.images, rounds=args.rounds).items():
            figures[name] |= times

    show(figures, len(compared.labels), float((reference.argmax(-1) == compared.labels).mean()))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
