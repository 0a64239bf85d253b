"""Every setting of deit_tf, as frozen dataclasses; imports nothing of the package.

A config file names a model and a recipe, and says only what differs from them: a field that is
`None` keeps the named value. The numbers are the original's (facebookresearch/deit, main.py).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

# Bounds of what is obeyed, whoever asks for it: a config, a file from elsewhere, a request.
MAX_SIDE = 4096  # pixels of a side that a model takes, or a picture is resized to
MAX_PIXELS = 128_000_000  # of a picture before it is decoded; a phone's largest have 108 million
MAX_ASPECT = 100  # long side of a picture over its short side
MAX_SEED = 2**32 - 1  # of NumPy
MAX_MESSAGE = 64 * 2**20  # bytes of a request; gRPC's own limit of 4 MB is six float images
MAX_WIDTH = 16_384  # of a token; the widest ViT that was published has 6,144
MAX_DEPTH = 256  # blocks; the deepest that was published has 56
MAX_CLASSES = 1_000_000
MAX_MLP_RATIO = 64.0
MAX_PARAMETERS = 2_000_000_000  # of a DeiT; in float32 8 GB, and four times that in training

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNELS = 3  # of an image by default: red, green, blue
MAX_CHANNELS = 1024  # of a picture; hyperspectral ones have some hundreds

Loss = Literal["cross_entropy", "binary_cross_entropy"]
Size = int | tuple[int, int]
PerChannel = tuple[float, ...]  # one number per channel of an image


def height_width(size: Size, name: str = "image_size") -> tuple[int, int]:
    """`(height, width)` of a size given as one number or as a pair.

    Args:
        size: In pixels.
        name: The argument that it came as.
    Raises:
        ValueError: If it is neither, or not 1 to `MAX_SIDE`.
    """
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in pair):
        raise ValueError(
            f"`{name}` takes a whole number from 1 to {MAX_SIDE} or a pair (height, width) of "
            f"them. Received: {size!r}"
        )
    return pair


@dataclass(frozen=True)
class ModelConfig:
    """One DeiT in numbers (paper, table 1).

    Args:
        image_size: Height and width in pixels, or one number for a square.
        patch_size: Side of a patch in pixels; it divides both sides of the image.
        embed_dim: Width D of a token; a multiple of `num_heads`.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        mlp_ratio: Width of the hidden layer of the MLP, in units of `embed_dim`.
        num_classes: Classes C of each head.
        num_channels: Channels of an image: 3 for RGB, 1 for gray.
        distilled: Whether there is a distillation token with a head of its own.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        drop_rate: Dropout of a token before its head, as in DeiT III and timm.
        layer_norm_eps: 1e-6 as in the original and timm; Hugging Face uses 1e-12.
        init_values: Where LayerScale's factors start, one per channel of a residual branch, such as
            1e-6; null leaves the branches as they are (DeiT III).
        no_embed_class: Whether the patches alone get a position embedding, and not the tokens
            before them (DeiT III).
        uniform_drop_path: Whether every block drops at `drop_path_rate`, instead of at rates that
            rise from 0 (DeiT III; timm's rise there as well).
        remat: Whether training computes the activations of the blocks again instead of keeping
            them.
    """

    image_size: Size = 224
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    num_channels: int = CHANNELS
    distilled: bool = True
    drop_path_rate: float = 0.0
    drop_rate: float = 0.0
    layer_norm_eps: float = 1e-6
    init_values: float | None = None
    no_embed_class: bool = False
    uniform_drop_path: bool = False
    remat: bool = False


# Whole numbers from 1 to these.
_COUNTS: Mapping[str, int] = {
    "patch_size": MAX_SIDE,
    "embed_dim": MAX_WIDTH,
    "depth": MAX_DEPTH,
    "num_heads": MAX_WIDTH,
    "num_classes": MAX_CLASSES,
    "num_channels": MAX_CHANNELS,
}


def check_model(config: ModelConfig) -> None:
    """Check that the numbers of a model are within their bounds, whoever gave them.

    Raises:
        ValueError: If one is not; it names the field, what is allowed, and what came.
    """
    height_width(config.image_size)
    for name, most in _COUNTS.items():
        value = getattr(config, name)
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or not 1 <= value <= most:
            raise ValueError(
                f"`{name}` is a whole number from 1 to {most:,}. Received: {name}={value!r}"
            )

    ratio = config.mlp_ratio
    if not _is_number(ratio) or ratio > MAX_MLP_RATIO or ratio * config.embed_dim < 1:
        raise ValueError(
            f"`mlp_ratio` is a number above 0 and up to {MAX_MLP_RATIO:g}, which leaves the hidden "
            f"layer a unit. Received: mlp_ratio={ratio!r}"
        )
    for name in ("drop_path_rate", "drop_rate"):
        rate = getattr(config, name)
        if not _is_number(rate) or not 0 <= rate < 1:
            raise ValueError(f"`{name}` is a probability in [0, 1). Received: {name}={rate!r}")
    start = config.init_values
    if start is not None and not (_is_number(start) and start > 0):
        raise ValueError(
            f"`init_values` is a number above 0, or null. Received: init_values={start!r}"
        )
    check_epsilon(config.layer_norm_eps)


def check_epsilon(value: Any) -> None:
    """Check what a layer norm adds to a variance.

    Raises:
        ValueError: If it is no number above 0 and below 1.
    """
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError(
            f"`layer_norm_eps` is a number above 0 and below 1. Received: {str(value)[:100]}"
        )


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


@dataclass(frozen=True)
class StudentConfig:
    """The model to train: a name of `deit-tf models` and what differs from it.

    The numbers of classes and of channels come from the data.

    Args:
        name: A model name, as listed by `deit-tf models`.
        image_size: Height and width in pixels, or one number for a square.
        patch_size: Side of a patch in pixels.
        embed_dim: Width of a token.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        init_values: Where LayerScale's factors start, such as 1e-4 (DeiT III); null keeps the named
            model's.
        drop_path_rate: Stochastic depth of the last block, of DeiT III of each; the paper trains
            with 0.1.
        drop_rate: Dropout of a token before its head, for training.
        weights: What to start from, as of `create_model`: a run, such as a masked one, a `.keras`
            file, another library's file or folder, or `hf://...`; other heads, or of another
            class count, start fresh, and null all.
        init: How fresh weights are drawn: `timm`, as the original's; or `mimetic`, with attention
            like that of trained models, for small data from scratch (Trockman and Kolter 2023).
        trainable: What learns: `all`; `heads` alone; or `attention` and heads (Touvron et al. 2022,
            "Three things").
        remat: Whether training computes the activations of the blocks again instead of keeping
            them: less memory, more time, the same numbers.
    """

    name: str = "deit_tiny_distilled_patch16_224"
    image_size: Size | None = None
    patch_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    init_values: float | None = None
    drop_path_rate: float = 0.1
    drop_rate: float = 0.0
    weights: str | None = None
    init: Literal["timm", "mimetic"] = "timm"
    trainable: Literal["all", "heads", "attention"] = "all"
    remat: bool = False

    def overrides(self) -> dict[str, Any]:
        """What differs from the named model, as keyword arguments of `create_model`."""
        others = ("name", "init", "trainable")
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in others and value is not None
        }


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they reach the model.

    Args:
        source: `digits` (bundled with scikit-learn), `tfds:NAME` for a TensorFlow Datasets builder,
            or a folder of class folders, optionally below `train/` and `val/`, here or on an object
            store, `gs://BUCKET/FOLDER`; for `task` multilabel a `.csv` or `.jsonl` file of pictures
            and their labels, here.
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
class AugmentConfig:
    """A training augmentation by name, and what differs from it.

    Args:
        recipe: `deit` (the paper's), `3-augment` (DeiT III), `light` (fine-tuning on small data),
            `none`.
        crop: `random_resized`, a window of any size and aspect; or `simple`, one of the model's
            size out of the image at that size, mirrored 4 pixels beyond its border (DeiT III).
        scale: Share of the image's area that `random_resized` keeps, smallest and largest;
            1, 1 resizes the whole image, whatever `ratio`.
        ratio: Width / height of `random_resized`, smallest and largest.
        interpolation: Of the crop's resize: `bicubic`, `bilinear`, or `random`, either by chance.
        hflip: Probability of a horizontal flip.
        auto_augment: `rand-m9-mstd0.5-inc1` in timm's notation, `3-augment`, `keras-cv` (keras-cv's
            own RandAugment, for comparison) or `none`.
        color_jitter: Strength of brightness, contrast and saturation jitter; only where
            `auto_augment` is no RandAugment.
        random_erasing: Probability that a rectangle is erased.
        erase_mode: What takes its place: noise of each `pixel`; one color, `rand`; or the mean
            color, `const`.
        erase_count: Most rectangles of an image; from 1 up each number is as likely, and they share
            the area.
        mixup: Alpha of mixup's Beta distribution; 0 turns mixup off.
        cutmix: Alpha of CutMix's Beta distribution; 0 turns CutMix off.
        cutmix_minmax: Smallest and largest share of a side that CutMix's box has, such as 0.2, 0.8:
            the box then lies within the image, whatever alpha; null draws it by `cutmix`.
        mix_mode: What shares a draw of mixup and CutMix: the `batch`, which is its group; each
            `pair` of images that are mixed; or each image by itself, `elem`.
        mix_probability: Share of the groups that are mixed at all.
        mix_switch: Share of the mixed groups that get CutMix where both are on.
        mix_group: Images of a group, which share one draw of mixup and CutMix (see `mix_mode`) and
            pair among themselves: the largest divisor of `data.batch_size` up to this. The paper's
            64 were the share of one GPU; as many as the batch make one draw for all of it.
        label_smoothing: Share of each true label spread over all classes.
        repeats: Repeated augmentation: how often an image appears in a row, each time drawn anew;
            copies in a row go to different groups, while there are any.
    """

    recipe: Literal["deit", "3-augment", "light", "none"] = "deit"
    crop: Literal["random_resized", "simple"] | None = None
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] | None = None
    hflip: float | None = None
    auto_augment: str | None = None
    color_jitter: float | None = None
    random_erasing: float | None = None
    erase_mode: Literal["const", "rand", "pixel"] | None = None
    erase_count: int | None = None
    mixup: float | None = None
    cutmix: float | None = None
    cutmix_minmax: tuple[float, float] | None = None
    mix_mode: Literal["batch", "pair", "elem"] | None = None
    mix_probability: float | None = None
    mix_switch: float | None = None
    mix_group: int | None = None
    label_smoothing: float | None = None
    repeats: int | None = None

    def resolve(self) -> "AugmentConfig":
        """The same config with every `None` replaced by the recipe's value.

        Raises:
            ValueError: If a value lies out of its range.
        """
        given = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        resolved = replace(self, **{**RECIPES[self.recipe], **given})
        for name, (low, high) in _AUGMENT_RANGES.items():
            value = getattr(resolved, name)
            if not low <= value <= high:
                raise ValueError(f"`augment.{name}` lies in {low:g}..{high:g}. Received: {value}")

        for name, high in (("scale", 1.0), ("ratio", math.inf)):
            smallest, largest = getattr(resolved, name)
            if not 0 < smallest <= largest <= high:
                raise ValueError(
                    f"`augment.{name}` is the smallest and the largest, above 0 and up to "
                    f"{high:g}. Received: {(smallest, largest)}"
                )

        return resolved._with_minmax() if resolved.cutmix_minmax else resolved

    def _with_minmax(self) -> "AugmentConfig":
        """With CutMix on, whose alpha its own law of boxes does without, as timm has it."""
        smallest, largest = self.cutmix_minmax
        if not 0 <= smallest < largest <= 1:
            raise ValueError(
                "`augment.cutmix_minmax` is the smallest and the largest share of a side, the one "
                f"below the other, in 0..1. Received: {(smallest, largest)}"
            )
        return replace(self, cutmix=1.0)

    def for_several_labels(self) -> "AugmentConfig":
        """The same config for images of any number of labels, which are not smoothed.

        Raises:
            ValueError: If smoothing was asked for.
        """
        if self.label_smoothing:
            raise ValueError(
                "`augment.label_smoothing` spreads one label over all classes, and is 0 for `task` "
                f"multilabel. Received: {self.label_smoothing}"
            )
        return replace(self, label_smoothing=0.0)


_AUGMENT_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("hflip", "random_erasing", "mix_probability", "mix_switch", "label_smoothing"), (0, 1)
    ),
    **dict.fromkeys(("mixup", "cutmix", "color_jitter"), (0, math.inf)),
    "mix_group": (2, math.inf),
    "repeats": (1, math.inf),
    "erase_count": (1, 15),
}
_THIRDS = (3 / 4, 4 / 3)
_DEIT: dict[str, Any] = dict(
    crop="random_resized",
    scale=(0.08, 1.0),
    ratio=_THIRDS,
    interpolation="bicubic",
    hflip=0.5,
    auto_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.0,
    random_erasing=0.25,
    erase_mode="pixel",
    erase_count=1,
    mixup=0.8,
    cutmix=1.0,
    cutmix_minmax=None,
    mix_mode="batch",
    mix_probability=1.0,
    mix_switch=0.5,
    mix_group=64,
    label_smoothing=0.1,
    repeats=3,
)
_LIGHT = _DEIT | dict(
    scale=(0.5, 1.0), auto_augment="none", random_erasing=0.0, mixup=0.0, cutmix=0.0, repeats=1
)
# paper, table 9 (deit); DeiT III, section 3.2 and README_revenge.md (3-augment); the last two are
# ours.
RECIPES: dict[str, dict[str, Any]] = {
    "deit": _DEIT,
    "3-augment": _DEIT
    | dict(auto_augment="3-augment", color_jitter=0.3, random_erasing=0.0, label_smoothing=0.0),
    "light": _LIGHT,
    "none": _LIGHT | dict(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, label_smoothing=0.0),
}


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, under a warmed-up cosine (original main.py; paper, table 9).

    Args:
        optimizer: `adamw`; `lamb`, DeiT III's, with `clip_norm` 1 as there; or `sgd` with
            Nesterov's momentum, for some fine-tuning.
        lr: Learning rate for a batch of 512; it is scaled by batch_size / 512.
        scale_lr: Whether to scale it so; false takes `lr` as it is.
        warmup_lr: Learning rate of the first step; not scaled.
        min_lr: Learning rate at the end of the cosine; not scaled.
        warmup_epochs: Length of the linear warm-up, in epochs.
        weight_decay: Decay of kernels only: of `adamw` decoupled, applied as lr * weight_decay; of
            `lamb` part of the direction, of `sgd` of the gradient.
        momentum: Of `sgd`, per step.
        beta_1: Decay of the first moment, per step.
        beta_2: Decay of the second moment, per step.
        epsilon: Added to the root of the second moment.
        clip_norm: Largest global norm of a gradient; null clips nothing.
        layer_decay: Factor of the learning rate from each block to the one below, for fine-tuning,
            such as 0.75; 1 trains all layers alike.
        ema_decay: Decay of a moving average of the weights, per step, such as the original's
            0.99996; it is evaluated and saved beside them. Null keeps none.
        legacy_epoch_lr: Whether the learning rate changes once an epoch and lags one behind, as the
            original's.
    """

    optimizer: Literal["adamw", "lamb", "sgd"] = "adamw"
    lr: float = 5e-4
    scale_lr: bool = True
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    momentum: float = 0.9
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float | None = None
    layer_decay: float = 1.0
    ema_decay: float | None = None
    legacy_epoch_lr: bool = False


_OPTIM_LIMITS: dict[str, float] = {
    **dict.fromkeys(("lr", "warmup_lr", "min_lr", "warmup_epochs"), math.inf),
    **dict.fromkeys(("weight_decay", "epsilon"), math.inf),
    **dict.fromkeys(("momentum", "beta_1", "beta_2"), 1.0),
}


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run keeps of itself, so that it can go on after it was stopped.

    Args:
        every_steps: Steps between checkpoints within an epoch; each epoch ends with one in any
            case.
        keep: How many of the last checkpoints stay; the one that evaluated best stays too.
    """

    every_steps: int | None = None
    keep: int = 3


@dataclass(frozen=True)
class DistillConfig:
    """How the student learns from the teacher (paper, section 4).

    Args:
        kind: `hard` (the teacher's decision, the paper's), `soft` (its probabilities), `none`.
        teacher: A run of `deit-tf train-teacher` or a `.keras` file; a folder of timm or Hugging
            Face weights, or `hf://timm/regnety_160.deit_in1k`, the paper's; `NAME:FILE` for weights
            alone, such as `regnety_160:regnety_160-a5fe301d.pth`; `keras:NAME` for a network of
            keras.applications with its ImageNet weights; `keras-hub:PRESET` for a classifier of
            keras-hub, where that is installed.
        alpha: Weight of the teacher's part of the loss; the true labels get 1 - alpha.
        temperature: Softmax temperature of `soft`.
        normalization: `batchmean`, or `numel` as the original's soft loss, C times smaller.
        train_heads: With kind `none`, what learns the labels in a model with distillation token:
            the `mean` of the heads; `both`, each by itself; `cls`, the class head alone, and the
            other one is left out of the model.
        cosub: With kind `none` and `loss` binary_cross_entropy: whether the student sees each batch
            twice, as two submodels that drop path draws, which learn from each other as well
            (Touvron et al. 2022, "Co-training 2L submodels"); it takes twice the memory.
        labels: A folder of `deit-tf label`, the teacher's labels computed ahead on the same stream:
            training reads them and runs no teacher. `teacher` may then be null; otherwise it must
            be the one that made them.
        top_k: Logits that `deit-tf label` keeps of each answer, for `soft`; 0 keeps the decision
            alone. Training from labels refuses those made with another number, and with 0 takes
            what there is.
    """

    kind: Literal["hard", "soft", "none"] = "hard"
    teacher: str | None = None
    alpha: float = 0.5
    temperature: float = 1.0
    normalization: Literal["batchmean", "numel"] = "batchmean"
    train_heads: Literal["mean", "both", "cls"] = "mean"
    cosub: bool = False
    labels: str | None = None
    top_k: int = 0


@dataclass(frozen=True)
class TeacherConfig:
    """The convnet that `deit-tf train-teacher` trains on the same data.

    Its recipe is `epochs`, `augment` and `optim` in here; the settings of these names outside are
    the student's.

    Args:
        name: A RegNetY by timm's name, such as `regnety_160`, the paper's; a ResNet for small
            images, such as `resnet20`; or `keras:NAME` for a network of keras.applications.
        weights: What to start from, for fine-tuning: `imagenet` for a keras.applications network;
            for a RegNetY a file or folder of timm's or `hf://timm/regnety_160.deit_in1k`; null
            starts from scratch.
        image_size: Height and width in pixels, or one number for a square; the student's by
            default.
        epochs: Passes over the training images.
        augment: Training augmentation of the teacher.
        optim: Its optimizer.
    """

    name: str = "regnety_002"
    weights: str | None = None
    image_size: Size | None = None
    epochs: int = 100
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class MaskConfig:
    """What masked image modeling hides (SimMIM, section 3.2).

    Args:
        unit: Side of a hidden square in pixels; a multiple of the patch that divides the image.
        ratio: Share of the squares that is hidden.
    """

    unit: int = 32
    ratio: float = 0.6


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        task: `classify` learns labels, with or without a teacher; `multilabel` the same of images
            with any number of labels; `masked` pre-trains the trunk without labels, by masked image
            modeling.
        model: The student.
        data: Its images.
        augment: Their augmentation.
        optim: The optimizer.
        distill: The distillation.
        teacher: The teacher, for `deit-tf train-teacher`.
        mask: What `masked` hides.
        loss: How the student learns the true labels: `cross_entropy`, the paper's; or
            `binary_cross_entropy` of each class by itself (DeiT III). A teacher's part of the loss
            is that of `distill.kind` in any case.
        bce_target_thresh: Of `binary_cross_entropy`: a target above it becomes 1, any other 0. The
            original's is 0, which `augment.label_smoothing` would lift all targets above; null
            leaves them as mixing and smoothing made them.
        bce_sum: Of `binary_cross_entropy`: whether it is summed up over the classes instead of
            averaged.
        epochs: Passes over the training images; with repeated augmentation an epoch keeps its
            number of steps and shows fewer distinct images.
        seed: Seed of weights, order, augmentation and drop path.
        precision: Keras dtype policy of the student; with `mixed_float16` the loss is scaled, and a
            step that overflows is skipped.
        strategy: `none` trains on one device; `mirrored` on all GPUs of this machine;
            `multi_worker` on several machines, which TF_CONFIG names, and which all run the same
            command on the same `out`.
        micro_batches: Parts that each device works off one after another before an update, to save
            memory.
        xla: Whether the step is compiled by XLA; for `strategy: none` without `deterministic`.
        deterministic: Whether TensorFlow keeps to deterministic kernels, so that a run that was
            stopped and resumed ends with the same bits.
        log_steps: Steps between looks at the figures of a step: they stay on the device until then,
            at the latest until a checkpoint or the end of the epoch. A loss that is not finite is
            seen then.
        checkpoint: What is kept for going on after a stop.
        out: Run directory, here or on an object store.
    """

    task: Literal["classify", "multilabel", "masked"] = "classify"
    model: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    loss: Loss = "cross_entropy"
    bce_target_thresh: float | None = 0.0
    bce_sum: bool = False
    epochs: int = 300
    seed: int = 0
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    strategy: Literal["none", "mirrored", "multi_worker"] = "none"
    micro_batches: int = 1
    xla: bool = False
    deterministic: bool = True
    log_steps: int = 10
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    out: str = "runs/deit"


def check_config(config: TrainConfig) -> None:
    """Check that the settings make a run together, before anything is opened.

    Raises:
        ValueError: If they do not; it names the setting, what is allowed, and what came.
    """
    if config.epochs < 1:
        raise ValueError(f"`epochs` must be positive. Received: {config.epochs}")
    if not 0 <= config.seed <= MAX_SEED:
        raise ValueError(f"`seed` is from 0 to {MAX_SEED}. Received: {config.seed}")
    if config.log_steps < 1:
        raise ValueError(f"`log_steps` must be positive. Received: {config.log_steps}")
    _check_optim(config.optim)
    _check_checkpoint(config.checkpoint)
    check_data(config.data)
    _check_student(config)
    if config.loss == "binary_cross_entropy":
        _check_binary(config)
    _check_task(config)
    _check_distill(config)
    _check_xla(config)


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
    return is_list and all(_is_number(each) and each > 0 for each in weights)


def check_target_threshold(
    threshold: float | None, label_smoothing: float, classes: int = MAX_CLASSES
) -> None:
    """Check that a threshold tells the true labels of `binary_cross_entropy` from the others.

    Args:
        threshold: `bce_target_thresh`.
        label_smoothing: Share of each label that is spread over all classes.
        classes: How many there are; by default as many as there may be.
    Raises:
        ValueError: If the threshold is out of range, or what is spread lifts every target above it.
    """
    if threshold is None:
        return
    if not 0 <= threshold < 1:
        raise ValueError(f"`bce_target_thresh` lies in [0, 1), or is null. Received: {threshold}")
    if label_smoothing / classes > threshold:
        raise ValueError(
            "`label_smoothing` must be 0 where `bce_target_thresh` is lower than what it gives to "
            "each class, or every target would become 1. Set `label_smoothing` to 0 as the "
            "original does, or `bce_target_thresh` to null or higher. Received: "
            f"label_smoothing={label_smoothing}, bce_target_thresh={threshold}"
        )


def check_cosub(kind: str, loss: str, train_heads: str) -> None:
    """Check that a student may learn from itself.

    Args:
        kind: `distill.kind`.
        loss: How it learns the true labels.
        train_heads: `distill.train_heads`.
    Raises:
        ValueError: If it learns otherwise than by one binary cross-entropy of labels.
    """
    if kind != "none" or loss != "binary_cross_entropy" or train_heads == "both":
        raise ValueError(
            "`cosub` is for a student without a teacher, whose heads learn together by binary "
            "cross-entropy. Set `kind` to none, `loss` to binary_cross_entropy and `train_heads` "
            f"to mean or cls. Received: kind={kind!r}, loss={loss!r}, train_heads={train_heads!r}"
        )


def check_labeling(config: TrainConfig) -> None:
    """Check that the settings tell a teacher whose labels are to be made ahead.

    Raises:
        ValueError: If they do not.
    """
    distill = config.distill
    if config.task != "classify" or distill.kind == "none" or distill.teacher is None:
        raise ValueError(
            "Labels are a teacher's: `task` is classify, `distill.kind` hard or soft, and "
            f"`distill.teacher` set. Received: {config.task}, {distill.kind}, {distill.teacher}"
        )
    if distill.kind == "soft" and not distill.top_k:
        raise ValueError(
            "`distill.kind` soft needs `distill.top_k`, how many logits to keep, such as 10. "
            "Received: 0"
        )


def _check_task(config: TrainConfig) -> None:
    """Refuse what the other tasks alone have."""
    distill = config.distill
    if config.task == "masked" and config.data.class_weights is not None:
        raise ValueError(
            "`data.class_weights` is for tasks with labels, and `task` masked has none. Set it to "
            f"null. Received: {config.data.class_weights!r}"
        )
    if config.task != "multilabel" or distill.kind == "none":
        return

    if distill.labels:
        raise ValueError(
            "`distill.labels` holds one class of an image and not several: for `task` multilabel "
            f"set it to null, and `distill.teacher` to a run. Received: {distill.labels!r}"
        )
    if distill.normalization != "batchmean":
        raise ValueError(
            "`distill.normalization` is of a softmax: `task` multilabel takes the mean over the "
            f"classes. Leave it at batchmean. Received: {distill.normalization!r}"
        )


def _check_optim(config: OptimConfig) -> None:
    for name, high in _OPTIM_LIMITS.items():
        value = getattr(config, name)
        if not 0 <= value <= high or not math.isfinite(value):
            raise ValueError(f"`optim.{name}` lies in 0..{high:g}. Received: {value}")


def _check_distill(config: TrainConfig) -> None:
    distill = config.distill
    if distill.cosub:
        check_cosub(distill.kind, config.loss, distill.train_heads)
        if not config.model.drop_path_rate:
            raise ValueError(
                "`distill.cosub` needs `model.drop_path_rate` above 0, or the two submodels are "
                "one. Received: 0"
            )
    if distill.train_heads != "mean" and distill.kind != "none":
        raise ValueError(
            "`distill.train_heads` is for `distill.kind` none: with a teacher each head has a part "
            f"of its own. Received: train_heads={distill.train_heads!r}, kind={distill.kind!r}"
        )


def _check_xla(config: TrainConfig) -> None:
    if config.xla and config.strategy != "none":
        raise ValueError(
            "`xla` works on one device: XLA cannot compile a step that reaches for the variables "
            "of other replicas. Set `strategy` to none, or `xla` to false."
        )
    if config.xla and config.deterministic:
        raise ValueError(
            "`xla` promises no deterministic kernels. Set `deterministic` to false, or `xla` to "
            "false."
        )


def _check_binary(config: TrainConfig) -> None:
    if config.task != "classify":
        raise ValueError(
            "`loss` is how the one label of an image is learned: `task` masked has none, and "
            "multilabel a loss of its own. Set it to cross_entropy. Received: "
            f"{config.loss!r}, task={config.task!r}"
        )
    check_target_threshold(config.bce_target_thresh, config.augment.resolve().label_smoothing)


def _check_checkpoint(config: CheckpointConfig) -> None:
    if config.every_steps is not None and config.every_steps < 1:
        raise ValueError(
            f"`checkpoint.every_steps` is positive or null. Received: {config.every_steps}"
        )
    if config.keep < 1:
        raise ValueError(f"`checkpoint.keep` is at least 1. Received: {config.keep}")


def _check_student(config: TrainConfig) -> None:
    model = config.model
    if model.init != "timm" and model.weights is not None:
        raise ValueError(
            "`model.init` is for fresh weights: set it to timm, or `model.weights` to null. "
            f"Received: init={model.init!r}, weights={model.weights!r}"
        )
    if config.task == "masked" and model.drop_rate:
        raise ValueError(
            "`model.drop_rate` is for `task` classify: a masked model has no head. Set it to 0. "
            f"Received: {model.drop_rate}"
        )
    if config.task == "masked" and model.trainable != "all":
        raise ValueError(
            "`model.trainable` is for `task` classify: pre-training changes the whole trunk. Set "
            f"it to all. Received: {model.trainable!r}"
        )
