"""Networks: tensors in, tensors out. They know no files, no data and no training recipe.

Each name is loaded at its first use, so that the table of models in `variants` needs no Keras.
(`features` is the module here, and the function in `deit_tf`.)
"""

import importlib

_PLACES = {
    "VARIANTS": "variants",
    "attention_maps": "features",
    "build_deit": "deit",
    "build_masked": "masked",
    "class_head": "deit",
    "heads": "deit",
    "list_models": "variants",
}

__all__ = [*_PLACES]  # noqa: PLE0604, they are strings


def __getattr__(name: str):
    if name in _PLACES:
        return getattr(importlib.import_module(f"deit_tf.models.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'deit_tf.models' has no attribute {name!r}")
