"""A training run: what is trained on what, how long, and where to; and its teacher."""

from dataclasses import dataclass, field
from typing import Literal

from deit_tf.config.augment import AugmentConfig
from deit_tf.config.bounds import Size
from deit_tf.config.data import DataConfig, MaskConfig
from deit_tf.config.model import StudentConfig
from deit_tf.config.optim import OptimConfig

Loss = Literal["cross_entropy", "binary_cross_entropy"]


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run keeps of itself, so that it can go on after it was stopped.

    Args:
        every_steps: Steps between checkpoints within an epoch; each epoch ends with one in any
            case.
        keep: How many of the last checkpoints stay; the one that evaluated best stays too.
        monitor: The figure of the evaluation that decides which epoch is the best, as in
            metrics.jsonl without `val_`: `loss`, `accuracy`, `accuracy_dist`, `teacher_agreement`,
            `f1_samples`, or of the moving average `ema_accuracy`. Of a loss less is better, of all
            others more. Null takes the accuracy, or the loss where there is none.
        patience: Epochs in a row without a better one after which the run ends early; null trains
            all `epochs`.
        keep_best: How many of the best epochs keep their models; of several each has a file of its
            own, such as `student_epoch0012.keras`, besides `student_best.keras`.
    """

    every_steps: int | None = None
    keep: int = 3
    monitor: str | None = None
    patience: int | None = None
    keep_best: int = 1


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
