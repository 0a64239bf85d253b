"""Every setting of deit_tf, as frozen dataclasses; imports nothing of the package.

A config file names a model and a recipe, and says only what differs from them: a field that is
`None` keeps the named value. The numbers are the original's (facebookresearch/deit, main.py).
"""

from deit_tf.config.augment import RECIPES, AugmentConfig
from deit_tf.config.bounds import (
    CHANNELS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_ASPECT,
    MAX_CHANNELS,
    MAX_CLASSES,
    MAX_DEPTH,
    MAX_MESSAGE,
    MAX_MLP_RATIO,
    MAX_PARAMETERS,
    MAX_PIXELS,
    MAX_SEED,
    MAX_SIDE,
    MAX_WIDTH,
    PerChannel,
    Size,
    height_width,
    is_number,
)
from deit_tf.config.checks import check_config, check_cosub, check_labeling, check_target_threshold
from deit_tf.config.data import DataConfig, MaskConfig, check_data
from deit_tf.config.model import (
    APPLICATION,
    ModelConfig,
    StudentConfig,
    check_epsilon,
    check_model,
)
from deit_tf.config.optim import OptimConfig, check_optim
from deit_tf.config.run import CheckpointConfig, DistillConfig, Loss, TeacherConfig, TrainConfig

__all__ = [
    "APPLICATION",
    "AugmentConfig",
    "CHANNELS",
    "CheckpointConfig",
    "DataConfig",
    "DistillConfig",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Loss",
    "MAX_ASPECT",
    "MAX_CHANNELS",
    "MAX_CLASSES",
    "MAX_DEPTH",
    "MAX_MESSAGE",
    "MAX_MLP_RATIO",
    "MAX_PARAMETERS",
    "MAX_PIXELS",
    "MAX_SEED",
    "MAX_SIDE",
    "MAX_WIDTH",
    "MaskConfig",
    "ModelConfig",
    "OptimConfig",
    "PerChannel",
    "RECIPES",
    "Size",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
    "check_config",
    "check_cosub",
    "check_data",
    "check_epsilon",
    "check_labeling",
    "check_model",
    "check_optim",
    "check_target_threshold",
    "height_width",
    "is_number",
]
