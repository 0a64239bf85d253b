"""DeiT, the data-efficient image transformer, for TensorFlow and Keras 3 (Touvron et al. 2021)."""

from deit_tf import data, optim
from deit_tf.checkpoint import load_reference, load_trunk, to_reference
from deit_tf.config import ModelConfig
from deit_tf.data import ImageProcessor
from deit_tf.distill import Distiller
from deit_tf.models import (
    attention_maps,
    build_deit,
    build_masked,
    create_masked_model,
    create_model,
    features,
    heads,
    list_models,
)
from deit_tf.serving import export_saved_model
from deit_tf.teachers import Teacher
from deit_tf.tflite import export_tflite

__all__ = [
    "Distiller",
    "ImageProcessor",
    "ModelConfig",
    "Teacher",
    "attention_maps",
    "build_deit",
    "build_masked",
    "create_masked_model",
    "create_model",
    "data",
    "export_saved_model",
    "export_tflite",
    "features",
    "heads",
    "list_models",
    "load_reference",
    "load_trunk",
    "optim",
    "to_reference",
]
