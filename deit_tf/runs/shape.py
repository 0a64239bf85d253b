"""A student that starts from a run or a `.keras` file has the shape of that model, where its config
does not say otherwise.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from deit_tf.config import DataConfig, ModelConfig, StudentConfig, TrainConfig, height_width
from deit_tf.models.variants import VARIANTS, find_variant
from deit_tf.runs.folder import run_config
from deit_tf.runs.load import is_keras
from deit_tf.weights.files import read_weights
from deit_tf.weights.names import describe
from deit_tf.zoo import SHAPE, check_same_shape, model_of

log = logging.getLogger(__name__)

SETTABLE = ("patch_size", "embed_dim", "depth", "num_heads", "init_values")  # in `model`
NAMED = ("mlp_ratio", "distilled", "no_embed_class")  # `model.name` alone decides
OF_IMAGES = ("mean", "std")  # in `data`; as many numbers as channels


def shaped_as_weights(config: TrainConfig) -> TrainConfig:
    """The config with the shape of the model in `model.weights`, a run or a `.keras` file.

    Where `model.name` is at its default it becomes that of the weights, with their image size, and
    so does the shape of the blocks wherever it is left out. From a run come the normalization and
    with it the channels too, where `data.mean` and `data.std` are at their defaults. Other weights,
    and a convnet's, leave the config as it is.

    Raises:
        ValueError: If what is given contradicts the weights; both values are named.
    """
    model, source = config.model, config.model.weights
    found = _read(source) if source and not model.application else None
    if found is None:
        return config
    own_name, theirs = found

    is_free = model.name == StudentConfig().name
    given = {name: getattr(model, name) for name in SETTABLE if getattr(model, name) is not None}
    if not is_free and model.name != own_name:
        named = find_variant(model.name)
        given = {name: getattr(named, name) for name in SHAPE} | given
    check_same_shape(theirs, given, source, None if is_free else model.name)

    name = own_name if is_free else model.name
    shaped = replace(config, model=_filled(model, name, theirs, with_size=is_free))
    begun = run_config(Path(source) if Path(source).is_dir() else Path(source).parent)
    shaped = shaped if begun is None else _filled_from(shaped, begun, ())
    if shaped != config:
        log.info("The student is shaped as %s: %s.", source, _changes(config, shaped))
    return shaped


def shaped_as_begun(config: TrainConfig, begun: TrainConfig) -> TrainConfig:
    """The config of a run that goes on, with the shape that its weights gave it when it began."""
    if config.model.weights is None or config.model.weights != begun.model.weights:
        return config
    return _filled_from(config, begun, ("name", "image_size", *SETTABLE))


def _read(source: str) -> tuple[str, ModelConfig] | None:
    """The name and the shape of a DeiT that a run or `.keras` file holds; None of anything else."""
    if not is_keras(source) or not Path(source).exists():
        return None
    state, facts = read_weights(source)
    if "embed_dim" not in describe(state):
        return None

    _, theirs = model_of(state, facts)
    alike = [name for name, variant in VARIANTS.items() if _are_alike(variant, theirs)]
    if not alike:
        values = ", ".join(f"{name}={getattr(theirs, name)}" for name in NAMED)
        raise ValueError(
            f"`model.weights` {source} is of a model of {values}, which none by name has: train it "
            f"in a script. The names: {', '.join(VARIANTS)}"
        )
    trunk = (facts.architecture or "").removesuffix("_masked")
    return trunk if trunk in alike else alike[0], theirs


def _are_alike(variant: ModelConfig, theirs: ModelConfig) -> bool:
    """Whether a model by name differs in nothing that a config could not set."""
    has_scale = [each.init_values is not None for each in (variant, theirs)]
    return has_scale[0] <= has_scale[1] and all(
        getattr(variant, name) == getattr(theirs, name) for name in NAMED
    )


def _filled(model: StudentConfig, name: str, theirs: ModelConfig, with_size: bool) -> StudentConfig:
    """The student by `name`, with what differs from it where that is left out."""
    named = find_variant(name)
    values = {each: getattr(theirs, each) for each in SETTABLE}
    if with_size and height_width(theirs.image_size) != height_width(named.image_size):
        height, width = height_width(theirs.image_size)
        values["image_size"] = height if height == width else (height, width)
    filled = {
        each: value
        for each, value in values.items()
        if getattr(model, each) is None and value != getattr(named, each)
    }
    return replace(model, name=name, **filled)


def _filled_from(config: TrainConfig, begun: TrainConfig, fields: tuple[str, ...]) -> TrainConfig:
    """The config with the normalization and fields of the student that `begun` has, where they are
    at their defaults.
    """
    student, default = StudentConfig(), DataConfig()
    model = {
        name: getattr(begun.model, name)
        for name in fields
        if getattr(config.model, name) == getattr(student, name)
    }
    is_given = any(getattr(config.data, name) != getattr(default, name) for name in OF_IMAGES)
    data = {} if is_given else {name: getattr(begun.data, name) for name in OF_IMAGES}
    return replace(config, model=replace(config.model, **model), data=replace(config.data, **data))


def _changes(config: TrainConfig, shaped: TrainConfig) -> str:
    """What `shaped` has otherwise than `config`, in words."""
    pairs: list[tuple[str, Any, Any]] = [
        (f"{group}.{name}", getattr(getattr(config, group), name), value)
        for group, names in (("model", ("name", "image_size", *SETTABLE)), ("data", OF_IMAGES))
        for name in names
        for value in [getattr(getattr(shaped, group), name)]
    ]
    return ", ".join(f"{name} {value}" for name, before, value in pairs if value != before)
