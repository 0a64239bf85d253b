"""Whether LiteRT runs a .tflite file whole on a CPU's or GPU's fast kernels, and what keeps it from
that.

`gpu_obstacles` reads the file alone, and needs no device; `compile_for` asks LiteRT's
CompiledModel. Phones go back to the CPU, or back and forth, where a GPU refuses an operation.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from deit_tf.exporting.compare import HALF, ExportError, Limits, agreement, deviation
from deit_tf.exporting.flatbuffer import op_name, unpacked

WORKER = Path(__file__).with_name("compile_worker.py")
TIMEOUT = 600  # seconds; a software adapter compiles its kernels slowly
PICTURES = 4  # that an export runs per device; a software adapter takes seconds for each
MAX_AXES = 4
# Seen to be taken by the GPU of LiteRT 2.3, in the forms in which a DeiT has them.
GPU_OPERATIONS = frozenset(
    "ADD BATCH_MATMUL CAST CONCATENATION CONV_2D DEQUANTIZE FULLY_CONNECTED GELU MEAN MUL QUANTIZE "
    "RESHAPE RSQRT SOFTMAX SPLIT SQUARED_DIFFERENCE STRIDED_SLICE SUB TRANSPOSE "
    "DIV SUM".split()  # of the rollout: by WebGPU in a browser, LiteRT.js 2.5
)
NO_ADAPTER = re.compile(r"No adapters found|GPU accelerator could not be loaded")
REFUSED = re.compile(
    r"not supported by GPU delegate:\n(.*?)\n(?:\d+|No) operations will run on the GPU", re.DOTALL
)
SOFTWARE_ADAPTER = (
    "no GPU adapter was found, so the GPU is untried. A software one: `apt-get install chromium "
    "libvulkan1`, and VK_ICD_FILENAMES=/usr/lib/chromium/vk_swiftshader_icd.json"
)

Device = Literal["cpu", "gpu"]
DEVICES: tuple[Device, ...] = ("cpu", "gpu")


@dataclass(frozen=True)
class Acceleration:
    """How a device takes a file.

    Args:
        device: `cpu` (XNNPACK) or `gpu`.
        whole: Whether every operation runs on it.
        left_out: The operations that do not: by name on the CPU, with LiteRT's reason on the GPU.
        logits: float32 [n, C] of the images that were given, where the device takes the file.
    """

    device: Device
    whole: bool
    left_out: tuple[str, ...] = ()
    logits: np.ndarray | None = None


def gpu_obstacles(content: bytes) -> list[str]:
    """What a mobile GPU would refuse in a .tflite file, by the file alone; empty where nothing is.

    Args:
        content: The file.
    Returns:
        One line for each tensor of more than four axes, and for each operation that a GPU is not
        known to take: one beyond `GPU_OPERATIONS`, or a slice that drops or adds an axis.
    """
    model = unpacked(content)
    found = []
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            axes = 0 if tensor.shape is None else len(tensor.shape)
            if axes > MAX_AXES:
                found.append(f"{axes} axes: {tensor.name.decode()}")

        for operation in graph.operators:
            if reason := _obstacle(model, operation):
                found.append(f"{reason}: {graph.tensors[operation.outputs[0]].name.decode()}")

    return found


def compile_for(
    file: str | Path, device: Device, images: np.ndarray | None = None
) -> Acceleration | None:
    """Compile a .tflite file for a device, and run it there, in a process of its own.

    Args:
        file: A file with one signature, of one input and one output.
        device: `cpu` or `gpu`.
        images: [n, H, W, 3] of the type that the file takes, to run.
    Returns:
        How the device takes it; None where there is no GPU (`SOFTWARE_ADAPTER` says what helps).
    Raises:
        ValueError: For another device.
        ExportError: If LiteRT fails for any other reason, or takes longer than `TIMEOUT`.
    """
    if device not in DEVICES:
        raise ValueError(f"`device` is cpu or gpu. Received: {device!r}")

    with tempfile.TemporaryDirectory() as folder:
        arrays = [] if images is None else [Path(folder, "images.npy"), Path(folder, "logits.npy")]
        if arrays:
            np.save(arrays[0], images)
        answer, messages = _ask(file, device, arrays)
        if answer["error"] is None:
            logits = np.load(arrays[1]) if arrays else None
            return Acceleration(device, answer["whole"], tuple(answer["left_out"]), logits)

    if device == "gpu" and (refused := REFUSED.search(messages)):
        reasons = tuple(line.strip() for line in refused[1].splitlines())
        return Acceleration(device, whole=False, left_out=reasons)
    if device == "gpu" and NO_ADAPTER.search(messages):
        return None
    raise ExportError(f"{file} does not compile for the {device}: {answer['error']}")


def measure_devices(
    file: Path, images: np.ndarray, logits: np.ndarray, limits: Limits
) -> dict[str, dict[str, Any]]:
    """How CPU and GPU take a file, and how far they are from Keras there: what its JSON file says.

    Args:
        file: The file.
        images: [n, H, W, 3] of the type that it takes; the first `PICTURES` are run.
        logits: float [n, C], what they should give.
        limits: What the file may differ by on the CPU.
    Returns:
        For `cpu` and `gpu`: `tried`; `whole`, whether every operation runs there, for an untried
        GPU by `gpu_obstacles`; `left_out`, the operations that do not; `note`, why it is untried;
        and, where it ran, `images` with their `max_difference` and `relative_rms`, and `excess`,
        what is beyond a limit, in words.
    Raises:
        ExportError: If it does not run on the CPU, or differs there. What a GPU makes of a file is
            written down and rejects none: it may be this machine's GPU alone.
    """
    images, logits = images[:PICTURES], logits[:PICTURES]
    cpu = _figures(compile_for(file, "cpu", images), logits, limits)
    if cpu["excess"]:
        raise ExportError(f"{file} compiled for the CPU differs from Keras: {cpu['excess']}")

    try:
        on_gpu = compile_for(file, "gpu", images)
    except ExportError as error:
        return {"cpu": cpu, "gpu": _untried(file, str(error))}
    if on_gpu is None:
        return {"cpu": cpu, "gpu": _untried(file, SOFTWARE_ADAPTER)}
    return {"cpu": cpu, "gpu": _figures(on_gpu, logits, limits.or_looser(HALF))}


def _figures(taken: Acceleration, logits: np.ndarray, limits: Limits) -> dict[str, Any]:
    figures = {"tried": True, "whole": taken.whole, "left_out": list(taken.left_out)}
    if taken.logits is None:
        return figures

    measured, agreed = deviation(taken.logits, logits), agreement(taken.logits, logits)
    figures |= {key: measured[key] for key in ("max_difference", "relative_rms")}
    return figures | {"images": len(logits), "excess": limits.exceeded(measured, agreed)}


def _untried(file: Path, note: str) -> dict[str, Any]:
    obstacles = gpu_obstacles(file.read_bytes())
    return {"tried": False, "whole": not obstacles, "left_out": obstacles, "note": note}


def _obstacle(model: schema.ModelT, operation: schema.OperatorT) -> str:
    """Why a GPU is not known to take an operation; empty where it is."""
    name = op_name(model, operation)
    if name not in GPU_OPERATIONS:
        return name
    options = operation.builtinOptions
    masks = ("shrinkAxisMask", "newAxisMask", "ellipsisMask")
    if name == "STRIDED_SLICE" and any(getattr(options, mask) for mask in masks):
        return "STRIDED_SLICE drops or adds an axis"
    return ""


def _ask(file: str | Path, device: Device, arrays: list[Path]) -> tuple[dict, str]:
    """The worker's answer, and what LiteRT printed."""
    command = [sys.executable, str(WORKER), str(file), device, *map(str, arrays)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{file} does not compile for the {device} in {TIMEOUT} s") from error

    if done.returncode or not done.stdout:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(f"{file}: compiling for the {device} ended by {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1]), done.stderr
