"""The recipe as keras-cv layers, for `keras_cv.layers.Augmenter` and `Dataset.map`.

Each wraps the function of its name in crop.py, rand_augment.py, erasing.py or augment.py, which the
training pipeline calls as well; MixUp and CutMix stand in mixing.py. Images are one or a batch,
alone or as `{"images": ..., "labels": ...}`, gray levels 0..255 of any dtype; what comes out is
float32, or uint8 with `dtype="uint8"`. How they draw: `Seeded`.
"""

import functools
from typing import get_args

import keras
import keras_cv
import tensorflow as tf

from deit_tf.config import IMAGENET_MEAN
from deit_tf.data.augment import color_jitter, random_flip, three_augment
from deit_tf.data.crop import Interpolation, check_simple_crop, random_resized_crop, simple_crop
from deit_tf.data.decode import CHANNELS
from deit_tf.data.erasing import EraseMode, random_erasing
from deit_tf.data.rand_augment import fill_of, parse_rand_augment, rand_augment
from deit_tf.data.seeds import Seeded, SeededBatch

_serializable = keras.saving.register_keras_serializable("deit_tf")


def _levels(image: tf.Tensor) -> tf.Tensor:
    """[H, W, 3] of any dtype as uint8."""
    return tf.saturate_cast(tf.round(image), tf.uint8)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` is a share of the images, 0..1. Received: {value}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` is one of {', '.join(allowed)}. Received: {value!r}")


class _ImageLayer(Seeded, keras_cv.layers.BaseImageAugmentationLayer):
    """One image at a time: a subclass has `augment_image`, whose transformation is its seed."""

    def __init__(self, seed: int = 0, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.seed = seed

    def _augment_by(self, image, seed):
        return tf.cast(self.augment_image(image, self._own_seed(seed)), self.compute_dtype)

    def _augment(self, inputs):
        return inputs | {"images": self._augment_by(inputs["images"], self._given_seed(inputs))}

    def _batch_augment(self, inputs):
        images, seeds = inputs["images"], self._given_seed(inputs)
        if seeds.shape.rank == 1:
            seeds = tf.random.split(seeds, tf.shape(images)[0])  # [B, 2]

        augmented = tf.map_fn(
            lambda one: self._augment_by(*one),
            (images, seeds),
            fn_output_signature=self.compute_image_signature(images),
        )
        return inputs | {"images": augmented}

    def get_config(self):
        """What the constructor takes."""
        return super().get_config() | {"seed": self.seed}


@_serializable
class RandomResizedCrop(_ImageLayer):
    """A random window, resized as Pillow does (timm's law).

    Args:
        target_size: Height and width of the result in pixels.
        crop_area_factor: Share of the image's area, smallest and largest.
        aspect_ratio_factor: Width / height of the window, smallest and largest.
        interpolation: `bicubic`, `bilinear`, or `random`, either by chance.
        seed: See `Seeded`.
    """

    def __init__(
        self,
        target_size: tuple[int, int],
        crop_area_factor: tuple[float, float] = (0.08, 1.0),
        aspect_ratio_factor: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bicubic",
        seed: int = 0,
        **kwargs,
    ):
        _check_choice("interpolation", interpolation, get_args(Interpolation))
        super().__init__(seed=seed, **kwargs)
        self.interpolation = interpolation
        self.target_size = tuple(target_size)
        self.crop_area_factor = tuple(crop_area_factor)
        self.aspect_ratio_factor = tuple(aspect_ratio_factor)

    def compute_image_signature(self, images):
        """What a single image becomes."""
        return tf.TensorSpec([*self.target_size, CHANNELS], self.compute_dtype)

    def augment_image(self, image, transformation, **kwargs):
        """Crop [H, W, 3] to [*target_size, 3] by a seed."""
        return random_resized_crop(
            _levels(image),
            self.target_size,
            transformation,
            self.crop_area_factor,
            self.aspect_ratio_factor,
            self.interpolation,
        )

    def get_config(self):
        """What the constructor takes."""
        names = ("target_size", "crop_area_factor", "aspect_ratio_factor", "interpolation")
        return super().get_config() | {name: getattr(self, name) for name in names}


@_serializable
class SimpleRandomCrop(_ImageLayer):
    """The image at the model's size, mirrored 4 pixels beyond its border, and a window of it (DeiT
    III).

    Args:
        target_size: Height and width of the result in pixels, above 4.
        seed: See `Seeded`.
    """

    def __init__(self, target_size: tuple[int, int], seed: int = 0, **kwargs):
        check_simple_crop(target_size)
        super().__init__(seed=seed, **kwargs)
        self.target_size = tuple(target_size)

    def compute_image_signature(self, images):
        """What a single image becomes."""
        return tf.TensorSpec([*self.target_size, CHANNELS], self.compute_dtype)

    def augment_image(self, image, transformation, **kwargs):
        """Crop [H, W, 3] to [*target_size, 3] by a seed."""
        return simple_crop(_levels(image), self.target_size, transformation)

    def get_config(self):
        """What the constructor takes."""
        return super().get_config() | {"target_size": self.target_size}


@_serializable
class RandomFlip(_ImageLayer):
    """A horizontal flip: keras-cv's law, drawn from the seed.

    Args:
        rate: Share of the images that are flipped.
        seed: See `Seeded`.
    """

    def __init__(self, rate: float = 0.5, seed: int = 0, **kwargs):
        _check_share("rate", rate)
        super().__init__(seed=seed, **kwargs)
        self.rate = rate

    def augment_image(self, image, transformation, **kwargs):
        """Mirror [H, W, 3] or leave it, by a seed."""
        return random_flip(image, transformation, self.rate)

    def get_config(self):
        """What the constructor takes."""
        return super().get_config() | {"rate": self.rate}


@_serializable
class RandAugment(_ImageLayer):
    """RandAugment under timm's law.

    Args:
        policy: In timm's notation; the default is the paper's.
        fill: Gray level per channel where geometry leaves nothing.
        seed: See `Seeded`.
    Raises:
        ValueError: If a part of the policy is unknown or out of range.
    """

    def __init__(
        self,
        policy: str = "rand-m9-mstd0.5-inc1",
        fill: tuple[int, int, int] = fill_of(IMAGENET_MEAN),
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(seed=seed, **kwargs)
        self.policy, self.fill = policy, tuple(fill)
        self._parsed = parse_rand_augment(policy)

    def augment_image(self, image, transformation, **kwargs):
        """Augment [H, W, 3] by a seed."""
        return rand_augment(_levels(image), transformation, self._parsed, self.fill)

    def get_config(self):
        """What the constructor takes."""
        return super().get_config() | {"policy": self.policy, "fill": self.fill}


@_serializable
class ThreeAugment(_ImageLayer):
    """Grayscale, solarize or blur, each a third of the time (DeiT III, section 3.2).

    Args:
        seed: See `Seeded`.
    """

    def augment_image(self, image, transformation, **kwargs):
        """Augment [H, W, 3] by a seed."""
        return three_augment(_levels(image), transformation)


@_serializable
class ColorJitter(_ImageLayer):
    """Brightness, contrast and saturation in random order (torchvision's law).

    Args:
        factor: Each is uniform in 1 - factor .. 1 + factor, not below 0; 0.3 is DeiT III's.
        seed: See `Seeded`.
    """

    def __init__(self, factor: float = 0.3, seed: int = 0, **kwargs):
        if factor < 0:
            raise ValueError(f"`factor` is not negative. Received: {factor}")
        super().__init__(seed=seed, **kwargs)
        self.factor = factor

    def augment_image(self, image, transformation, **kwargs):
        """Augment [H, W, 3] by a seed."""
        return color_jitter(_levels(image), transformation, self.factor)

    def get_config(self):
        """What the constructor takes."""
        return super().get_config() | {"factor": self.factor}


@_serializable
class RandomErasing(_ImageLayer):
    """Rectangles of noise or of a color (timm's law): after normalizing.

    Args:
        rate: Share of the images that lose 2 % to 33 % of their area.
        mode: What takes its place: standard normal noise of each `pixel`; one such color, `rand`;
            or 0, `const`.
        max_count: Most rectangles of an image, which share the area.
        seed: See `Seeded`.
    """

    def __init__(
        self,
        rate: float = 0.25,
        mode: EraseMode = "pixel",
        max_count: int = 1,
        seed: int = 0,
        **kwargs,
    ):
        _check_share("rate", rate)
        _check_choice("mode", mode, get_args(EraseMode))
        if max_count < 1:
            raise ValueError(f"`max_count` is at least 1. Received: {max_count}")
        super().__init__(seed=seed, **kwargs)
        self.rate, self.mode, self.max_count = rate, mode, max_count

    def augment_image(self, image, transformation, **kwargs):
        """Erase of [H, W, 3], or leave it, by a seed."""
        rule = (self.rate, self.mode, self.max_count)
        return random_erasing(tf.cast(image, tf.float32), transformation, *rule)

    def get_config(self):
        """What the constructor takes."""
        names = ("rate", "mode", "max_count")
        return super().get_config() | {name: getattr(self, name) for name in names}


@_serializable
class RandomChoice(SeededBatch, keras_cv.layers.RandomChoice):
    """keras-cv's choice of one layer for the whole batch, drawn from the seed.

    Args:
        layers: As likely each: `[MixUp(0.8), CutMix(1.0)]` is the paper's.
        seed: See `Seeded`.
    """

    def __init__(
        self,
        layers: list[keras.layers.Layer],
        seed: int = 0,
        *,
        batchwise: bool = True,
        **kwargs,
    ):
        if not batchwise:
            raise ValueError(
                "`batchwise` is True: one layer for the whole batch. Received: batchwise=False"
            )
        super().__init__(layers, seed=seed, batchwise=True, **kwargs)

    def _augment(self, inputs):
        seed = self._batch_seed(inputs)
        index = tf.random.stateless_uniform([], seed, maxval=len(self.layers), dtype=tf.int32)
        return tf.switch_case(index, [functools.partial(layer, inputs) for layer in self.layers])

    @classmethod
    def from_config(cls, config):
        """Make the layers anew."""
        layers = [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]
        return cls(**{**config, "layers": layers})
