"""A contact sheet of what the student will be fed, to look at before days of training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
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
    rows, columns = (side // patch for side in processor.size)
    mask = batch["mask"].reshape(-1, rows, columns)
    hidden = mask.repeat(patch, axis=1).repeat(patch, axis=2)[..., None] > 0  # [B, H, W, 1]
    shown = np.where(hidden, np.uint8(GRAY), processor.to_rgb(batch["image"]))

    return processor.to_rgb(originals), shown, [[]] * len(shown)


def _caption(label: np.ndarray, spread: float, names: tuple[str, ...]) -> list[str]:
    """The classes of a label [C] that have more than smoothing spreads over each, largest first."""
    order = [
        index
        for index in np.argsort(-label, kind="stable")[:LINES]
        if label[index] > spread + SHOWN_SHARE
    ]
    return [f"{label[index]:.2f} {names[index]}" for index in order]


def _pair(original: np.ndarray, drawn: np.ndarray) -> Image.Image:
    """Two pictures side by side, enlarged by a whole factor where they are small."""
    height, width = drawn.shape[:2]
    factor = -(-SMALLEST_SIDE // width)
    size = (width * factor, height * factor)
    pair = Image.new("RGB", (2 * size[0] + GAP, size[1]), "white")
    for place, pixels in enumerate((original, drawn)):
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
        pair.paste(picture, (place * (size[0] + GAP), 0))
    return pair


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
