"""Whole commands: a run that is killed and goes on, and a SavedModel in a C++ session."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from safetensors.numpy import load_file

import deit_tf
from deit_tf.exporting.saved_model import load_saved_model, read_report
from gpu.steps import CLASSES, Setup

RUN = """
model: {name: deit_test, image_size: 16, patch_size: 4, embed_dim: 24, depth: 2, num_heads: 3}
data: {source: digits, batch_size: 128, crop_ratio: 1.0}
augment: {recipe: light, hflip: 0.0, mixup: 0.8}
optim: {lr: 1.6e-2, warmup_epochs: 1, ema_decay: 0.99, clip_norm: 0.5}
distill: {kind: none}
checkpoint: {every_steps: 4}
epochs: 2
"""
LONGEST = 300  # seconds of a run
BATCH = 32


def killed() -> dict:
    """Train on digits, once whole and once killed with signal 9 and resumed, on what is here.

    Returns:
        Whether it `was_killed`, and whether weights, optimizer and average have the `same_bits` in
        the end.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "config.yaml").write_text(RUN)
        _finish(_start(folder, "whole"))
        was_killed = _kill(_start(folder, "killed"), folder / "killed")
        _finish(_start(folder, "killed"))

        whole, resumed = (_final(folder / name) for name in ("whole", "killed"))
        same = [np.array_equal(array, resumed.get(name)) for name, array in whole.items()]
        return {"was_killed": was_killed, "same_bits": all(same) and len(whole) == len(resumed)}


def _start(folder: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "deit_tf", "train", "--config", str(folder / "config.yaml")]
    command += ["--out", str(folder / name)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(process: subprocess.Popen) -> None:
    text, _ = process.communicate(timeout=LONGEST)
    if process.returncode:
        raise RuntimeError(f"deit-tf train ends with {process.returncode}: {text[-300:]}")


def _kill(process: subprocess.Popen, run: Path) -> bool:
    """Kill a run once it has a checkpoint; false if it was faster."""
    while process.poll() is None:
        if any((run / "checkpoints").glob("step-*")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    process.communicate(timeout=LONGEST)
    return process.returncode == -signal.SIGKILL


def _final(run: Path) -> dict[str, np.ndarray]:
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1])


def saved_model(setup: dict) -> dict:
    """Export a model, which compares it with Keras, and time it in a C++ session.

    Returns:
        `difference` of a logit from Keras, over the largest; `images_per_second` in batches of 32.
    """
    setup = Setup(**setup)
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model(setup.model, image_size=setup.image_size, num_classes=CLASSES)
    processor = deit_tf.ImageProcessor(setup.image_size)
    with tempfile.TemporaryDirectory() as folder:
        version = deit_tf.export_saved_model(model, folder, processor=processor, batch_sizes=(1,))
        report, loaded = read_report(version), load_saved_model(version)
        images = setup.images(BATCH)[0].numpy()
        loaded.run("images", images)

        started = time.perf_counter()
        for _ in range(setup.steps):
            loaded.run("images", images)
        seconds = time.perf_counter() - started

    return {
        "difference": report["images"]["max_difference"],
        "images_per_second": setup.steps * BATCH / seconds,
    }
