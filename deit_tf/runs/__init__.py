"""A run: its folder on disk, and the trained model in it with what is needed to feed it."""

from deit_tf.runs.folder import RunFolder, read_config, run_config, write_config
from deit_tf.runs.load import Run, class_order, is_keras, load_model, load_run
from deit_tf.runs.mirror import local_copy, working_folder
from deit_tf.runs.model_files import ModelFiles
from deit_tf.runs.shape import shaped_as_begun, shaped_as_weights

__all__ = [
    "ModelFiles",
    "Run",
    "RunFolder",
    "class_order",
    "is_keras",
    "load_model",
    "load_run",
    "local_copy",
    "read_config",
    "run_config",
    "shaped_as_begun",
    "shaped_as_weights",
    "working_folder",
    "write_config",
]
