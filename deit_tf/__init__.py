"""DeiT, the data-efficient image transformer, for TensorFlow and Keras 3 (Touvron et al. 2021).

Each public name is loaded at its first use, so that building a model needs no LiteRT, no serving
protos and no keras-cv. What a `.keras` file can hold is registered with Keras at once, so that
after `import deit_tf` not only `deit_tf.load_model` but `keras.models.load_model` loads it too.
"""

import importlib
import sys
from pathlib import Path

from deit_tf import onednn

onednn.prefer()

_PLACES = {
    "Distiller": "deit_tf.distillation.distiller",
    "ImageProcessor": "deit_tf.data.preprocess",
    "MaskedTrainer": "deit_tf.training.trainer",
    "ModelConfig": "deit_tf.config",
    "MultilabelDistiller": "deit_tf.distillation.multilabel",
    "Teacher": "deit_tf.distillation.teacher",
    "attention_maps": "deit_tf.models.features",
    "build_deit": "deit_tf.models.deit",
    "build_masked": "deit_tf.models.masked",
    "create_masked_model": "deit_tf.zoo",
    "create_model": "deit_tf.zoo",
    "export_onnx": "deit_tf.exporting.onnx_file",
    "export_saved_model": "deit_tf.exporting.saved_model",
    "export_tflite": "deit_tf.exporting.tflite",
    "features": "deit_tf.models.features",
    "heads": "deit_tf.models.deit",
    "list_models": "deit_tf.models.variants",
    "load_model": "deit_tf.runs.load",
    "load_reference": "deit_tf.weights.names",
    "load_trunk": "deit_tf.weights.names",
    "to_reference": "deit_tf.weights.names",
}
_MODULES = {"config": "deit_tf.config", "data": "deit_tf.data", "optim": "deit_tf.training.optim"}
_REGISTERING = (
    "deit_tf.models.layers",
    "deit_tf.models.masked",
    "deit_tf.distillation.distiller",
    "deit_tf.distillation.multilabel",
)

__all__ = [*_PLACES, *_MODULES]  # noqa: PLE0604, they are strings


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'deit_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command() -> bool:
    """Whether this process is `deit-tf` or `python -m deit_tf`, whose --help does not wait for
    TensorFlow.
    """
    program = sys.argv[0] if sys.argv else ""
    # While Python looks for the module of -m, which may be another that imports this one.
    is_module = program == "-m" and "deit_tf" in sys.orig_argv
    return is_module or Path(program).stem == "deit-tf"


if not _is_command():
    for _module in _REGISTERING:
        importlib.import_module(_module)
    # Its public name is older than its room: `from deit_tf.optim import AdamW`.
    sys.modules["deit_tf.optim"] = importlib.import_module("deit_tf.training.optim")
