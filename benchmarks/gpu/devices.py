"""What is seen: TensorFlow's build, the driver, the devices; and the memory of one of them."""

import platform
import resource
import subprocess

import keras
import tensorflow as tf

BUILD = ("cuda_version", "cudnn_version")
QUERY = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]


def seen() -> dict:
    """Versions, and each GPU with its name and compute capability."""
    build = tf.sysconfig.get_build_info()
    gpus = [
        tf.config.experimental.get_device_details(gpu)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        "tensorflow": tf.version.VERSION,
        "keras": keras.version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "built_with_cuda": bool(build.get("is_cuda_build")),
        **{name: build.get(name) for name in BUILD},
        "driver": _driver(),
        "gpus": [
            {
                "name": details.get("device_name"),
                "compute_capability": ".".join(map(str, details.get("compute_capability", ()))),
            }
            for details in gpus
        ],
    }


def names(kind: str) -> list[str]:
    """The logical devices of a kind, `gpu` or `cpu`."""
    return [device.name for device in tf.config.list_logical_devices(kind.upper())]


def split_cpu(parts: int) -> None:
    """Let the CPU be several logical devices, before TensorFlow has computed anything."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * parts
    tf.config.set_logical_device_configuration(cpu, parts)


def peak_bytes(kind: str) -> int:
    """Memory at its highest since the process began: of the first GPU, or of the process."""
    if kind == "gpu":
        return tf.config.experimental.get_memory_info(names(kind)[0])["peak"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _driver() -> str | None:
    """Version of NVIDIA's driver, where its tool is there."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None
