"""A contact sheet of what the student will be fed, to look at before days of training."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from deit_tf.config import AugmentConfig, TrainConfig
from deit_tf.data import (
    ImageProcessor,
    Source,
    masked_dataset,
    open_sources,
    train_dataset,
)
from deit_tf.data.unreadable import naming_unreadable
from deit_tf.distillation.teacher_labels import student_processor
from deit_tf.files import replacing
from deit_tf.models.variants import find_variant
from deit_tf.runs import shaped_as_weights

MARGIN, LINES, FONT_SIZE, TITLE_SIZE = 8, 3, 13, 18
LINE = FONT_SIZE + 3  # pixels
GAP = 2  # between the original and what is drawn from it
SMALLEST_SIDE = 96  # a picture is enlarged by whole factors until it is as wide
SHOWN_SHARE = 0.01  # of a label, beyond what smoothing gives to every class
GRAY = 128  # where a patch is hidden
LABELED = (
    "Left: a training image as it is. Right: as the student gets it, others mixed in.",
    "Below: the label that it learns, as shares of classes; these are not a model's confidence.",
)
MASKED = ("Left: a training image as it is. Right: as the model gets it, hidden patches in gray.",)
FED = ("Training images as the model got them, others mixed in.", LABELED[1])
FED_MASKED = ("Training images as the model got them, hidden patches in gray.",)
# What changes nothing, but for the crop.
UNCHANGED = {
    "crop": "random_resized",
    "scale": (1.0, 1.0),
    "ratio": (1.0, 1.0),
    "hflip": 0.0,
    "auto_augment": "none",
    "color_jitter": 0.0,
    "random_erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "cutmix_minmax": None,
}


def preview(config: TrainConfig, file: str, images: int = 24, columns: int = 6) -> Path:
    """Write the first images of a run's first epoch as a PNG file: each as it is, and beside it as
    the student gets it, with its mixed label, or hidden patches in gray.

    Args:
        config: The run.
        file: Where to write; ends in `.png`.
        images: Pairs of pictures on the sheet, at most a batch.
        columns: Pairs per row.
    Returns:
        The file.
    Raises:
        ValueError: For another ending, a count that is not positive, or an unknown model.
    """
    path = Path(file)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`file` ends in .png. Received: {file}")
    if images < 1 or columns < 1:
        raise ValueError(
            f"`images` and `columns` are positive. Received: images={images}, columns={columns}"
        )

    config = shaped_as_weights(config)
    training, _ = open_sources(config.data)
    processor = student_processor(config)
    draw = _masked if config.task == "masked" else _labeled
    with naming_unreadable(training):
        originals, pixels, captions = draw(config, training, processor)

    recipe = f"recipe {config.augment.recipe}, seed {config.seed}"
    title = f"What {config.model.name} is fed: {recipe}"
    legend = MASKED if config.task == "masked" else LABELED
    pairs = [_pair(*each) for each in zip(originals, pixels, strict=True)][:images]
    sheet = _sheet(pairs, captions[:images], columns, title, legend)

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary)
    return path


def sheet_of_batch(
    batch: Any,
    config: TrainConfig,
    class_names: Sequence[str],
    images: int = 24,
    columns: int = 6,
) -> Image.Image:
    """Draw the first images of a batch that a run trains on.

    Args:
        batch: Arrays or tensors as `train_dataset` gives them, teacher labels among them or not; of
            a masked run as `masked_dataset` does.
        config: The run.
        class_names: Its classes by label.
        images: Pictures on the sheet.
        columns: Pictures per row.
    """
    first = tf.nest.map_structure(lambda x: np.asarray(x[:images]), batch)
    pixels, *labels = [first["image"]] if config.task == "masked" else first
    processor = ImageProcessor.from_config(config.data, pixels.shape[1:3])
    shown = processor.to_rgb(pixels)  # uint8 [B, H, W, 3]
    title = f"The first batch: recipe {config.augment.recipe}, seed {config.seed}"
    if config.task == "masked":
        pictures = [_enlarged(each) for each in _hidden(shown, first["mask"])]
        return _sheet(pictures, [[]] * len(shown), columns, title, FED_MASKED)

    truth = labels[0]["labels"] if isinstance(labels[0], dict) else labels[0]  # [B, C]
    augment = config.augment.resolve(config.task == "multilabel")
    spread = augment.label_smoothing / len(class_names)
    captions = [_caption(row, spread, class_names) for row in truth]
    return _sheet([_enlarged(each) for each in shown], captions, columns, title, FED)


def _labeled(
    config: TrainConfig, training: Source, processor: ImageProcessor
) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """The images of the first batch as they are and as they are drawn, uint8 [B, H, W, 3], and the
    classes of each.
    """

    def first(augment: AugmentConfig) -> tuple[np.ndarray, np.ndarray]:
        batches = train_dataset(
            training, config.data, augment, processor, epochs=1, seed=config.seed
        )
        return next(batches.as_numpy_iterator())  # [B, H, W, 3], [B, C]

    resolved = config.augment.resolve(training.multilabel)
    originals, _ = first(replace(resolved, **UNCHANGED))
    batch, labels = first(config.augment)

    names = training.class_names
    captions = [_caption(row, resolved.label_smoothing / len(names), names) for row in labels]
    return processor.to_rgb(originals), processor.to_rgb(batch), captions


def _masked(
    config: TrainConfig, training: Source, processor: ImageProcessor
) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """The images of the first batch as they are and as they are drawn, uint8 [B, H, W, 3], gray
    where a patch is hidden; no captions.
    """
    patch = config.model.patch_size or find_variant(config.model.name).patch_size

    def first(augment: AugmentConfig) -> dict[str, np.ndarray]:
        batches = masked_dataset(
            training,
            config.data,
            augment,
            config.mask,
            processor,
            patch,
            epochs=1,
            seed=config.seed,
        )
        return next(batches.as_numpy_iterator())

    originals = first(replace(config.augment.resolve(), **UNCHANGED))["image"]
    batch = first(config.augment)
    shown = _hidden(processor.to_rgb(batch["image"]), batch["mask"])

    return processor.to_rgb(originals), shown, [[]] * len(shown)


def _hidden(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Images uint8 [B, H, W, 3], gray where a patch is hidden by the mask [B, patches]."""
    height, width = images.shape[1:3]
    patch = math.isqrt(height * width // mask.shape[1])
    cells = mask.reshape(-1, height // patch, width // patch)
    hidden = cells.repeat(patch, axis=1).repeat(patch, axis=2)[..., None] > 0  # [B, H, W, 1]
    return np.where(hidden, np.uint8(GRAY), images)


def _caption(label: np.ndarray, spread: float, names: Sequence[str]) -> list[str]:
    """The classes of a label [C] that have more than smoothing spreads over each, largest first."""
    order = [
        index
        for index in np.argsort(-label, kind="stable")[:LINES]
        if label[index] > spread + SHOWN_SHARE
    ]
    return [f"{label[index]:.2f} {names[index]}" for index in order]


def _pair(original: np.ndarray, drawn: np.ndarray) -> Image.Image:
    """Two pictures side by side, enlarged by a whole factor where they are small."""
    pictures = [_enlarged(pixels) for pixels in (original, drawn)]
    width, height = pictures[0].size
    pair = Image.new("RGB", (2 * width + GAP, height), "white")
    for place, picture in enumerate(pictures):
        pair.paste(picture, (place * (width + GAP), 0))
    return pair


def _enlarged(pixels: np.ndarray) -> Image.Image:
    """A picture of uint8 [H, W, 3], larger by a whole factor where it is small."""
    height, width = pixels.shape[:2]
    factor = -(-SMALLEST_SIDE // width)
    return Image.fromarray(pixels).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
    )


def _sheet(
    pairs: list[Image.Image],
    captions: list[list[str]],
    columns: int,
    title: str,
    legend: tuple[str, ...],
) -> Image.Image:
    """Pairs of pictures in rows, each with its caption, below a title and a legend."""
    font, large = (ImageFont.load_default(size) for size in (FONT_SIZE, TITLE_SIZE))
    cell = (pairs[0].width + 2 * MARGIN, pairs[0].height + MARGIN + LINES * LINE)
    columns, rows = min(columns, len(pairs)), -(-len(pairs) // columns)
    width = columns * cell[0]
    heading = _wrapped(title, width - 2 * MARGIN, large)
    lines = [each for line in legend for each in _wrapped(line, width - 2 * MARGIN, font)]
    below = MARGIN + len(heading) * (TITLE_SIZE + 6)
    top = below + len(lines) * (FONT_SIZE + 5) + MARGIN

    sheet = Image.new("RGB", (width, top + rows * cell[1] + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((MARGIN, MARGIN), "\n".join(heading), "black", large, spacing=4)
    draw.multiline_text((MARGIN, below), "\n".join(lines), "dimgray", font, spacing=3)

    for i, (pair, caption) in enumerate(zip(pairs, captions, strict=True)):
        place = (MARGIN + i % columns * cell[0], top + i // columns * cell[1])
        sheet.paste(pair, place)
        text = "\n".join(_fit(line, pair.width, font) for line in caption)
        draw.multiline_text((place[0], place[1] + pair.height + 2), text, "black", font, spacing=2)

    return sheet


def _wrapped(text: str, width: int, font: ImageFont.ImageFont) -> list[str]:
    """Lines of text of up to `width` pixels; a word that is longer is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_fit(word, width, font))
    return [line for line in lines if line]


def _fit(line: str, width: int, font: ImageFont.ImageFont) -> str:
    """Cut a line to `width` pixels."""
    while font.getlength(line) > width:
        line = line[:-2] + "…"
    return line
