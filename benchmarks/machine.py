"""What the machine can do and what the model asks of it: matrix-product peak, model FLOPs, a
description.

python benchmarks/machine.py --threads 2
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from deit_tf import onednn
from deit_tf.config import ModelConfig

SIDE, TURNS = 2048, 12  # of the square product that stands for the peak
BACKWARD = 2  # a product's gradients are two products of its size
CPU_FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f", "avx2")


def forward_flops(config: ModelConfig) -> int:
    """Floating-point operations of the matrix products of one image, a multiplication and an
    addition each counting 1.

    Left out is what grows only with the tokens times the width: norms, softmax, GELU, biases, sums.
    """
    return _patch_flops(config) + config.depth * _block_flops(config) + _head_flops(config)


def train_flops(config: ModelConfig) -> int:
    """The same of a training step; the patch projection has no gradient towards the image."""
    return (1 + BACKWARD) * forward_flops(config) - _patch_flops(config)


def _patches(config: ModelConfig) -> int:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return (height // config.patch_size) * (width // config.patch_size)


def _patch_flops(config: ModelConfig) -> int:
    return 2 * _patches(config) * config.patch_size**2 * 3 * config.embed_dim


def _block_flops(config: ModelConfig) -> int:
    tokens, width = _patches(config) + (2 if config.distilled else 1), config.embed_dim
    projections = tokens * width * (3 * width + width)  # qkv, proj
    attention = 2 * tokens * tokens * width  # queries with keys, weights with values
    mlp = 2 * tokens * width * int(width * config.mlp_ratio)
    return 2 * (projections + attention + mlp)


def _head_flops(config: ModelConfig) -> int:
    return 2 * config.embed_dim * config.num_classes * (2 if config.distilled else 1)


def peak_flops(precision: str, threads: int) -> float:
    """FLOPs per second of a square matrix product in TensorFlow, the best of `TURNS`."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    left, right = (tf.cast(tf.random.normal((SIDE, SIDE)), precision) for _ in range(2))
    seconds = []
    for _ in range(TURNS):
        start = time.perf_counter()
        tf.matmul(left, right).numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(seconds)


def describe() -> dict:
    """Processor, its matrix instructions, TensorFlow's use of them, memory, system and load."""
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    entries = {
        line.split(":")[0].strip(): line.split(":", 1)[1].strip()
        for line in information.splitlines()
        if ":" in line
    }
    flags = set(entries.get("flags", "").split())

    return {
        "processor": entries.get("model name", platform.processor()),
        "instructions": [flag for flag in CPU_FLAGS if flag in flags],
        "onednn": onednn.is_on(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def sentence(described: dict) -> str:
    """What `describe` found, on the line that stands beside a table."""
    return (
        f"{described['cpus']} CPUs: {described['processor']} "
        f"({', '.join(described['instructions']) or 'no known matrix instructions'}), oneDNN "
        f"{'on' if described['onednn'] else 'off'}, load {described['load'][0]}"
    )


def measured_peaks(threads: int) -> dict[str, float]:
    """`peak_flops` of both precisions, in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads)]
    return json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[
            -1
        ]
    )


def main() -> None:
    """Print the peaks as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    threads = parser.parse_args().threads
    print(
        json.dumps(
            {precision: peak_flops(precision, threads) for precision in ("float32", "bfloat16")}
        )
    )


if __name__ == "__main__":
    main()
