"""How Hugging Face, timm and keras-hub write down what a model expects of its images: plain dicts,
no pixels.

The files may come from anyone: every entry is checked for its type and range.

Formats: transformers, image_processing_deit.py and image_processing_bit.py; timm/data/config.py;
keras_hub/src/layers/preprocessing/image_converter.py.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deit_tf.config import (
    CHANNELS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_CHANNELS,
    MAX_SIDE,
    PerChannel,
    Size,
)

INTERPOLATIONS = {3: "bicubic", 2: "bilinear"}  # by Pillow's number
FILES = ("preprocessor_config.json", "config.json")
_CONVERTER = "crop_to_aspect_ratio"  # of keras-hub's ImageConverter alone


def find(path: Path) -> Path:
    """The file itself, or that of a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    file = next((path / name for name in FILES if (path / name).is_file()), path)
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no {FILES[0]} and no folder with one.")
    return file


def fields_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an ImageProcessor from either library's config.

    Raises:
        ValueError: If it asks for what ImageProcessor does not do; it names the entry.
    """
    config = config.get("pretrained_cfg", config)
    if not isinstance(config, Mapping):
        raise _wrong("pretrained_cfg", "an object", config)
    if "input_size" in config:
        return _from_timm(config)
    return _from_keras_hub(config) if _CONVERTER in config else _from_huggingface(config)


def to_huggingface(
    size: tuple[int, int], before: Size, interpolation: str, mean: PerChannel, std: PerChannel
) -> dict[str, Any]:
    """preprocessor_config.json for a crop of `size` out of an image resized to `before`."""
    # DeiTImageProcessor squashes; the short side is what BitImageProcessor resizes, with the same
    # steps after it.
    squash = not isinstance(before, int)
    return {
        "image_processor_type": "DeiTImageProcessor" if squash else "BitImageProcessor",
        "do_convert_rgb": len(mean) == CHANNELS,
        "do_resize": True,
        "size": _pair(before) if squash else {"shortest_edge": before},
        "resample": next(
            number for number, name in INTERPOLATIONS.items() if name == interpolation
        ),
        "do_center_crop": True,
        "crop_size": _pair(size),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def to_timm(
    size: tuple[int, int],
    before: Size,
    interpolation: str,
    mean: PerChannel,
    std: PerChannel,
    ratio: float,
) -> dict[str, Any]:
    """The same as `pretrained_cfg` of timm, which rounds size / ratio down; `ratio` where it fits,
    else another.
    """
    sides = list(zip(size, (before, before) if isinstance(before, int) else before, strict=True))
    candidates = [ratio, *(s / b for s, b in sides), *(s / (b + 0.5) for s, b in sides)]
    ratio = next((r for r in candidates if all(int(s / r) == b for s, b in sides)), None)
    if ratio is None or (isinstance(before, int) and size[0] != size[1]):
        raise ValueError(
            f"timm has no crop ratio that makes {size} of {before}. Use the layout of Hugging Face."
        )

    return {
        "input_size": [len(mean), *size],
        "interpolation": interpolation,
        "crop_pct": ratio,
        "crop_mode": "center" if isinstance(before, int) else "squash",
        "mean": list(mean),
        "std": list(std),
    }


def to_keras_hub(
    size: tuple[int, int], before: Size, interpolation: str, mean: PerChannel, std: PerChannel
) -> dict[str, Any]:
    """The same as the image converter of a preset, which maps pixels 0..255 to scale * pixel +
    offset, and resizes to `size` at once, without a border to cut off.
    """
    return {
        "image_size": list(size),
        "scale": [1 / (255 * s) for s in std],
        "offset": [-m / s for m, s in zip(mean, std, strict=True)],
        "interpolation": interpolation,
        "antialias": True,
        _CONVERTER: isinstance(before, int),
        "pad_to_aspect_ratio": False,
    }


def _pair(size: tuple[int, int]) -> dict[str, int]:
    return dict(zip(("height", "width"), size, strict=True))


def _from_huggingface(config: Mapping[str, Any]) -> dict[str, Any]:
    _only(config, "do_resize", True)
    _only(config, "do_rescale", True)
    factor = _number(config, "rescale_factor", 1 / 255)
    if abs(factor - 1 / 255) > 1e-6:
        raise _wrong("rescale_factor", "1 / 255", factor)
    resample = config.get("resample", 3)
    if not isinstance(resample, int) or resample not in INTERPOLATIONS:
        raise _wrong("resample", "3 (bicubic) or 2 (bilinear)", resample)

    before = _sides(config.get("size", 256), "size")
    crops = config.get("do_center_crop", "crop_size" in config)
    if not crops and isinstance(before, int):
        raise ValueError(
            "Without `do_center_crop`, `size` has a height and a width. Received: "
            f"size={config.get('size')}"
        )

    crop = _sides(config.get("crop_size", 224), "crop_size") if crops else before
    normalizes = config.get("do_normalize", True)
    return {
        "image_size": (crop, crop) if isinstance(crop, int) else crop,
        "resize_to": before,
        "mean": _per_channel(config, "image_mean", IMAGENET_MEAN) if normalizes else (0.0,) * 3,
        "std": _per_channel(config, "image_std", IMAGENET_STD) if normalizes else (1.0,) * 3,
        "interpolation": INTERPOLATIONS[resample],
    }


def _from_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    size = config["input_size"]
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(map(_is_side, size)):
        raise _wrong("input_size", f"three numbers, sides up to {MAX_SIDE}", size)
    size, ratio = tuple(size[1:]), _number(config, "crop_pct", 0.875)
    if not 0 < ratio <= 1:
        raise _wrong("crop_pct", "a share above 0, up to 1", ratio)

    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash") or (mode == "center" and size[0] != size[1]):
        raise ValueError(
            f"`crop_mode` of a timm config is squash, or center for a square. Received: {mode} "
            f"for {size}"
        )

    interpolation = config.get("interpolation", "bicubic")
    if interpolation not in INTERPOLATIONS.values():
        raise _wrong("interpolation", "bicubic or bilinear", interpolation)
    return {
        "image_size": size,
        "crop_ratio": ratio,
        "resize_to": tuple(int(side / ratio) for side in size) if mode == "squash" else None,
        "mean": _per_channel(config, "mean", IMAGENET_MEAN),
        "std": _per_channel(config, "std", IMAGENET_STD),
        "interpolation": interpolation,
    }


def _from_keras_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    _only(config, "pad_to_aspect_ratio", False)
    size = _sides(config.get("image_size"), "image_size")
    size = (size, size) if isinstance(size, int) else size
    interpolation = config.get("interpolation", "bilinear")
    if interpolation not in INTERPOLATIONS.values():
        raise _wrong("interpolation", "bicubic or bilinear", interpolation)

    scale, offset = (
        _per_channel({name: _repeated(config.get(name, default))}, name, ())
        for name, default in (("scale", 1.0), ("offset", 0.0))
    )
    if not all(s > 0 for s in scale):
        raise _wrong("scale", "three numbers above 0", scale)
    std = tuple(1 / (255 * s) for s in scale)
    crops = config[_CONVERTER]
    return {
        "image_size": size,
        # Of a square the largest is taken; another shape is taken out of the longer side.
        "resize_to": max(size) if crops else size,
        "mean": tuple(-o * s for o, s in zip(offset, std, strict=True)),
        "std": std,
        "interpolation": interpolation,
    }


def _repeated(value: Any) -> Any:
    """One number for every channel as three."""
    return (value,) * 3 if isinstance(value, int | float) else value


def _sides(value: Any, name: str) -> Size:
    """A size as Hugging Face writes it: the short side as a number; height and width as a pair."""
    if isinstance(value, Mapping):
        value = value.get("shortest_edge", (value.get("height"), value.get("width")))
    elif isinstance(value, int):
        value = (value, value)  # of the old feature extractors, which squash to a square
    numbers = [value] if isinstance(value, int) else value
    if (
        not isinstance(numbers, tuple | list)
        or len(numbers) not in (1, 2)
        or not all(map(_is_side, numbers))
    ):
        raise _wrong(name, f"a number up to {MAX_SIDE}, or height and width", value)
    return value if isinstance(value, int) else tuple(value)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(name, "a finite number", value)
    return value


def _per_channel(config: Mapping[str, Any], name: str, default: PerChannel) -> PerChannel:
    values = config.get(name, default)
    if not isinstance(values, list | tuple) or not 0 < len(values) <= MAX_CHANNELS:
        raise _wrong(name, "one number for each channel", values)
    return tuple(float(_number({name: value}, name, 0.0)) for value in values)


def _only(config: Mapping[str, Any], name: str, value: Any) -> None:
    if config.get(name, value) is not value:
        raise _wrong(name, str(value), config[name])


def _wrong(name: str, allowed: str, received: Any) -> ValueError:
    shown = str(received)[:100]
    return ValueError(f"`{name}` of a preprocessor config is {allowed}. Received: {shown}")
