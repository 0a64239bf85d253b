"""Networks: tensors in, tensors out. They know no files, no data and no training recipe."""

from deit_tf.models.deit import build_deit, heads
from deit_tf.models.features import attention_maps, features
from deit_tf.models.masked import build_masked
from deit_tf.models.variants import VARIANTS, list_models

__all__ = [
    "VARIANTS",
    "attention_maps",
    "build_deit",
    "build_masked",
    "features",
    "heads",
    "list_models",
]
