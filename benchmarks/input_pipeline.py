"""What the training input costs: CPU milliseconds per image and images per second, side by side in
one run.

JPEG files of 500 x 375 pixels in, batches of 64 at 224 x 224 out. Figures of two runs on a shared
machine do not compare; the contenders of one run take turns. What is not installed is skipped, and
the table says so.

    python benchmarks/input_pipeline.py --rounds 5 --images 512 --json input_pipeline.json
"""

import argparse
import functools
import importlib.util
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

BATCH, SIDE, CLASSES = 64, 224, 1000
JPEG_SIZE, JPEG_QUALITY, FILES = (375, 500), 95, 64
WORKERS = 2  # images prepared at a time by tf.data
POLICY = "rand-m9-mstd0.5-inc1"
Run = Callable[[int], None]  # prepares that many images


@functools.cache
def jpeg_files() -> list[bytes]:
    """Windows of scikit-learn's two photographs, compressed."""
    from sklearn.datasets import load_sample_images

    photos, random = load_sample_images().images, np.random.default_rng(0)
    files = []
    for index in range(FILES):
        photo = photos[index % len(photos)]
        top, left = (
            int(random.integers(0, photo.shape[axis] - JPEG_SIZE[axis] + 1)) for axis in (0, 1)
        )
        buffer = io.BytesIO()
        window = photo[top : top + JPEG_SIZE[0], left : left + JPEG_SIZE[1]]
        Image.fromarray(window).save(buffer, "JPEG", quality=JPEG_QUALITY)
        files.append(buffer.getvalue())

    return files


def crops() -> np.ndarray:
    """uint8 [FILES, SIDE, SIDE, 3]: what RandAugment alone is given."""
    images = [
        Image.open(io.BytesIO(file)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for file in jpeg_files()
    ]
    return np.stack([np.asarray(image) for image in images])


def reader(dataset) -> Run:
    """One iterator for all rounds: making one compiles the pipeline anew, which would count as work
    per image.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False  # no reading ahead: a contender would work in another's turn
    options.experimental_optimization.apply_default_optimizations = False
    batches = iter(dataset.with_options(options))

    def run(count: int) -> None:
        for _ in range(count // BATCH):
            next(batches)

    return run


def deit_tf_contenders() -> Iterator[tuple[str, Run]]:
    """This pipeline, each stage on top of the one before."""
    import tensorflow as tf

    from deit_tf.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
    from deit_tf.data.augment import augment_image, parse_rand_augment, rand_augment
    from deit_tf.data.mixing import mix, one_hot

    key, size = tf.constant([0, 0], tf.int64), (SIDE, SIDE)
    whole = AugmentConfig(recipe="deit").resolve()

    def draws(inputs: tf.Tensor, augment: Callable) -> tf.data.Dataset:
        items = tf.data.Dataset.range(1 << 40).map(
            lambda i: (tf.gather(inputs, i % FILES), tf.random.fold_in(key, i))
        )
        return items.map(augment, WORKERS).batch(BATCH, drop_remainder=True)

    def stage(**overrides) -> tf.data.Dataset:
        config = AugmentConfig(
            recipe="none", scale=whole.scale, ratio=whole.ratio, **overrides
        ).resolve()
        return draws(
            files,
            lambda file, seed: augment_image(file, seed, config, size, IMAGENET_MEAN, IMAGENET_STD),
        )

    def mix_batch(step: tf.Tensor, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        labels = one_hot(tf.range(BATCH) + tf.cast(step, tf.int32), CLASSES, whole.label_smoothing)
        return mix(images, labels, tf.random.fold_in(key, step), whole)

    files, policy = tf.constant(jpeg_files()), parse_rand_augment(POLICY)
    flip = {"hflip": whole.hflip}
    drawn = flip | {"auto_augment": POLICY}
    erased = drawn | {"random_erasing": whole.random_erasing}
    stages = {
        "deit_tf: decode, crop, normalize": stage(),
        "deit_tf: + flip": stage(**flip),
        "deit_tf: + RandAugment": stage(**drawn),
        "deit_tf: + erasing": stage(**erased),
        "deit_tf: + mixup/CutMix = whole recipe": stage(**erased).enumerate().map(mix_batch),
        "deit_tf: RandAugment alone": draws(
            tf.constant(crops()), lambda image, seed: rand_augment(image, seed, policy)
        ),
    }

    for name, dataset in stages.items():
        yield name, reader(dataset)


def _layer_pipelines(
    name: str, decode: Callable, image_layers: list, batch_layers: list, policy
) -> Iterator[tuple[str, Run]]:
    """Whole recipe and RandAugment alone of a library of layers; image layers run per image, its
    faster form.
    """
    import tensorflow as tf

    files, images = tf.constant(jpeg_files()), tf.constant(crops())

    def one(index: tf.Tensor) -> tf.Tensor:
        image = decode(tf.gather(files, index % FILES))
        for layer in [*image_layers, policy]:
            image = layer(image)
        return tf.ensure_shape(image, [SIDE, SIDE, 3])

    def finish(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = {"images": batch, "labels": tf.one_hot(tf.range(BATCH), CLASSES)}
        for layer in batch_layers:
            inputs = layer(inputs)
        return inputs

    indices = tf.data.Dataset.range(1 << 40)
    whole = indices.map(one, WORKERS).batch(BATCH, drop_remainder=True).map(finish)
    alone = indices.map(lambda i: policy(tf.gather(images, i % FILES)), WORKERS).batch(BATCH)
    yield f"{name}: whole recipe", reader(whole)
    yield f"{name}: RandAugment alone", reader(alone)


def keras_cv_contenders() -> Iterator[tuple[str, Run]]:
    """keras-cv's ready-made layers: not the paper's laws. RandomCutout is the nearest to random
    erasing.
    """
    import keras_cv
    import tensorflow as tf

    layers, full = keras_cv.layers, (0, 255)
    crop = layers.RandomCropAndResize((SIDE, SIDE), (0.08, 1.0), (3 / 4, 4 / 3))
    mixing = [layers.RandomChoice([layers.MixUp(0.8), layers.CutMix(1.0)], batchwise=True)]
    normalize = _on_images(
        lambda images: (images / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    )
    cutout = layers.RandomCutout((0.14, 0.58), (0.14, 0.58), "gaussian_noise")
    policy = layers.RandAugment(full, magnitude=0.9, magnitude_stddev=0.05, rate=0.5)

    def decode(file: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.io.decode_jpeg(file, 3), tf.float32)

    flip = layers.RandomFlip()
    yield from _layer_pipelines(
        "keras-cv", decode, [crop, flip], [normalize, cutout, *mixing], policy
    )
    no_cutout = _layer_pipelines(
        "keras-cv without RandomCutout", decode, [crop, flip], [normalize, *mixing], policy
    )
    yield next(no_cutout)


def _on_images(function: Callable) -> Callable:
    return lambda inputs: inputs | {"images": function(inputs["images"])}


def keras_contenders() -> Iterator[tuple[str, Run]]:
    """keras.layers: it has no random resized crop, so the image is resized to 256 and cropped."""
    import keras
    import tensorflow as tf

    layers = keras.layers
    image_layers = [
        layers.Resizing(256, 256),
        layers.RandomCrop(SIDE, SIDE),
        layers.RandomFlip("horizontal"),
    ]
    scale = layers.Normalization(mean=[123.7, 116.3, 103.5], variance=[3410.0, 3263.0, 3292.0])
    erase, mixing = layers.RandomErasing(0.25, scale=(0.02, 0.33)), layers.CutMix((1.0, 1.0))
    batch_layers = [_on_images(scale), _on_images(erase), mixing]
    policy = layers.RandAugment(factor=0.9)

    def decode(file: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.io.decode_jpeg(file, 3), tf.float32)

    yield from _layer_pipelines("keras.layers", decode, image_layers, batch_layers, policy)


def _pil_batches(transform: Callable, count: int) -> Iterator[list]:
    files = jpeg_files()
    for start in range(0, count - BATCH + 1, BATCH):
        chosen = (files[(start + index) % FILES] for index in range(BATCH))
        yield [transform(Image.open(io.BytesIO(file)).convert("RGB")) for file in chosen]


def timm_contenders() -> Iterator[tuple[str, Run]]:
    """What timm costs with Pillow, in this process: no worker processes and no hand-over between
    them.
    """
    import torch
    from timm.data import Mixup, auto_augment, create_transform

    torch.set_num_threads(1)
    # Pillow 13 refuses the 0 bits that timm asks for about once in 650 images.
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **_: ImageOps.posterize(
        image, max(bits, 1)
    )
    images = [Image.fromarray(image) for image in crops()]
    whole = create_transform(
        SIDE,
        is_training=True,
        auto_augment=POLICY,
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        color_jitter=None,
    )
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    settings = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    policy = auto_augment.rand_augment_transform(POLICY, settings)

    def unmixed(count: int) -> None:
        for batch in _pil_batches(whole, count):
            torch.stack(batch)

    def mixed(count: int) -> None:
        for batch in _pil_batches(whole, count):
            mixup(torch.stack(batch), torch.arange(BATCH))

    def alone(count: int) -> None:
        for index in range(count):
            np.asarray(policy(images[index % FILES]))

    yield "timm + Pillow: whole recipe without mixing", unmixed
    yield "timm + Pillow: whole recipe", mixed
    yield "timm + Pillow: RandAugment alone", alone


# what must be importable, its contenders, and how many times fewer images they are given
CONTENDERS = {
    "deit_tf": (("tensorflow", "deit_tf"), deit_tf_contenders, 1),
    "keras-cv": (("tensorflow", "keras_cv"), keras_cv_contenders, 1),
    "keras.layers": (("tensorflow", "keras"), keras_contenders, 8),
    "timm": (("torch", "timm"), timm_contenders, 1),
}


def collect(skip: set[str]) -> tuple[dict[str, tuple[Run, int]], list[str]]:
    """Contenders by name with their divisor, and what was left out."""
    chosen, left_out = {}, []
    for name, (modules, contenders, fewer) in CONTENDERS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if name in skip or missing:
            left_out.append(
                f"{name} "
                f"({'not asked for' if name in skip else 'not installed: ' + ', '.join(missing)})"
            )
            continue
        chosen |= {label: (run, fewer) for label, run in contenders()}
    return chosen, left_out


def settle() -> None:
    """Wait until this process rests: what it still prepares ahead belongs to the turn that just
    ended.
    """
    before, now = -1.0, time.process_time()
    while now - before > 0.002:
        time.sleep(0.05)
        before, now = now, time.process_time()


def measure(
    contenders: dict[str, tuple[Run, int]], rounds: int, images: int
) -> dict[str, dict[str, float]]:
    """CPU milliseconds per image and images per second; the contenders take turns."""
    cpu = {name: [] for name in contenders}
    rate = {name: [] for name in contenders}
    for run, fewer in contenders.values():
        run(max(BATCH, images // fewer // 4))  # traces, warms up
        settle()

    for _ in range(rounds):
        for name, (run, fewer) in contenders.items():
            count = max(1, images // fewer // BATCH) * BATCH
            wall, process = time.perf_counter(), time.process_time()
            run(count)
            rate[name].append(count / (time.perf_counter() - wall))
            settle()
            cpu[name].append((time.process_time() - process) / count * 1e3)

    return {
        name: {
            "cpu_ms_best": min(cpu[name]),
            "cpu_ms_median": statistics.median(cpu[name]),
            "images_per_s": max(rate[name]),
        }
        for name in contenders
    }


def show(results: dict[str, dict[str, float]], left_out: list[str], title: str) -> None:
    """Print the table."""
    table = Table("pipeline", title=title)
    for column in ("CPU ms / image, best", "median", "images / s, best"):
        table.add_column(column, justify="right")

    for name, row in results.items():
        table.add_row(
            name,
            f"{row['cpu_ms_best']:.2f}",
            f"{row['cpu_ms_median']:.2f}",
            f"{row['images_per_s']:.0f}",
        )

    console = Console()
    console.print(table)
    for line in left_out:
        console.print(f"left out: {line}")


def main() -> None:
    """Measure what is installed and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="turns of each contender; the best and the median are shown",
    )
    parser.add_argument(
        "--images", type=int, default=512, help="images per turn (keras.layers: an eighth)"
    )
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=list(CONTENDERS), help="contenders to leave out"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well")
    args = parser.parse_args()
    contenders, left_out = collect(set(args.skip))
    results = measure(contenders, args.rounds, args.images)
    title = (
        f"{JPEG_SIZE[1]}x{JPEG_SIZE[0]} JPEG to {SIDE}x{SIDE}, batch {BATCH}; {args.rounds} "
        f"rounds of {args.images}"
    )
    show(results, left_out, f"{title}; {os.cpu_count()} cores")
    if args.json:
        settings = {
            "rounds": args.rounds,
            "images": args.images,
            "cpus": os.cpu_count(),
        }
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(
                {"settings": settings, "results": results, "left_out": left_out}, file, indent=2
            )


if __name__ == "__main__":
    main()
