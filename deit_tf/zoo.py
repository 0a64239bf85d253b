"""The models by name, with fresh weights or those of a file, a folder or the hub."""

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import keras

from deit_tf.config import CHANNELS, ModelConfig, Size
from deit_tf.data import ImageProcessor
from deit_tf.models.applications import build_application
from deit_tf.models.deit import build_deit, class_head
from deit_tf.models.masked import build_masked_on
from deit_tf.models.regnet import REGNETY, build_regnety
from deit_tf.models.variants import TEST_MODEL, VARIANTS, check_name, find_variant
from deit_tf.weights.configs import CONFIG, Facts
from deit_tf.weights.downloads import explained_download
from deit_tf.weights.files import keras_file, load_keras, load_weights, read_weights
from deit_tf.weights.names import State, describe, has_class_head_alone

log = logging.getLogger(__name__)

# What weights settle; they are not adapted to another.
SHAPE = (
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "distilled",
    "no_embed_class",
)


def create_model(
    name: str | None = None,
    *,
    num_classes: int | None = None,
    image_size: Size | None = None,
    drop_path_rate: float = 0.0,
    weights: str | Path | None = None,
    heads: Literal["keep", "new"] | None = None,
    **overrides,
) -> keras.Model:
    """Build a DeiT by name, with fresh weights or with those of a file, a folder or the hub.

    Args:
        name: One of `list_models()`; None takes the model that the weights belong to.
        num_classes: Classes C of each head; by default those of the weights, else 1000. Another
            number than the weights have gives fresh heads.
        image_size: Height and width in pixels, or one number; by default that of the name, without
            one that of the weights. The position embedding of weights for another size is resized.
        drop_path_rate: Stochastic depth of the last block, for training; the paper takes 0.1.
        weights: What `read_weights` takes: a file or folder of timm, Hugging Face or the original,
            a `.keras` file or run, or `hf://facebook/deit-tiny-distilled-patch16-224`. The epsilon
            of their layer norms is kept.
        heads: `new` passes over the heads of the weights, `keep` insists on them; by default they
            are kept, but where `num_classes` is given and they are others. Weights with a
            distillation token and a class head alone, kept, give a model with that head alone.
        **overrides: Other fields of `ModelConfig`, such as `patch_size` or `layer_norm_eps`.
    Returns:
        A model from float32 [B, H, W, 3], normalized, to float32 [B, C] logits.
    Raises:
        ValueError: For an unknown name (with the nearest ones), an unknown field, or numbers that
            make no model; for weights that are damaged or do not fit, in their number of attention
            heads too; without a name, if there are no weights or they do not tell their model.
        FileNotFoundError: If there are no such weights, or the hub cannot be reached.
    """
    given = overrides | {"drop_path_rate": drop_path_rate}
    given |= {} if num_classes is None else {"num_classes": num_classes}
    given |= {} if image_size is None else {"image_size": image_size}
    if name is not None:
        config = _config(find_variant(name), given)
        if weights is None:
            return build_deit(config, name=name)
        return _with_weights(config, *read_weights(weights), given=given, name=name, heads=heads)

    if weights is None:
        raise ValueError("`name` is one of list_models(), or None beside `weights`. Received: None")
    state, facts = read_weights(weights)
    name, theirs = model_of(state, facts)
    check_same_shape(theirs, given, facts.source)
    config = _config(theirs, given)
    return _with_weights(config, state, facts, given=given, name=name, heads=heads)


def create_masked_model(
    name: str,
    *,
    weights: str | Path | None = None,
    heads: Literal["keep", "new"] | None = None,
    **overrides,
) -> keras.Model:
    """Build a masked image model by the name of its trunk.

    Args:
        name: One of `list_models()`.
        weights: As of `create_model`; the mask token and the decoder come along where the weights
            are a masked model's, and otherwise start fresh.
        heads: `new` passes over the mask token and decoder of the weights, `keep` insists on them.
        **overrides: As of `create_model`, such as `image_size` or `drop_path_rate`.
    Returns:
        What `build_masked` returns; `deit_tf.MaskedTrainer` trains it.
    Raises:
        ValueError: As of `create_model`; for `num_classes`, of which it has none.
        FileNotFoundError: As of `create_model`.
    """
    if "num_classes" in overrides:
        raise ValueError(
            "`num_classes` is for classifiers: a masked model has a decoder. Leave it out. "
            f"Received: num_classes={overrides['num_classes']}"
        )
    config = _config(find_variant(name), overrides | {"num_classes": 1})
    read = None if weights is None else read_weights(weights)
    if read:
        config = _as_weights_are(config, read[1], given=overrides, name=name)

    model = build_masked_on(build_deit(config, name=name), f"{name}_masked")
    if read:
        load_weights(model, *read, heads)
    return model


def create_regnety(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: Size = 224,
    num_channels: int = CHANNELS,
    weights: str | Path | None = None,
) -> keras.Model:
    """Build a RegNetY by timm's name, with fresh weights or those of a file; `regnety_160` is the
    paper's teacher.

    Args:
        name: One of `REGNETY`.
        num_classes: Classes C; by default those of the weights, else 1000. Another number than the
            weights have gives a fresh head.
        image_size: Height and width in pixels, or one number for a square.
        num_channels: Channels of an image; weights for RGB are adapted to others.
        weights: What `read_weights` takes, such as `hf://timm/regnety_160.deit_in1k`.
    Returns:
        A model from float32 [B, H, W, 3], normalized, to float32 [B, C] logits.
    Raises:
        ValueError: For an unknown name, with the nearest ones; for weights that do not fit.
        FileNotFoundError: If there are no such weights, or the hub cannot be reached.
    """
    check_name(name, REGNETY)
    if weights is not None:
        read = read_weights(weights)
        return _regnety_with_weights(name, *read, num_classes, image_size, num_channels)
    return build_regnety(
        *REGNETY[name],
        num_classes=num_classes or 1000,
        image_size=image_size,
        num_channels=num_channels,
        name=name,
    )


def create_application(
    name: str,
    *,
    num_classes: int,
    processor: ImageProcessor,
    weights: str | Path | None = None,
    setting: str = "weights",
) -> keras.Model:
    """Build a classifier on a network of keras.applications.

    Args:
        name: Such as `MobileNetV3Small`.
        num_classes: Classes C.
        processor: What makes its images: their size and normalization.
        weights: `imagenet`, which Keras downloads, or such a `.h5` file; a `.keras` file or run of
            such a classifier, whose head is taken where it has as many classes; None starts fresh.
        setting: What errors call `weights`.
    Returns:
        What `build_application` returns.
    Raises:
        ValueError: If there is no such network, it takes no images of that size, or the weights
            are another network's.
        FileNotFoundError: If there are no such weights, or they cannot be downloaded.
    """
    of_keras = weights in (None, "imagenet") or str(weights).endswith(".h5")
    file = None if of_keras else keras_file(weights)
    without = f"`{setting}` null starts from scratch and needs no download."
    with explained_download(f"`{setting}` {weights} of keras:{name}", without):
        model = build_application(
            name,
            num_classes=num_classes,
            image_size=processor.size,
            normalization=(processor.mean, processor.std),
            weights=weights if of_keras else None,
        )
    if file:
        _take_weights(model, load_keras(file), f"`{setting}` {weights}")
    return model


def restore_model(source: str | Path, name: str | None = None) -> tuple[keras.Model, Facts]:
    """Build the very model that weights belong to, as their shapes and the files beside them tell
    it.

    Args:
        source: What `read_weights` takes.
        name: Name of the model, of `list_models()` or a RegNetY, where nothing tells it.
    Returns:
        The model, and what the files tell about it.
    Raises:
        ValueError: If the model cannot be told, or the weights do not fit the name.
        FileNotFoundError: If there are no such weights, or the hub cannot be reached.
    """
    state, facts = read_weights(source)
    described = describe(state)
    named = name or facts.architecture
    if named in REGNETY:
        size = facts.image_size or 224
        return _regnety_with_weights(named, state, facts, None, size), facts
    if name:
        given = {"image_size": facts.image_size} if facts.image_size else {}
        config = _config(find_variant(name), given)
        return _with_weights(config, state, facts, given=given, name=name), facts
    if "num_classes" not in described:
        raise ValueError(_UNTOLD.format(facts.source))

    name, config = model_of(state, facts)
    return _with_weights(config, state, facts, given={}, name=name, heads="keep"), facts


_UNTOLD = (
    "{}: its weights do not tell a classifier. They have no head, or the number of attention heads "
    f"is unknown. Pass the name of the model ({', '.join(VARIANTS)}), or, for another shape, put a "
    f"{CONFIG} with `num_attention_heads` beside the weights."
)


def model_of(state: State, facts: Facts) -> tuple[str, ModelConfig]:
    """The DeiT that weights belong to, with its published name where it has one.

    Raises:
        ValueError: If it cannot be told.
    """
    described = describe(state)
    heads = facts.num_heads or _published_heads(described)
    if "embed_dim" not in described or not heads:
        raise ValueError(_UNTOLD.format(facts.source))

    size = {"image_size": facts.image_size} if facts.image_size else {}
    config = ModelConfig(**described | size, num_heads=heads)
    published = next(
        (name for name, variant in VARIANTS.items() if _same_shape(variant, config)), "deit"
    )
    return published, config


def check_same_shape(
    theirs: ModelConfig, given: Mapping[str, Any], source: str, name: str | None = None
) -> None:
    """Check that what is asked for does not contradict the model that weights belong to.

    Args:
        theirs: That model.
        given: Fields of ModelConfig that are asked for.
        source: Where the weights lie.
        name: Of the model that is asked for.
    Raises:
        ValueError: If it does; both values of each field are named.
    """
    differing = {
        field: given[field]
        for field in SHAPE
        if field in given and given[field] != getattr(theirs, field)
    }
    if differing:
        had = ", ".join(f"{field}={getattr(theirs, field)}" for field in differing)
        asked = ", ".join(f"{field}={value}" for field, value in differing.items())
        of_name = f" of {name}" if name else ""
        raise ValueError(
            f"The weights in {source} are those of a model of {had}. Leave out the name and the "
            f"shape of the model to take theirs, or take other weights. Received: {asked}{of_name}"
        )


def _config(shape: ModelConfig, given: Mapping[str, Any]) -> ModelConfig:
    """The numbers of a model, with those given in place of its own."""
    known = [field.name for field in fields(ModelConfig)]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"Unknown argument {unknown[0]!r} of create_model. Allowed: {', '.join(known)}"
        )
    return replace(shape, **given)


def _as_weights_are(
    config: ModelConfig, facts: Facts, *, given: Mapping[str, Any], name: str
) -> ModelConfig:
    """The config with the epsilon of weights where none is given; refuses other heads."""
    if facts.num_heads not in (None, config.num_heads):
        # the shapes may fit all the same, and attention would be scrambled in silence
        raise ValueError(
            f"`num_heads` must be {facts.num_heads}, that of the weights in {facts.source}; pass "
            f"it, or the name of their model. Received: num_heads={config.num_heads} for {name!r}"
        )
    if "layer_norm_eps" in given or not facts.layer_norm_eps:
        return config
    return replace(config, layer_norm_eps=facts.layer_norm_eps)


def _with_weights(
    config: ModelConfig,
    state: State,
    facts: Facts,
    *,
    given: Mapping[str, Any],
    name: str,
    heads: Literal["keep", "new"] | None = None,
) -> keras.Model:
    """A DeiT with weights that were read; its classes are theirs where none are given."""
    config = _as_weights_are(config, facts, given=given, name=name)
    described = describe(state)
    classes = described.get("num_classes")
    if "num_channels" not in given:
        config = replace(config, num_channels=described.get("num_channels", config.num_channels))
    if classes and "num_classes" not in given:
        config = replace(config, num_classes=classes)
        heads = heads or "keep"  # whoever asks for no other classes wants these heads
    model = build_deit(config, name=name)
    if heads == "keep":
        model = _as_heads_are(model, state)
    load_weights(model, state, facts, heads)
    return model


def _as_heads_are(model: keras.Model, state: State) -> keras.Model:
    """The model with the class head alone where its weights have no other beside a distillation
    token; the mean of it and a head drawn at random would be nobody's answer.
    """
    return class_head(model) if has_class_head_alone(state) else model


def _regnety_with_weights(
    name: str,
    state: State,
    facts: Facts,
    num_classes: int | None,
    image_size: Size,
    num_channels: int = CHANNELS,
) -> keras.Model:
    """A RegNetY with weights that were read; its classes are theirs where none are given."""
    classes = num_classes or describe(state).get("num_classes", 1000)
    model = build_regnety(
        *REGNETY[name],
        num_classes=classes,
        image_size=image_size,
        num_channels=num_channels,
        name=name,
    )
    load_weights(model, state, facts)
    return model


def _take_weights(model: keras.Model, other: keras.Model, source: str) -> None:
    """Put the weights of another model of the same layers into `model`, without a head of other
    classes.
    """
    # By their order: Keras numbers the names of layers by what else a process has built.
    pairs = [*zip(model.weights, other.weights, strict=False)]
    alike = [ours.shape == theirs.shape for ours, theirs in pairs]
    trunk = len(model.weights) - len(model.get_layer("head").weights)
    same_count = len(model.weights) == len(other.weights)
    if not same_count or not all(alike[:trunk]):
        raise ValueError(
            f"{source} must hold a keras:{model.name}, as `model.name` or `teacher.name` makes it. "
            f"Received: {other.name} with {len(other.weights)} weights of other shapes"
        )

    if not all(alike):
        log.info("%s is for other classes: its head is new.", source)
        pairs = pairs[:trunk]
    for ours, theirs in pairs:
        ours.assign(theirs)


def _published_heads(described: dict[str, int | float | bool]) -> int:
    """Attention heads of the published models of a shape, at any image size; 0 where the shape is
    none of theirs.
    """
    shape = ("patch_size", "embed_dim", "depth", "mlp_ratio")
    alike = (
        variant.num_heads
        for name, variant in VARIANTS.items()
        if name != TEST_MODEL and all(described.get(f) == getattr(variant, f) for f in shape)
    )
    return next(alike, 0)


def _same_shape(variant: ModelConfig, config: ModelConfig) -> bool:
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    square = config.image_size in (side, (side, side))
    untold = {
        name: getattr(variant, name)
        for name in ("num_classes", "num_channels", "uniform_drop_path")
    }
    return square and variant == replace(config, image_size=side, **untold)
