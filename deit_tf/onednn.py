"""TensorFlow's oneDNN kernels, asked for before TensorFlow is loaded.

TensorFlow turns them on by itself only where an x86-64 CPU has AVX512-VNNI or better; on others,
too, they run inference and training of a DeiT faster (docs/speed.md), and only they fuse GELU into
the product before it. TensorFlow reads the setting once, while it is loaded.
"""

import logging
import os
import platform
import sys

log = logging.getLogger(__name__)

SETTING = "TF_ENABLE_ONEDNN_OPTS"
X86_64 = ("x86_64", "AMD64")


def prefer() -> None:
    """Ask for the kernels, unless the environment says otherwise or TensorFlow is here already."""
    if platform.machine() in X86_64 and "tensorflow" not in sys.modules:
        os.environ.setdefault(SETTING, "1")


def is_on() -> bool | None:
    """Whether TensorFlow runs them; None where its build does not say."""
    try:
        from tensorflow.python.util import _pywrap_util_port
    except ImportError:
        return None
    return bool(_pywrap_util_port.IsMklEnabled())


def warn_if_missed() -> None:
    """Say so where they are off though nobody asked for that: TensorFlow was loaded before this."""
    if platform.machine() in X86_64 and SETTING not in os.environ and is_on() is False:
        log.warning(
            "TensorFlow was loaded before deit_tf, without its oneDNN kernels, and trains slower "
            "on this CPU. Import deit_tf first, or set %s=1.",
            SETTING,
        )
