"""From files to batches: sources, their faults, evaluation as Pillow does it, and the training
stream."""

import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from deit_tf.config import AugmentConfig, DataConfig
from deit_tf.data import ImageProcessor, eval_dataset, open_sources, pipeline, train_dataset
from deit_tf.data.augment import traced_augmentation
from deit_tf.data.decode import decode_image
from deit_tf.data.preprocess import height_width, normalize
from deit_tf.data.sources import _shuffle_buffer

GOLDEN = Path(__file__).parents[1] / "golden"
PHOTOS = load_sample_images().images


def write(path, size=(12, 10), seed=0, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **kwargs)


@pytest.fixture
def folder(tmp_path):
    for name, count in {"cat": 7, "dog": 12, "owl": 1}.items():
        for i in range(count):
            write(tmp_path / name / f"{i}.{'png' if i % 2 else 'jpg'}", seed=i)
    return tmp_path


def labels_of(source):
    return Counter(int(item["label"]) for item in source.read(None).as_numpy_iterator())


def test_digits():
    train, held_out = open_sources(DataConfig("digits"))
    assert (train.size, held_out.size, len(train.class_names)) == (1437, 360, 10)
    item = next(iter(held_out.read(None)))
    image = decode_image(item["image"])
    assert image.shape == (8, 8, 3) and int(tf.reduce_max(image)) == 255
    assert set(labels_of(held_out)) == set(range(10))


@pytest.mark.parametrize("calls", [0, -2])
def test_calls_that_are_no_number_of_images_are_refused(calls):
    with pytest.raises(
        ValueError, match=f"`data.num_parallel_calls` is from 1, or -1 .* Received: {calls}"
    ):
        open_sources(DataConfig("digits", num_parallel_calls=calls))


@pytest.fixture(scope="module")
def builders(tmp_path_factory):
    """Folders of one builder, by the format that it is written in."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Shapes(tfds.core.GeneratorBasedBuilder):
        """Six pictures of two classes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(6), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": np.full((9, 8, 3), 20 * i, np.uint8), "label": i % 2}

    folders = {}
    for form in ("tfrecord", "array_record"):
        folders[form] = tmp_path_factory.mktemp(form)
        Shapes(data_dir=folders[form], file_format=form).download_and_prepare()
    return folders


@pytest.mark.parametrize("form", ["tfrecord", "array_record"])
def test_tensorflow_datasets(builders, form):
    config = DataConfig("tfds:shapes", data_dir=str(builders[form]), batch_size=2)
    train, held_out = open_sources(config)
    assert (train.size, held_out.size, train.class_names) == (6, 4, ("a", "b"))
    assert (train.at is not None) == (form == "array_record")
    orders = [
        [int(i["index"]) for i in train.read(tf.constant([0, seed], tf.int64))]
        for seed in (1, 1, 2, 3)
    ]
    assert (
        orders[0] == orders[1]
        and sorted(orders[0]) == list(range(6))
        and len(set(map(tuple, orders))) > 1
    )

    both, _ = open_sources(replace(config, train_split="train+test[:50%]"))
    items = list(both.read(None).as_numpy_iterator())
    assert both.size == len(items) == 8 and [item["index"] for item in items] == list(range(8))
    pictures = [decode_image(item["image"]) for item in items]
    assert {item["label"] for item in items} == {0, 1}
    assert len({int(picture[0, 0, 0]) for picture in pictures}) == 6

    for split in ("tran", "train+tset", "train+"):
        told = f"is one of train, test, or several joined by +. Received: {split!r}"
        with pytest.raises(ValueError, match=re.escape(told)):
            open_sources(replace(config, train_split=split))


@pytest.mark.parametrize("form", ["tfrecord", pytest.param("array_record", marks=pytest.mark.slow)])
def test_a_builder_goes_on_at_any_step(builders, form):
    config = DataConfig("tfds:shapes", data_dir=str(builders[form]), batch_size=2)
    train, augment = open_sources(config)[0], AugmentConfig("none", repeats=2)

    def labels(first_step):
        made = train_dataset(
            train, config, augment, ImageProcessor(8), epochs=2, first_step=first_step
        )
        return [
            (np.mean(images, (1, 2, 3)).tolist(), row.tolist())
            for images, row in made.as_numpy_iterator()
        ]

    whole = labels(0)
    assert len(whole) == 6
    for first_step in (1, 3, 5):
        assert labels(first_step) == whole[first_step:]


def test_a_builder_is_shuffled_by_the_seed_of_the_stream_alone(builders):
    """`keras.utils.set_random_seed(0)`, as a run with the default seed begins, changes nothing."""
    config = DataConfig("tfds:shapes", data_dir=str(builders["tfrecord"]), batch_size=2)
    train, augment = open_sources(config)[0], AugmentConfig("none")

    def pictures(process_seed, seed):
        tf.random.set_seed(process_seed)
        made = train_dataset(train, config, augment, ImageProcessor(8), epochs=4, seed=seed)
        return np.concatenate([images for images, _ in made.as_numpy_iterator()])

    orders = [pictures(process_seed, seed=0) for process_seed in (0, 5)]
    np.testing.assert_array_equal(*orders)
    assert not np.array_equal(orders[0], pictures(5, seed=1))


def test_the_shuffle_buffer_is_bounded_in_bytes():
    def split(images, length):
        return SimpleNamespace(num_examples=images, num_bytes=length)

    imagenet = {"train": split(1_281_167, 144 * 2**30), "few": split(1000, 2**30)}
    assert _shuffle_buffer("train", imagenet, 2048) == 17793  # of 118 kB on average
    assert _shuffle_buffer("train", imagenet, None) == 50_000
    assert _shuffle_buffer("few", imagenet, 2048) == 1000
    assert _shuffle_buffer("train", {"train": split(60_000, 0)}, 2048) == 50_000  # not known
    with pytest.raises(ValueError, match="`data.shuffle_mb` is from 1, or null. Received: 0"):
        open_sources(DataConfig("digits", shuffle_mb=0))


def test_tensorflow_datasets_to_download_by_hand(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class ByHand(tfds.core.GeneratorBasedBuilder):
        """Files behind a registration, as those of imagenet2012 are."""

        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Register at example.org and put pictures.tar there."

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(dl_manager.manual_dir / "pictures.tar")}

        def _generate_examples(self, path):
            yield 0, {"image": str(path), "label": 0}

    with pytest.raises(
        FileNotFoundError, match="(?s)tfds:by_hand cannot be prepared.*put pictures.tar there"
    ):
        open_sources(DataConfig("tfds:by_hand", data_dir=str(tmp_path)))


def test_permutations_are_exact_and_seeded():
    train, _ = open_sources(DataConfig("digits"))
    orders = [
        [int(i) for i in train.read(tf.constant([5, s], tf.int64)).map(lambda item: item["index"])]
        for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(train.size))


def test_evaluation_is_pillows():
    reference = np.load(GOLDEN / "pil_eval_64.npz")
    processor = ImageProcessor(64, crop_ratio=0.875)
    for i, photo in enumerate(PHOTOS):
        difference = np.abs(np.int32(processor.crop(tf.constant(photo))) - reference[f"crop_{i}"])
        # Both round to whole gray levels, Pillow after each of its two passes.
        assert difference.max() <= 1


def as_file(pixels, mode="RGB", form="png", **kwargs):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **kwargs)
    return file.getvalue()


def test_decoding_equals_pillow():
    jpeg = as_file(PHOTOS[0], form="jpeg", quality=80)
    np.testing.assert_array_equal(decode_image(jpeg), np.asarray(Image.open(io.BytesIO(jpeg))))


@pytest.mark.parametrize(
    "mode, form",
    [
        ("L", "png"),
        ("RGBA", "png"),
        ("L", "jpeg"),
        ("CMYK", "jpeg"),
        ("RGB", "bmp"),
        ("P", "gif"),
        ("RGB", "webp"),
    ],
)
def test_every_kind_of_file(mode, form):
    image = ImageProcessor(32)(as_file(PHOTOS[0], mode, form))
    assert image.shape == (32, 32, 3) and np.isfinite(image).all()


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (5, 7), (64, 64)])
def test_any_shape_of_image(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    assert ImageProcessor(32)(as_file(pixels)).shape == (32, 32, 3)
    assert ImageProcessor((32, 48))(as_file(pixels)).shape == (32, 48, 3)


def test_normalize():
    pixels = np.uint8([[[0, 128, 255]]])
    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    # float32 at values up to 5
    np.testing.assert_allclose(
        normalize(pixels, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)), expected, atol=2e-6
    )


def test_bad_processors():
    with pytest.raises(ValueError, match="`crop_ratio` lies in"):
        ImageProcessor(32, crop_ratio=0)
    for size in (0, (3,), "8"):
        with pytest.raises(ValueError, match="`image_size`"):
            height_width(size)


def test_evaluation_set_counts_every_image():
    data = DataConfig("digits", batch_size=100)
    batches = list(eval_dataset(open_sources(data)[1], data, ImageProcessor(16, 1.0)))
    assert [len(labels) for _, labels in batches] == [100, 100, 100, 60]
    assert batches[0][0].shape == (100, 16, 16, 3)


DIGITS = DataConfig("digits", batch_size=50)
FULL = AugmentConfig("deit")


def stream(take=3, data=DIGITS, augment=FULL, size=1437, **kwargs):
    train = replace(open_sources(data)[0], size=size)
    batches = train_dataset(train, data, augment, ImageProcessor(16), **{"epochs": 2, **kwargs})
    return [(np.array(images), np.array(labels)) for images, labels in batches.take(take)]


def equal(a, b):
    return all((x == y).all() and (s == t).all() for (x, s), (y, t) in zip(a, b, strict=True))


def test_the_same_seed_gives_the_same_bytes_at_any_parallelism():
    first = stream(seed=3, data=replace(DIGITS, num_parallel_calls=1))
    assert equal(first, stream(seed=3, data=replace(DIGITS, num_parallel_calls=8)))
    assert not equal(first, stream(seed=4))
    images, labels = first[0]
    assert images.shape == (50, 16, 16, 3) and images.dtype == np.float32
    np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-5)


def test_data_sets_of_the_same_settings_share_one_trace():
    processor = ImageProcessor(16)
    expected = (processor.size, processor.mean, processor.std, processor.exif_orientation)
    traced = traced_augmentation(FULL.resolve(), *expected)
    for seed in (0, 1):
        stream(take=1, seed=seed)
    assert traced.experimental_get_tracing_count() == 1


def test_epochs_differ_and_a_resumed_stream_goes_on_exactly():
    light = dict(take=-1, augment=AugmentConfig("light"), size=320)
    steps = 320 // 50
    whole = stream(**light)
    assert len(whole) == 2 * steps
    assert not equal(whole[:steps], whole[steps:])
    for first in (1, steps - 1, steps, steps + 4):
        resumed = stream(**light, first_step=first)
        assert equal(resumed, whole[first:])


REPLICAS = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from deit_tf.config import AugmentConfig, DataConfig
from deit_tf.data import ImageProcessor, open_sources, train_dataset
data = DataConfig("digits", batch_size=48)
training, augment = open_sources(data)[0], AugmentConfig("deit")
stream = train_dataset(training, data, augment, ImageProcessor(16), epochs=1, seed=3).take(3)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
shared = [[strategy.experimental_local_results(part) for part in batch]
          for batch in strategy.experimental_distribute_dataset(stream)]
whole = list(stream.as_numpy_iterator())
assert len(shared) == len(whole) == 3
for (images, labels), (image_parts, label_parts) in zip(whole, shared):
    assert [len(part) for part in image_parts] == [24, 24]
    assert (np.concatenate(image_parts) == images).all()
    assert (np.concatenate(label_parts) == labels).all()
"""


def test_two_replicas_share_one_global_batch():
    subprocess.run(
        [sys.executable, "-c", REPLICAS], check=True, timeout=300
    )  # devices are split before they are used


def test_repeated_augmentation_shows_each_image_three_times_anew():
    plain = AugmentConfig("light", repeats=3, label_smoothing=0.0)
    images, labels = stream(take=1, augment=plain, data=replace(DIGITS, batch_size=48))[0]
    trios = labels.reshape(16, 3, 10).argmax(-1)
    assert (trios == trios[:, :1]).all()
    views = images.reshape(16, 3, -1)
    assert all((a != b).any() for a, b, c in views) and all((b != c).any() for a, b, c in views)
    assert len(stream(take=-1, augment=plain, epochs=1)) == 1437 // 50


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(
        ValueError, match="between 1 and the 1437 images of digits/train.*Received: 2000"
    ):
        stream(data=replace(DIGITS, batch_size=2000))


@pytest.mark.parametrize("limit, readings", [(2 * 4 * 5 * 4, 1), (2 * 4 * 5 * 4 - 1, 2)])
def test_small_batches_are_made_once(monkeypatch, limit, readings):
    made = []

    def batch(number):
        made.append(number)
        return np.full((4, 5), number, np.float32)

    monkeypatch.setattr(pipeline, "KEPT_BYTES", limit)
    batches = tf.data.Dataset.range(2).map(
        lambda i: tf.ensure_shape(tf.numpy_function(batch, [i], tf.float32), (4, 5))
    )
    kept = pipeline.kept_if_small(batches, 2)
    first, second = ([*kept.as_numpy_iterator()] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(made) == 2 * readings
