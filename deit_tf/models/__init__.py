"""Networks: tensors in, tensors out. They know no files, no data and no training recipe."""

from deit_tf.models.deit import build_deit, heads
from deit_tf.models.variants import VARIANTS, create_model, list_models

__all__ = ["VARIANTS", "build_deit", "create_model", "heads", "list_models"]
