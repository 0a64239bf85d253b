"""DeiT, the data-efficient image transformer, for TensorFlow and Keras 3 (Touvron et al. 2021)."""

from deit_tf.checkpoint import load_reference, to_reference
from deit_tf.config import ModelConfig
from deit_tf.distill import Distiller
from deit_tf.models import build_deit, create_model, heads, list_models
from deit_tf.teachers import Teacher

__all__ = [
    "Distiller",
    "ModelConfig",
    "Teacher",
    "build_deit",
    "create_model",
    "heads",
    "list_models",
    "load_reference",
    "to_reference",
]
