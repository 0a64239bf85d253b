"""What a model expects of its images, with no randomness: for evaluation and for serving.

Follows Pillow, as the original's evaluation does (facebookresearch/deit datasets.py,
build_transform).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from deit_tf.config import (
    CHANNELS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    DataConfig,
    PerChannel,
    Size,
    height_width,
)
from deit_tf.data import processor_formats
from deit_tf.data.decode import decode_channels
from deit_tf.data.pictures import pixels_of
from deit_tf.files import read_json


def resize(
    image: tf.Tensor, size: Sequence[int | tf.Tensor], interpolation: str = "bicubic"
) -> tf.Tensor:
    """Resize uint8 [H, W, 3] to uint8 [*size, 3] with antialias, within one gray level of Pillow.

    One axis after the other, halves rounded up in between, as Pillow does; both at once is off by
    up to 15 levels at sharp edges, where the bicubic kernel overshoots, and without antialias by up
    to 106.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    # Pillow 13 resizes the rows first, unless they grow while the columns shrink.
    columns_first = tf.logical_and(width < size[1], height > size[0])
    between = tf.where(columns_first, [size[0], width], [height, size[1]])
    for target in (between, size):
        resized = tf.image.resize(image, target, interpolation, antialias=True)
        image = tf.saturate_cast(tf.floor(resized + 0.5), tf.uint8)
    return image


def resize_short_side(image: tf.Tensor, size: int, interpolation: str = "bicubic") -> tf.Tensor:
    """Resize uint8 [H, W, 3] so that its short side has `size` pixels; the long side is rounded
    down.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    short = tf.minimum(height, width)
    return resize(image, [size * height // short, size * width // short], interpolation)


def center_crop(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Cut [*size, 3] out of the middle of [H, W, 3], rounding half to even as torchvision does."""
    excess = tf.shape(image)[:2] - size
    top, left = tf.unstack(tf.cast(tf.round(tf.cast(excess, tf.float32) / 2.0), tf.int32))
    cropped = image[top : top + size[0], left : left + size[1]]
    return tf.ensure_shape(cropped, [*size, image.shape[-1]])


def normalize(
    image: tf.Tensor, mean: PerChannel = IMAGENET_MEAN, std: PerChannel = IMAGENET_STD
) -> tf.Tensor:
    """Map uint8 [..., 3], 0..255, to float32 with `mean` at 0 and one `std` at 1 (both of pixels in
    0..1).
    """
    scale = [1.0 / (255.0 * s) for s in std]
    offset = [m / s for m, s in zip(mean, std, strict=True)]
    return tf.cast(image, tf.float32) * scale - offset


@dataclass(frozen=True)
class ImageProcessor:
    """What a model expects of its images; evaluation, prediction and the serving signature share
    it.

    Args:
        image_size: Height and width of the result in pixels, or one number for a square.
        crop_ratio: The image is first resized to image_size / crop_ratio (short side; both sides
            where the result is not square), then cropped in the center. 0.875 is the original's.
        mean: Mean of the pixels scaled to 0..1, per channel: three for RGB, one for gray images.
        std: Their standard deviation, per channel.
        resize_to: Instead of `crop_ratio`: the short side in pixels before the crop, or a pair
            (height, width) to which the image is squashed.
        interpolation: `bicubic` or `bilinear`, both with antialias.
        exif_orientation: Whether a JPEG file is turned upright, as its Exif tag says; published
            accuracies were measured without.
    Raises:
        ValueError: If a size is not positive, `crop_ratio` lies outside (0, 1], `resize_to` is
            smaller than the crop, or the interpolation is another.
    """

    image_size: Size = 224
    crop_ratio: float = 0.875
    mean: PerChannel = IMAGENET_MEAN
    std: PerChannel = IMAGENET_STD
    resize_to: Size | None = None
    interpolation: str = "bicubic"
    exif_orientation: bool = True

    def __post_init__(self):
        height_width(self.image_size)
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(
                f"`crop_ratio` lies in (0, 1]; 1 crops nothing. Received: {self.crop_ratio}"
            )
        if self.interpolation not in processor_formats.INTERPOLATIONS.values():
            raise ValueError(
                f"`interpolation` is bicubic or bilinear. Received: {self.interpolation!r}"
            )

        for name, values in (("mean", self.mean), ("std", self.std)):
            fits = 0 < len(values) == len(self.mean) and np.isfinite(values).all()
            if not fits or (name == "std" and min(values) <= 0):
                raise ValueError(
                    f"`{name}` takes one finite number per channel, as many as mean; of std "
                    f"positive ones. Received: {values}"
                )

        named = "image_size / crop_ratio" if self.resize_to is None else "resize_to"
        before_crop = height_width(self.before_crop, named)
        if any(before < after for before, after in zip(before_crop, self.size, strict=True)):
            raise ValueError(
                f"`resize_to` must not be smaller than the crop {self.size}. Received: "
                f"{self.resize_to}"
            )

    @classmethod
    def from_preprocessor_config(cls, source: str | Path | Mapping[str, Any]) -> "ImageProcessor":
        """Read preprocessor_config.json of Hugging Face, or the `pretrained_cfg` of timm's
        config.json.

        Args:
            source: The file, a folder that holds either, or its content as a dict.
        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it asks for what this class does not do; it names the entry.
        """
        if isinstance(source, Mapping):
            return cls(**processor_formats.fields_from(source))
        file = processor_formats.find(Path(source))
        config = read_json(file)
        try:
            return cls(**processor_formats.fields_from(config))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @classmethod
    def from_model_name(cls, name: str, protocol: str = "deit") -> "ImageProcessor":
        """What a published model expects, by its name; the image size is the number at its end.

        Args:
            name: Such as `deit_base_distilled_patch16_384`; Hugging Face's spelling as well.
            protocol: One of `PROTOCOLS`.
        Raises:
            ValueError: If the name does not end in `patch16_224` or the like.
        """
        size = re.search(r"patch\d+[-_](\d+)$", name)
        if not size:
            raise ValueError(
                "`name` must end in an image size, as deit_tiny_patch16_224 does. Received: "
                f"{name!r}"
            )
        return cls(int(size.group(1))).with_protocol(protocol)

    @classmethod
    def from_config(cls, data: DataConfig, image_size: Size) -> "ImageProcessor":
        """What a model of `image_size` that was trained under `data` expects."""
        return cls(
            image_size,
            data.crop_ratio,
            data.mean,
            data.std,
            exif_orientation=data.exif_orientation,
        )

    @classmethod
    def assumed(cls, image_size: Size, channels: int) -> "ImageProcessor":
        """What is taken where nothing tells what a model expects: the original's, or for other
        channels than RGB pixels from -1 to 1.
        """
        if channels == CHANNELS:
            return cls(image_size)
        return cls(image_size, mean=(0.5,) * channels, std=(0.5,) * channels)

    def with_protocol(self, protocol: str) -> "ImageProcessor":
        """The same normalization with the resize and crop of a published evaluation.

        Raises:
            ValueError: If `protocol` is none of `PROTOCOLS`.
        """
        if protocol not in PROTOCOLS:
            raise ValueError(f"`protocol` is one of {', '.join(PROTOCOLS)}. Received: {protocol!r}")
        ratio, squash = PROTOCOLS[protocol](max(self.size))
        before = tuple(int(side / ratio) for side in self.size)
        return replace(
            self,
            crop_ratio=ratio,
            resize_to=before if squash else None,
            exif_orientation=False,  # as their loaders leave it out
        )

    def to_preprocessor_config(self, layout: str = "huggingface") -> dict[str, Any]:
        """The opposite of `from_preprocessor_config`, for transformers, timm or keras-hub.

        Args:
            layout: `huggingface`; `timm` for the `pretrained_cfg` of its config.json; `keras-hub`
                for the image converter of a preset, which cuts no border off: `before_crop` is
                lost there.
        Raises:
            ValueError: If timm, which knows ratios alone, has none for `resize_to`.
        """
        described = (self.size, self.before_crop, self.interpolation, self.mean, self.std)
        if layout == "timm":
            return processor_formats.to_timm(*described, self.crop_ratio)
        if layout == "keras-hub":
            return processor_formats.to_keras_hub(*described)
        return processor_formats.to_huggingface(*described)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result in pixels."""
        return height_width(self.image_size)

    @property
    def num_channels(self) -> int:
        """Channels of the result, each with a mean: 3 is RGB, 1 gray."""
        return len(self.mean)

    @property
    def before_crop(self) -> Size:
        """The short side before the crop, or both sides to which the image is squashed."""
        height, width = self.size
        if self.resize_to is not None:
            return self.resize_to
        return (
            int(height / self.crop_ratio)
            if height == width
            else tuple(int(s / self.crop_ratio) for s in self.size)
        )

    def __str__(self) -> str:
        before = self.before_crop
        how = (
            f"short side {before}"
            if isinstance(before, int)
            else f"squashed to {before[0]} x {before[1]}"
        )
        channels = "" if self.num_channels == CHANNELS else f", {self.num_channels} channels"
        crop = f"center crop {self.size[0]} x {self.size[1]}"
        return f"{how}, {self.interpolation}, {crop}{channels}"

    def decode(self, encoded: tf.Tensor) -> tf.Tensor:
        """Turn the bytes of an image file, tf.string [], into uint8 [H, W, num_channels],
        upright.
        """
        return decode_channels(encoded, self.num_channels, self.exif_orientation)

    def crop(self, image: tf.Tensor) -> tf.Tensor:
        """Resize and center-crop uint8 [H, W, channels] to uint8 [*size, channels]."""
        before = self.before_crop
        step = resize_short_side if isinstance(before, int) else resize
        return center_crop(step(image, before, self.interpolation), self.size)

    def normalize(self, pixels: tf.Tensor) -> tf.Tensor:
        """Map uint8 pixels [..., 3] to the float32 values that the model takes."""
        return normalize(pixels, self.mean, self.std)

    def to_pixels(self, images: np.ndarray) -> np.ndarray:
        """The uint8 pixels [..., 3] nearest to images that the model takes: `normalize` undone."""
        pixels = (np.asarray(images) * np.asarray(self.std) + np.asarray(self.mean)) * 255
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

    def to_rgb(self, images: np.ndarray) -> np.ndarray:
        """The same to look at, uint8 [..., 3]: gray three times; of more than three channels the
        first three.
        """
        pixels = self.to_pixels(images)
        return pixels[..., np.minimum(np.arange(CHANNELS), self.num_channels - 1)]

    def __call__(self, encoded: tf.Tensor) -> tf.Tensor:
        """Turn the bytes of an image file, tf.string [], into float32 [*size, num_channels],
        normalized.
        """
        return normalize(self.crop(self.decode(encoded)), self.mean, self.std)

    def batch(self, images: Any) -> np.ndarray:
        """Turn images of any kind and size into a batch, outside of tf.data.

        Args:
            images: One or a sequence, mixed at will, of: a path; the bytes of a file; a PIL image;
                a uint8 array [H, W, 3], [H, W, 1] or [H, W], or of `num_channels`.
        Returns:
            float32 [n, *size, num_channels], normalized.
        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If an image cannot be read; it is named.
        """
        several = images if isinstance(images, (list, tuple)) else [images]
        pixels = [
            pixels_of(image, f"image {i}", self.exif_orientation, self.num_channels)
            for i, image in enumerate(several)
        ]
        if not pixels:
            raise ValueError("`images` must hold one image at least. Received none.")
        return np.stack(
            [normalize(self.crop(image), self.mean, self.std).numpy() for image in pixels]
        )


# How an evaluation with images of `size` pixels crops: (crop ratio, whether it squashes before).
PROTOCOLS: dict[str, Callable[[int], tuple[float, bool]]] = {
    # facebookresearch/deit datasets.py: 256 -> 224, 438 -> 384
    "deit": lambda size: (0.875, False),
    # timm/models/deit.py, crop_pct: 248 -> 224, 384 -> 384
    "timm": lambda size: (1.0 if size >= 384 else 0.9, False),
    # transformers, DeiTImageProcessor: 256 x 256 -> 224
    "huggingface": lambda size: (0.875, True),
}
