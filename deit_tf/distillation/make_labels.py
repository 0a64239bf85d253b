"""Run a teacher ahead of training and keep its answers (label_files.py), in shards, resumably.

Augmentation is a pure function of (seed, epoch, index), so the images of every step are known
beforehand, and with them what the teacher says. One pass serves every student that trains on the
same stream.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.progress import track

from deit_tf.config import TrainConfig, check_labeling
from deit_tf.data import ImageProcessor, Source, eval_dataset, open_sources, train_dataset
from deit_tf.data.unreadable import naming_unreadable
from deit_tf.distillation.fingerprint import INFORMATION, first_batch, software, teacher_facts
from deit_tf.distillation.label_files import (
    FILE_IMAGES,
    Layout,
    Unit,
    read_manifest,
    write_manifest,
)
from deit_tf.distillation.teacher import Teacher
from deit_tf.distillation.teacher_labels import check_same, run_facts, student_processor
from deit_tf.distillation.teacher_sources import load_teacher
from deit_tf.files import locked
from deit_tf.object_store import is_url
from deit_tf.runs import shaped_as_weights
from deit_tf.training.precision import dtype_policy

log = logging.getLogger(__name__)

LOCK = ".shard-{}-of-{}.lock"

# classes [B] or [B, k]; log-probabilities [B, k + 1]
Answers = tuple[np.ndarray, np.ndarray | None]


def make_labels(
    config: TrainConfig, folder: str | Path, epochs: range, shard: tuple[int, int] = (1, 1)
) -> Path:
    """Run the teacher over the training stream and the held-out images, and keep its answers.

    It runs as it would in training: in `config.precision` where it is built here, and with
    deterministic kernels if `config.deterministic`, which holds for the whole process. What is
    there already is checked and not made again, so a stopped command is run again to go on. The
    files do not depend on the number of shards.

    Args:
        config: The run whose stream is labeled, with `distill.teacher`; `distill.top_k` logits are
            kept of each answer, or its class alone where that is 0.
        folder: Where to put the files; those of other epochs may lie there, made for the same
            stream.
        epochs: The epochs, counted from 0.
        shard: Which share of the work this is, and of how many: (1, 4) to (4, 4).
    Returns:
        The folder.
    Raises:
        ValueError: If the config has no teacher or makes no sense with it, or if the folder holds
            labels of another stream or teacher; what differs is named.
        FileNotFoundError: If the config names what is not there.
        BlockingIOError: If another process makes this share.
        ImportError: If the teacher needs a library that is not installed, such as keras-hub.
    """
    _check_making(config, folder, epochs, shard)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    config = shaped_as_weights(config)
    sources, folder = open_sources(config.data), Path(folder)
    processor = student_processor(config)

    with dtype_policy(config.precision):
        teacher = load_teacher(config.distill.teacher, sources[0].class_names, processor)
    classes, top_k = len(sources[0].class_names), config.distill.top_k
    teacher.check(classes, (*processor.size, processor.num_channels))
    if not 0 <= top_k < classes:
        raise ValueError(
            f"`distill.top_k` lies in 0..{classes - 1}: 0 keeps the decision alone, "
            f"{classes - 1} the whole distribution. Received: {top_k}"
        )

    remedy = "Wait for it or stop it; other shards can be made meanwhile."
    held = locked(folder, LOCK.format(*shard), "makes the same labels in", remedy)
    with held, naming_unreadable(*sources):
        return _make(config, folder, epochs, shard, sources, processor, teacher)


def _make(
    config: TrainConfig,
    folder: Path,
    epochs: range,
    shard: tuple[int, int],
    sources: tuple[Source, Source],
    processor: ImageProcessor,
    teacher: Teacher,
) -> Path:
    """Make what is missing of a share of the files."""
    facts = run_facts(config, sources, processor) | first_batch(config, sources[0], processor)
    facts |= teacher_facts(teacher, config.distill.teacher)
    layout = Layout.of(_agree_on(folder, facts, config.data.batch_size))
    units = [*layout.training_units(epochs), *layout.held_out_units()]
    first, last = (len(units) * part // shard[1] for part in (shard[0] - 1, shard[0]))
    wanted = [unit for unit in units[first:last] if _is_wanted(folder, layout, unit)]
    log.info("%d files of %d to make in %s", len(wanted), last - first, folder)
    steps = sum(unit.stop - unit.start for unit in wanted)
    answers = iter(
        track(
            _answers(wanted, layout, teacher, config, sources, processor),
            "Labeling",
            steps,
            transient=True,
        )
    )

    for unit in wanted:
        classes, log_probabilities = zip(
            *itertools.islice(answers, unit.stop - unit.start), strict=True
        )
        soft = np.concatenate(log_probabilities) if layout.top_k else None
        layout.write(folder, unit, layout.pack(np.concatenate(classes), soft))

    return folder


def _check_making(
    config: TrainConfig, folder: str | Path, epochs: range, shard: tuple[int, int]
) -> None:
    check_labeling(config)
    if is_url(folder):
        raise ValueError(
            "`distill.labels` is a folder that all who make labels share, and no object store. "
            f"Received: {folder}"
        )
    if not len(epochs) or epochs.start < 0 or epochs.step != 1:
        raise ValueError(
            f"`epochs` are A:B with 0 <= A < B. Received: {epochs.start}:{epochs.stop}"
        )
    if not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"`shard` is I/N with 1 <= I <= N. Received: {shard[0]}/{shard[1]}")


def _agree_on(folder: Path, facts: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """The manifest of a folder, written if there is none, refused if it tells of something else."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        then = read_manifest(folder)
    except FileNotFoundError:
        steps = max(1, FILE_IMAGES // batch_size)
        write_manifest(folder, then := {"steps_per_file": steps, "software": software(), **facts})
    check_same(folder, then, facts, INFORMATION)
    return then


def _is_wanted(folder: Path, layout: Layout, unit: Unit) -> bool:
    flaw = layout.flaw(folder, unit)
    if flaw == "damaged":
        log.warning("%s is damaged and is made anew.", folder / unit.name)
    return flaw is not None


def _answers(
    units: Iterable[Unit],
    layout: Layout,
    teacher: Teacher,
    config: TrainConfig,
    sources: tuple[Source, Source],
    processor: ImageProcessor,
) -> Iterator[Answers]:
    """The answers at every step of these files, in their order."""
    answer = _answerer(teacher, processor, layout.top_k)
    for run in _runs(units, layout):
        first, stop = layout.span(run[0])[0], layout.span(run[-1])[1]
        held_out = run[0].epoch is None
        batches = _batches(first, stop, held_out, config, sources, layout, processor)
        yield from map(answer, batches)


def _runs(units: Iterable[Unit], layout: Layout) -> Iterator[list[Unit]]:
    """Neighbors together, so that one stream serves them all."""
    run: list[Unit] = []
    for unit in units:
        if run and (run[-1].epoch is None, layout.span(run[-1])[1]) != (
            unit.epoch is None,
            layout.span(unit)[0],
        ):
            yield run
            run = []
        run.append(unit)
    if run:
        yield run


def _batches(
    first: int,
    stop: int,
    held_out: bool,
    config: TrainConfig,
    sources: tuple[Source, Source],
    layout: Layout,
    processor: ImageProcessor,
) -> tf.data.Dataset:
    """The images of steps first to stop - 1, as the student will see them."""
    data = config.data
    if held_out:
        batches = eval_dataset(sources[1], data, processor, first_step=first).take(stop - first)
        return batches.map(lambda images, labels: images)

    epochs = -(-stop // layout.steps)
    batches = train_dataset(
        sources[0],
        data,
        config.augment,
        processor,
        epochs=epochs,
        seed=config.seed,
        first_step=first,
    )

    return batches.map(lambda images, labels: images).take(stop - first)


def _answerer(
    teacher: Teacher, processor: ImageProcessor, top_k: int
) -> Callable[[tf.Tensor], Answers]:
    """What makes a teacher's answers of a batch of images."""

    @tf.function(reduce_retracing=True)
    def run(images):
        logits = teacher.logits(images, processor)  # [B, C]
        finite = tf.reduce_all(tf.math.is_finite(logits))
        return finite, *(_likeliest(logits, top_k) if top_k else (tf.argmax(logits, axis=-1),))

    def answer(images: tf.Tensor) -> Answers:
        finite, classes, *log_probabilities = run(images)
        if not finite:
            raise ValueError(
                f"Teacher {teacher.name!r} gives numbers that are not finite. Check its weights "
                "and precision."
            )
        return classes.numpy(), log_probabilities[0].numpy() if log_probabilities else None

    return answer


def _likeliest(logits: tf.Tensor, top_k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The likeliest classes [B, k], and the logarithms of their probabilities and of the rest's [B,
    k + 1].
    """
    log_probabilities = tf.nn.log_softmax(logits)  # [B, C]
    _, classes = tf.math.top_k(logits, top_k)
    kept = tf.gather(log_probabilities, classes, batch_dims=1)
    is_kept = tf.reduce_any(
        tf.one_hot(classes, logits.shape[-1], True, False, dtype=tf.bool), axis=1
    )  # [B, C]
    rest = tf.reduce_logsumexp(
        tf.where(is_kept, -np.inf, log_probabilities), axis=-1, keepdims=True
    )
    return classes, tf.concat([kept, rest], axis=-1)
