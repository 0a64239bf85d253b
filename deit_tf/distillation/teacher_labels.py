"""A teacher's labels that were computed ahead (make_labels.py), read in place of running it.

They are checked against the run that wants them, and against their checksums, before the first
step.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from deit_tf.config import TrainConfig
from deit_tf.data import ImageProcessor, Source
from deit_tf.data.order import WHOLE, Part, Rows
from deit_tf.distillation.fingerprint import (
    differences,
    first_batch,
    software,
    stream_facts,
    teacher_files,
)
from deit_tf.distillation.kinds import NONE
from deit_tf.distillation.label_files import CHECKSUM, LOG_PROBABILITY, Layout, Unit, read_manifest
from deit_tf.models.variants import find_variant
from deit_tf.runs.load import ANY_SIZE

log = logging.getLogger(__name__)

FORMAT = 1
NAMED = 5  # files named in an error
MARGIN = 1e-3  # by which a class that was not kept stays below the likeliest, as the teacher had it


@dataclass(frozen=True)
class Cache:
    """Labels that were computed ahead, checked against a run.

    Args:
        folder: Where they lie.
        layout: How they are cut into files.
        hard: Whether the teacher's decision alone is wanted, of soft labels too.
        epochs: Epochs that are there.
    """

    folder: Path
    layout: Layout
    hard: bool
    epochs: int

    def attach(
        self, batches: tf.data.Dataset, first_step: int = 0, part: Part = WHOLE
    ) -> tf.data.Dataset:
        """Add the teacher's logits to the batches of `train_dataset`.

        Args:
            batches: `(images, labels)` or `(images, labels, weight)`.
            first_step: The step of the whole training that the first of them belongs to.
            part: Which share of every batch they are, as of `train_dataset`.
        Returns:
            The same batches with `{"labels": float32 [B, C], "teacher_logits": float32 [B, C]}` for
            labels. Hard labels become one-hot rows. Soft ones become logarithms of probabilities:
            of the k kept classes as the teacher had them, within the rounding of float16, of the
            others an equal share of the rest.
        Raises:
            ValueError: If `batches` do not last from that step to the end of the training.
        """
        left = self.epochs * self.layout.steps - first_step
        count = int(batches.cardinality())
        if (
            count >= 0 and count != left
        ):  # labels out of step with their images would teach nonsense in silence
            raise ValueError(
                f"`batches` has one batch for each of the {left} steps from `first_step` "
                f"{first_step} to the end of {self.epochs} epochs; pass `train_dataset` the "
                f"same `first_step`. Received: {count} batches"
            )

        joined = (
            tf.data.Dataset.zip(batches, self._steps(first_step, part))
            .map(self._join)
            .prefetch(tf.data.AUTOTUNE)
        )
        return joined if count < 0 else joined.apply(tf.data.experimental.assert_cardinality(count))

    def attach_held_out(self, batches: tf.data.Dataset, part: Part = WHOLE) -> tf.data.Dataset:
        """Add the teacher's logits to the batches of `eval_dataset`.

        Args:
            batches: All held-out images in their order, in batches of any size, `(images, labels)`
                with a weight or without; the last may be padded. The labels may be whole numbers.
            part: Which share of every batch of `data.batch_size` they are, as of `eval_dataset`.
        Returns:
            The same batches with the dict of `attach` for labels.
        """
        files = [
            self._read(tf.constant(str(self.folder / unit.name)))
            for unit in self.layout.held_out_units()
        ]
        answers = [tf.concat(parts, axis=0) for parts in zip(*files, strict=True)]  # [n, ...] each
        mine = Rows.of_part(part, self.layout.batch_size)
        others = mine.batch_size - mine.count  # between two batches of this share

        def add(start, batch):
            size = tf.shape(batch[0])[0]
            rows = tf.minimum(
                start + tf.range(size), self.layout.held_out - 1
            )  # a padded row has any answer
            found = [tf.gather(answer, rows) for answer in answers]
            return start + size + others, self._join(batch, found)

        return batches.scan(tf.constant(mine.start), add).prefetch(tf.data.AUTOTUNE)

    def _steps(self, first_step: int, part: Part) -> tf.data.Dataset:
        """The answers for this share of each step, [B / n, ...] each."""
        rows = Rows.of_part(part, self.layout.batch_size)
        units = self.layout.units_from(first_step, self.epochs)
        skipped = first_step - self.layout.span(units[0])[0] if units else 0
        files = tf.data.Dataset.from_tensor_slices(
            tf.constant([str(self.folder / u.name) for u in units], tf.string)
        )

        def steps_of(file):
            answers = self._read(file)
            batches = [tf.reshape(each, (-1, rows.batch_size, *each.shape[1:])) for each in answers]
            mine = [each[:, rows.start : rows.stop] for each in batches]
            return tf.data.Dataset.from_tensor_slices(tuple(mine))

        return files.flat_map(steps_of).skip(skipped).prefetch(tf.data.AUTOTUNE)

    def _read(self, file: tf.Tensor) -> list[tf.Tensor]:
        """The classes of a file, [n]; or the log-probabilities [n, k + 1] and the classes [n,
        k].
        """
        layout, content = self.layout, tf.io.read_file(file)
        count = (tf.strings.length(content) - CHECKSUM) // layout.image_bytes
        widths = [(layout.top_k + 1, LOG_PROBABILITY), (layout.top_k, layout.class_dtype)]
        answers, start = [], 0
        for width, dtype in widths if layout.top_k else [(1, layout.class_dtype)]:
            size = count * width * dtype.itemsize
            part = tf.io.decode_raw(tf.strings.substr(content, start, size), tf.as_dtype(dtype))
            answers.append(tf.reshape(part, (-1, width)))
            start += size
        return answers if layout.top_k else [answers[0][:, 0]]

    def _join(self, batch: Sequence[tf.Tensor], answers: Sequence[tf.Tensor]) -> tuple:
        images, labels, *weight = batch
        classes = tf.cast(answers[-1], tf.int32)  # [B] or [B, k]
        if self.layout.top_k and self.hard:
            classes = classes[:, 0]
        count = self.layout.classes
        logits = (
            tf.one_hot(classes, count)
            if classes.shape.rank == 1
            else _spread(answers[0], classes, count)
        )
        true = tf.one_hot(labels, count) if labels.dtype.is_integer else tf.cast(labels, tf.float32)
        return images, {"labels": true, "teacher_logits": logits}, *weight


def open_cache(
    folder: str | Path,
    config: TrainConfig,
    sources: tuple[Source, Source],
    processor: ImageProcessor | None = None,
) -> Cache:
    """Open labels that `make_labels` made, for a run that trains on the same stream; no teacher is
    loaded.

    Everything that decides the images is compared. So is the teacher, where `distill.teacher` is
    set: by the checksum of its files, if they are here; by its name, if it is `hf://`, `keras:` or
    `keras-hub:`. With `distill.teacher` null the labels are taken from whichever teacher they came
    from.

    Args:
        folder: Where they lie.
        config: The run; labels of its epochs must be there, and of the held-out images.
        sources: Its images to train on and those held out.
        processor: What the student expects of its images; by default as `config` says.
    Raises:
        FileNotFoundError: If there are no labels.
        ValueError: If they were made for another stream or teacher, which it names; if some are
            missing or damaged, which it names; if soft labels are wanted and these are hard.
    """
    folder, processor = Path(folder), processor or student_processor(config)
    then = read_manifest(folder)
    now = run_facts(config, sources, processor)
    if config.distill.top_k == 0:
        del now["distill.top_k"]  # whatever is there
    check_same(folder, then, now | _teacher_here(config.distill.teacher))
    layout, hard = Layout.of(then), config.distill.kind == "hard"
    if not hard and layout.top_k == 0:
        raise ValueError(
            f"`distill.kind` {config.distill.kind!r} needs probabilities, and {folder} holds "
            "hard labels. Make others with `deit-tf label --distill.top_k 10` in another "
            "folder, or set `distill.kind` to hard."
        )

    _check_complete(folder, layout, config.epochs)
    check_same(
        folder, then, first_batch(config, sources[0], processor)
    )  # last, as it takes longest
    if then["software"] != software():
        log.warning(
            "%s was made with %s, not %s; the first batch is alike.",
            folder,
            then["software"],
            software(),
        )

    log.info("Labels of teacher %s from %s: no teacher is run.", then.get("teacher.name"), folder)
    return Cache(folder, layout, hard, config.epochs)


def labels_teacher(config: TrainConfig) -> dict[str, Any]:
    """Whose labels a run learns from where they were made ahead, as a fact of the run; none where
    a teacher runs.

    Raises:
        FileNotFoundError, ValueError: If the folder holds no labels, or its manifest is damaged.
    """
    distill = config.distill
    if config.task != "classify" or distill.kind == NONE or not distill.labels:
        return {}
    return {"labels.teacher": read_manifest(Path(distill.labels)).get("teacher.weights")}


def student_processor(config: TrainConfig) -> ImageProcessor:
    """What the student of `config` expects of its images, before it is built.

    Raises:
        ValueError: If there is no model of that name.
    """
    model = config.model
    default = ANY_SIZE if model.application else find_variant(model.name).image_size
    return ImageProcessor.from_config(config.data, model.image_size or default)


def run_facts(
    config: TrainConfig, sources: tuple[Source, Source], processor: ImageProcessor
) -> dict[str, Any]:
    """What labels must hold for, but for the teacher and the first batch."""
    return {
        "format": FORMAT,
        "distill.top_k": config.distill.top_k,
        **stream_facts(config, sources, processor),
    }


def _teacher_here(name: str | None) -> dict[str, Any]:
    """What is known of a teacher without loading it."""
    if name is None:
        return {}
    if checksum := teacher_files(name):
        return {"teacher.files": checksum}
    return {"teacher.name": name} if name.startswith(("hf://", "keras:", "keras-hub:")) else {}


def check_same(folder: Path, then: Mapping, now: Mapping, left_out: Sequence[str] = ()) -> None:
    """Raise a ValueError that names what labels in `folder` were made for and what they are wanted
    for.
    """
    if lines := differences(then, now, left_out):
        raise ValueError(
            "\n  ".join([f"The labels in {folder} were made for something else:", *lines])
            + "\nTake the settings back, or make labels for these with `deit-tf label` in "
            "another folder."
        )


def _check_complete(folder: Path, layout: Layout, epochs: int) -> None:
    """Read every file that a run will need, and name what is missing or damaged."""
    units = [*layout.training_units(range(epochs)), *layout.held_out_units()]
    flaws = {unit: layout.flaw(folder, unit) for unit in units}
    if damaged := [str(folder / unit.name) for unit, flaw in flaws.items() if flaw == "damaged"]:
        raise ValueError(
            "Damaged, as the checksum tells: "
            f"{', '.join(damaged[:NAMED])}{', ...' * (len(damaged) > NAMED)}. Run the same "
            "`deit-tf label` again: it makes them anew."
        )
    if missing := [unit for unit, flaw in flaws.items() if flaw == "missing"]:
        raise ValueError(
            f"{folder} lacks the labels of {_named(missing, layout)}. Make them with `deit-tf "
            "label --epochs A:B`; what is there stays."
        )


def _named(units: Sequence[Unit], layout: Layout) -> str:
    """Such as: epochs 3 to 5, epoch 7 (steps 0 to 63), the held-out images."""
    parts: dict[int | None, list[Unit]] = {}
    for unit in units:
        parts.setdefault(unit.epoch, []).append(unit)
    held_out = parts.pop(None, None)
    whole = [
        epoch
        for epoch, each in parts.items()
        if sum(u.stop - u.start for u in each) == layout.steps
    ]
    starts = [epoch for epoch in whole if epoch - 1 not in whole]
    ends = [epoch for epoch in whole if epoch + 1 not in whole]
    named = [
        f"epochs {a} to {b}" if a < b else f"epoch {a}" for a, b in zip(starts, ends, strict=True)
    ]
    torn = [unit for epoch, each in parts.items() if epoch not in whole for unit in each]
    named += [f"epoch {unit.epoch} (steps {unit.start} to {unit.stop - 1})" for unit in torn]

    return ", ".join([*named, "the held-out images"] if held_out else named)


def _spread(log_probabilities: tf.Tensor, classes: tf.Tensor, count: int) -> tf.Tensor:
    """Rows [B, count] of log-probabilities [B, k + 1] for `classes` [B, k], the last for all other
    classes together.
    """
    kept = tf.cast(log_probabilities, tf.float32)
    top_k = classes.shape[-1]
    each = kept[:, top_k:] - math.log(count - top_k)  # [B, 1]
    each = tf.minimum(each, kept[:, :1] - MARGIN)
    rows = tf.repeat(each, count, axis=1)  # [B, C]
    images = tf.broadcast_to(tf.range(tf.shape(classes)[0])[:, None], tf.shape(classes))
    return tf.tensor_scatter_nd_update(rows, tf.stack([images, classes], axis=-1), kept[:, :top_k])
