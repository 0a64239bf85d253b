"""A contact sheet of what the student will be fed, to look at before days of training."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deit_tf.config import TrainConfig
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

MARGIN, LINES, FONT_SIZE = 8, 3, 13
SMALLEST_SIDE = 96  # a picture is enlarged by whole factors until it is as wide
SHOWN_SHARE = 0.01  # of a label, beyond what smoothing gives to every class
GRAY = 128  # where a patch is hidden


def preview(config: TrainConfig, file: str, images: int = 24, columns: int = 6) -> Path:
    """Write the first images of a run's first epoch as a PNG file, with their mixed labels, or
    hidden patches in gray.

    Args:
        config: The run.
        file: Where to write; ends in `.png`.
        images: Pictures on the sheet, at most a batch.
        columns: Pictures per row.
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
    with naming_unreadable(training):
        if config.task == "masked":
            pixels = _masked(config, training, processor)
            captions = [[]] * len(pixels)
        else:
            pixels, captions = _labeled(config, training, processor)

    sheet = _sheet(pixels[:images], captions[:images], columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary)
    return path


def _labeled(
    config: TrainConfig, training: Source, processor: ImageProcessor
) -> tuple[np.ndarray, list[list[str]]]:
    """The first batch as uint8 [B, H, W, 3], and the classes of each image."""
    batches = train_dataset(
        training, config.data, config.augment, processor, epochs=1, seed=config.seed
    )
    batch, labels = next(batches.as_numpy_iterator())  # [B, H, W, 3], [B, C]
    names = training.class_names
    spread = config.augment.resolve(training.multilabel).label_smoothing / len(names)
    captions = [_caption(row, spread, names) for row in labels]
    return processor.to_rgb(batch), captions


def _masked(config: TrainConfig, training: Source, processor: ImageProcessor) -> np.ndarray:
    """The first batch as uint8 [B, H, W, 3], gray where a patch is hidden."""
    patch = config.model.patch_size or find_variant(config.model.name).patch_size
    batches = masked_dataset(
        training,
        config.data,
        config.augment,
        config.mask,
        processor,
        patch,
        epochs=1,
        seed=config.seed,
    )
    batch = next(batches.as_numpy_iterator())
    rows, columns = (side // patch for side in processor.size)
    mask = batch["mask"].reshape(-1, rows, columns)
    hidden = mask.repeat(patch, axis=1).repeat(patch, axis=2)[..., None] > 0  # [B, H, W, 1]

    return np.where(hidden, np.uint8(GRAY), processor.to_rgb(batch["image"]))


def _caption(label: np.ndarray, spread: float, names: tuple[str, ...]) -> list[str]:
    """The classes of a label [C] that have more than smoothing spreads over each, largest first."""
    order = [
        index
        for index in np.argsort(-label, kind="stable")[:LINES]
        if label[index] > spread + SHOWN_SHARE
    ]
    return [f"{label[index]:.2f} {names[index]}" for index in order]


def _sheet(images: np.ndarray, captions: list[list[str]], columns: int) -> Image.Image:
    height, width = images.shape[1:3]
    factor = -(-SMALLEST_SIDE // width)
    font = ImageFont.load_default(FONT_SIZE)
    cell = (width * factor + MARGIN, height * factor + MARGIN + LINES * (FONT_SIZE + 3))
    rows = -(-len(images) // columns)
    sheet = Image.new(
        "RGB", (min(columns, len(images)) * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white"
    )
    draw = ImageDraw.Draw(sheet)

    for i, (pixels, lines) in enumerate(zip(images, captions, strict=True)):
        left, top = MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]
        picture = Image.fromarray(pixels).resize(
            (width * factor, height * factor), Image.Resampling.NEAREST
        )
        sheet.paste(picture, (left, top))
        text = "\n".join(_fit(line, cell[0] - MARGIN, font) for line in lines)
        draw.multiline_text((left, top + height * factor + 2), text, "black", font, spacing=2)

    return sheet


def _fit(line: str, width: int, font: ImageFont.ImageFont) -> str:
    """Cut a line to `width` pixels."""
    while font.getlength(line) > width:
        line = line[:-2] + "…"
    return line
