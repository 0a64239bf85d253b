"""The images, and what of them masked image modeling hides."""

from dataclasses import dataclass
from typing import Any, Literal

from deit_tf.config.bounds import IMAGENET_MEAN, IMAGENET_STD, PerChannel, is_number


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they reach the model.

    Args:
        source: `digits` (bundled with scikit-learn), `tfds:NAME` for TensorFlow Datasets, or a
            folder of class folders, optionally below `train/` and `val/`, here or on an object
            store, `gs://BUCKET/FOLDER`; for `task` multilabel a `.csv` or `.jsonl` file of labels.
        train_split: TFDS only: the split to train on, or several joined by `+`.
        eval_split: TFDS only: the split to evaluate on; by default `validation`, else `test`.
        data_dir: TFDS only: where the prepared data set lies.
        label_field: TFDS only: the feature that is the label, or a sequence of them, such as
            objects/label; by default `label`, else `labels`.
        shuffle_mb: TFDS only, of builders written as TFRecord: memory in MB of the images that are
            shuffled at a time, 50,000 at most; null sets no bound in bytes, as in runs of before.
        holdout: Share of each class kept for evaluation where a folder has no `val/`.
        verify: Decode every file of a folder once and leave out, with a report, what is no image.
        class_weights: What an image of each class counts for in the loss of training: `balanced`,
            so that all classes count alike, or a list of numbers in the order of the class names;
            null counts images. For `task` multilabel, factors of the part of the loss that holds
            where a class is there; balanced then means images without it over images with it.
        batch_size: Images per step, over all devices.
        crop_ratio: Evaluation resizes the short side to size / crop_ratio before the center crop.
        mean: Mean of the pixels scaled to 0..1, per channel; as many channels has the model, such
            as 1 for gray pictures.
        std: Their standard deviation, per channel.
        exif_orientation: Whether photographs are turned as their Exif tag says.
        num_parallel_calls: Images prepared at a time, at least 1; -1 lets tf.data choose.
    """

    source: str = "digits"
    train_split: str = "train"
    eval_split: str | None = None
    data_dir: str | None = None
    label_field: str | None = None
    shuffle_mb: int | None = 2048
    holdout: float = 0.1
    verify: bool = True
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    batch_size: int = 64
    crop_ratio: float = 0.875
    mean: PerChannel = IMAGENET_MEAN
    std: PerChannel = IMAGENET_STD
    exif_orientation: bool = True
    num_parallel_calls: int = -1


@dataclass(frozen=True)
class MaskConfig:
    """What masked image modeling hides (SimMIM, section 3.2).

    Args:
        unit: Side of a hidden square in pixels; a multiple of the patch that divides the image.
        ratio: Share of the squares that is hidden.
    """

    unit: int = 32
    ratio: float = 0.6


def check_data(config: DataConfig) -> None:
    """Check the settings of the data, whatever the source.

    Raises:
        ValueError: If one makes no sense.
    """
    calls = config.num_parallel_calls
    if calls != -1 and calls < 1:
        raise ValueError(
            f"`data.num_parallel_calls` is from 1, or -1 to let tf.data choose. Received: {calls}"
        )
    if config.shuffle_mb is not None and config.shuffle_mb < 1:
        raise ValueError(f"`data.shuffle_mb` is from 1, or null. Received: {config.shuffle_mb}")
    if not 0 < config.holdout < 1:
        raise ValueError(f"`data.holdout` is a share between 0 and 1. Received: {config.holdout}")
    weights = config.class_weights
    if weights not in (None, "balanced") and not _are_weights(weights):
        raise ValueError(
            "`data.class_weights` is balanced, a list of numbers above 0, or null. Received: "
            f"{weights!r}"
        )


def _are_weights(weights: Any) -> bool:
    is_list = isinstance(weights, tuple | list) and len(weights) > 0
    return is_list and all(is_number(each) and each > 0 for each in weights)
