"""What is refused before anything is opened: settings that do not fit each other."""

from dataclasses import asdict, replace

from deit_tf.config.bounds import CHANNELS, MAX_CLASSES, MAX_SEED
from deit_tf.config.data import check_data
from deit_tf.config.model import StudentConfig
from deit_tf.config.optim import check_optim
from deit_tf.config.run import CheckpointConfig, TrainConfig

OF_ANY_NETWORK = ("name", "image_size", "weights", "trainable")


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
    check_optim(config.optim)
    _check_checkpoint(config.checkpoint)
    check_data(config.data)
    _check_student(config)
    if config.loss == "binary_cross_entropy":
        _check_binary(config)
    _check_task(config)
    _check_distill(config)
    _check_xla(config)


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
    for name in ("keep", "keep_best"):
        if getattr(config, name) < 1:
            raise ValueError(
                f"`checkpoint.{name}` is at least 1. Received: {getattr(config, name)}"
            )
    if config.patience is not None and config.patience < 1:
        raise ValueError(
            f"`checkpoint.patience` is at least 1 epoch, or null. Received: {config.patience}"
        )


def _check_student(config: TrainConfig) -> None:
    model = config.model
    if model.application:
        _check_application(config)
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


def _check_application(config: TrainConfig) -> None:
    """Refuse for a network of keras.applications what a DeiT alone has."""
    model, distill = config.model, config.distill
    unset = StudentConfig(**{name: getattr(model, name) for name in OF_ANY_NETWORK})
    allowed = [asdict(unset), asdict(replace(unset, drop_path_rate=0.0))]
    given = [
        f"model.{name}={value!r}"
        for name, value in asdict(model).items()
        if value not in [each[name] for each in allowed]
    ]
    given += [f"model.trainable={model.trainable!r}"] * (model.trainable == "attention")
    given += [f"distill.train_heads={distill.train_heads!r}"] * (distill.train_heads != "mean")
    given += ["distill.cosub=True"] * distill.cosub
    given += [f"optim.layer_decay={config.optim.layer_decay}"] * (config.optim.layer_decay != 1)
    given += [f"task={config.task!r}"] * (config.task == "masked")
    if given:
        raise ValueError(
            f"`model.name` {model.name} is a convnet with one head, and what is set for a DeiT "
            f"would be passed over. Leave it out, or at its default. Received: {', '.join(given)}"
        )

    channels = len(config.data.mean)
    if channels != CHANNELS:
        raise ValueError(
            f"`model.name` {model.name} takes RGB images: give `data.mean` and `data.std` three "
            f"numbers. Received: {channels}"
        )
