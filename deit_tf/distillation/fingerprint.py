"""What a teacher's labels hold for: the training stream and the teacher, as named facts that JSON
holds.

Labels computed ahead are right for one stream of images and one teacher; whatever would change
either stands here, so that a difference can be named. What changes the true labels alone, such as
label smoothing, does not matter.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deit_tf.config import DataConfig, TrainConfig
from deit_tf.data import ImageProcessor, Source, train_dataset
from deit_tf.data.annotations import is_annotations
from deit_tf.data.folders import image_sizes
from deit_tf.data.order import group_size
from deit_tf.data.sources import SHUFFLE_BUFFER
from deit_tf.distillation.kinds import NONE
from deit_tf.distillation.teacher import Teacher
from deit_tf.files import sha256
from deit_tf.object_store import StorePath, local_or_stored, read_beginning
from deit_tf.runs import RunFolder
from deit_tf.weights.files import AVERAGE, INDEX, SAFETENSORS, TORCH_FILES, split_choice
from deit_tf.weights.keras_hub import BACKBONE_WEIGHTS, TASK_WEIGHTS
from deit_tf.weights.tensors import INDEX_SUFFIX, shard_files

Facts = dict[str, Any]

SAMPLED = 256  # images whose bytes identify a data set that is no folder
BEGINNING = 1 << 16  # bytes of a file, with pixels in them
PROBED = 64  # images of the first batch
PIXELS = "stream.pixels"
# Another machine's float32 differs in its last bits, another augmentation in the first decimal.
PIXEL_TOLERANCE = 5e-3
TRUE_LABELS_ONLY = (
    "recipe",
    "label_smoothing",
)  # of the augmentation; a resolved recipe is but its values
# What labels were made with before their facts said so.
UNSAID: dict[str, Callable[[Mapping], Any]] = {
    "augment.mix_group": lambda facts: facts.get("data.batch_size"),  # one draw for the batch
    "augment.crop": lambda facts: "random_resized",
    "augment.interpolation": lambda facts: "bicubic",
    "augment.erase_mode": lambda facts: "pixel",
    "augment.erase_count": lambda facts: 1,
    "augment.mix_mode": lambda facts: "batch",
    "data.shuffle_buffer": lambda facts: min(SHUFFLE_BUFFER, facts.get("data.images", 0)),
}
INFORMATION = ("software", "teacher.name", "teacher.files")  # told, not compared between makers


def stream_facts(
    config: TrainConfig, sources: tuple[Source, Source], processor: ImageProcessor
) -> Facts:
    """What decides the images of every step, and of the held-out set.

    Images are identified by their number, the class names, and `data.content`: of a folder the
    names and sizes of its image files, else the bytes of the first 256 images of both splits.

    Args:
        config: The run.
        sources: Its images to train on and those held out.
        processor: What the student expects of them.
    """
    (training, held_out), data = sources, config.data
    is_folder = _folder(data.source) is not None
    augment = config.augment.resolve()
    facts = {
        "data.source": "folder" if is_folder else [training.name, held_out.name],
        "data.content": _content(data, sources),
        "data.classes": training.class_names,
        "data.images": training.size,
        "data.held_out_images": held_out.size,
        "data.batch_size": data.batch_size,
        "data.mean": processor.mean,
        "data.std": processor.std,
        "data.crop_ratio": processor.crop_ratio,
        **{f"augment.{k}": v for k, v in asdict(augment).items() if k not in TRUE_LABELS_ONLY},
        "augment.mix_group": group_size(data.batch_size, augment),
        "image_size": processor.size,
        "seed": config.seed,
    }

    if training.buffer is not None:
        facts["data.shuffle_buffer"] = training.buffer

    return json.loads(json.dumps(facts))


def changing_facts(config: TrainConfig, sources: tuple[Source, Source]) -> Facts:
    """What may have changed behind the same settings when a stopped run goes on.

    Args:
        config: The run.
        sources: Its images to train on and those held out.
    """
    distill = config.distill
    learns = config.task != "masked" and distill.kind != NONE
    teacher = distill.teacher if learns else None
    facts = {
        "data.content": _content(config.data, sources),
        "teacher.files": teacher_files(teacher) if teacher else None,
    }
    files = [file for source in sources for file in source.files]
    return facts | ({"data.bytes": _first_bytes(files)} if files else {})


def first_batch(config: TrainConfig, source: Source, processor: ImageProcessor) -> Facts:
    """The true label and the mean of all pixels of each of the first images as they come out.

    So another version of this code, or of a library, behind the same settings shows.
    """
    batches = train_dataset(
        source, config.data, config.augment, processor, epochs=1, seed=config.seed
    )
    images, labels = next(iter(batches.take(1)))
    means = tf.reduce_mean(images[:PROBED], axis=(1, 2, 3)).numpy()
    return {
        "stream.labels": tf.argmax(labels[:PROBED], axis=-1).numpy().tolist(),
        PIXELS: [round(float(mean), 4) for mean in means],
    }


def teacher_facts(teacher: Teacher, name: str) -> Facts:
    """What decides a teacher's answers: its weights, what it does to the images, and the precision
    it runs in.

    Args:
        teacher: The teacher.
        name: `distill.teacher`, which brought it.
    """
    facts = {
        "teacher.name": name,
        "teacher.files": teacher_files(name),
        "teacher.weights": _weights(teacher.model),
        "teacher.precision": sorted({layer.dtype_policy.name for layer in teacher.model.layers}),
        **{
            f"teacher.{field}": getattr(teacher, field)
            for field in ("mean", "std", "image_size", "class_order", "from_logits", "bgr")
        },
    }
    return json.loads(json.dumps(facts))


def teacher_files(name: str) -> str | None:
    """Checksum of the weights that `distill.teacher` names, of all their files, without loading.

    None where it is not on this machine.
    """
    _, _, file = name.partition(":")
    choices = (split_choice(each) for each in (name, file) if each)
    path, average = next((each for each in choices if each[0].exists()), (None, False))
    files = [] if path is None else _weight_files(path)
    if not files:
        return None
    checksums = [sha256(file) for file in files]
    if len(files) == 1:
        return checksums[0] + AVERAGE * average
    return hashlib.sha256("".join(checksums).encode()).hexdigest()


def _weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a run, a folder or a file; none where there are none."""
    if path.is_dir():
        if model := RunFolder(path).find_model():
            return [model]
        if (path / BACKBONE_WEIGHTS).is_file():
            both = (path / BACKBONE_WEIGHTS, path / TASK_WEIGHTS)
            return [file for file in both if file.is_file()]
        others = (path / weights for weights in (SAFETENSORS, INDEX, *TORCH_FILES))
        path = next((file for file in others if file.is_file()), path)
    if path.name.endswith(INDEX_SUFFIX):
        return shard_files(path)
    return [path] if path.is_file() else []


def software() -> dict[str, str]:
    """Versions of what makes the stream."""
    return {
        name: importlib.metadata.version(name)
        for name in ("deit_tf", "tensorflow", "keras", "keras-cv")
    }


def identity(facts: Mapping[str, Any]) -> bytes:
    """32 bytes that are the same wherever the facts are, whichever machine found them."""
    compared = {k: v for k, v in facts.items() if k not in (*INFORMATION, PIXELS)}
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).digest()


def differences(
    then: Mapping[str, Any], now: Mapping[str, Any], left_out: Sequence[str] = INFORMATION
) -> list[str]:
    """Name what differs, one line for each: `key: then ..., now ...`.

    Args:
        then: The facts that labels were made under.
        now: Those that they are wanted for; a fact that is missing here is not compared.
        left_out: Facts that are not compared.
    """
    then = {key: of(then) for key, of in UNSAID.items()} | dict(then)
    keys = [key for key in now if key not in left_out and not _same(key, then.get(key), now[key])]
    settings = [key for key in keys if not key.startswith("stream.")]
    # The first batch follows from the settings: it tells something only where they agree.
    pairs = {key: (then.get(key), now[key]) for key in settings or keys}
    return [
        f"{key}: then {_short(old, new)}, now {_short(new, old)}"
        for key, (old, new) in pairs.items()
    ]


def _same(key: str, then: Any, now: Any) -> bool:
    if key == PIXELS and then is not None:
        return len(then) == len(now) and bool(np.allclose(then, now, rtol=0, atol=PIXEL_TOLERANCE))
    return then == now


def _short(value: Any, other: Any) -> str:
    """The value; of long lists the first entry that differs, of checksums the first digits."""
    if isinstance(value, list) and len(value) > 8:
        others = other if isinstance(other, list) else []
        first = next((i for i, v in enumerate(value) if i >= len(others) or others[i] != v), 0)
        return f"{len(value)} entries with {value[first]!r} as number {first}"
    return value[:12] + "..." if isinstance(value, str) and len(value) == 64 else json.dumps(value)


def _folder(source: str) -> Path | StorePath | None:
    """The folder, or file of labels, that `data.source` names; None of digits and builders."""
    named = source == "digits" or source.startswith("tfds:")
    return None if named else local_or_stored(source)


def _content(data: DataConfig, sources: Sequence[Source]) -> str:
    """Checksum that identifies the images of a source."""
    place = _folder(data.source)
    if place is None:
        return _sample(sources)
    if is_annotations(data.source):
        return _annotated(place, sources)
    return _listing(place, len(data.mean))


def _annotated(file: Path, sources: Sequence[Source]) -> str:
    """Checksum of a file of labels, and of the sizes of its pictures."""
    digest = hashlib.sha256(file.read_bytes())
    for source in sources:
        for picture in source.files:
            digest.update(b" %d" % os.stat(picture).st_size)
    return digest.hexdigest()


def _listing(folder: Path | StorePath, channels: int) -> str:
    """Checksum of the names and sizes of the images in a folder, wherever it lies; on a store of
    their names alone.
    """
    digest, sizes = hashlib.sha256(), image_sizes(folder, channels)
    for name in sorted(sizes):
        digest.update(os.fsencode(name) + f"\t{sizes[name]}\n".encode())
    return digest.hexdigest()


def _first_bytes(files: Sequence[bytes]) -> str:
    """Checksum of how files from all over begin: others may have the same names and sizes."""
    digest = hashlib.sha256()
    for file in files[:: max(1, len(files) // SAMPLED)][:SAMPLED]:
        digest.update(read_beginning(file, BEGINNING))
    return digest.hexdigest()


def _sample(sources: Sequence[Source]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        for item in source.read(None).take(SAMPLED).as_numpy_iterator():
            digest.update(f"{item['label']} {len(item['image'])} ".encode() + item["image"])
    return digest.hexdigest()


def _weights(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
