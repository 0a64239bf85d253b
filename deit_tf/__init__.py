"""DeiT, the data-efficient image transformer, for TensorFlow and Keras 3 (Touvron et al. 2021)."""

from deit_tf import data
from deit_tf.checkpoint import load_reference, to_reference
from deit_tf.config import ModelConfig
from deit_tf.distill import Distiller
from deit_tf.models import build_deit, create_model, heads, list_models
from deit_tf.serving import export_saved_model
from deit_tf.teachers import Teacher
from deit_tf.tflite import export_tflite

__all__ = [
    "Distiller",
    "ModelConfig",
    "Teacher",
    "build_deit",
    "create_model",
    "data",
    "export_saved_model",
    "export_tflite",
    "heads",
    "list_models",
    "load_reference",
    "to_reference",
]
