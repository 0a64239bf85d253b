"""Pictures of one channel, and of more than three: decoded, read from folders, augmented."""

import functools
import io
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deit_tf.config import AugmentConfig, DataConfig
from deit_tf.data import ImageProcessor, eval_dataset, open_sources, sample, train_dataset
from deit_tf.data.augment import augment_image
from deit_tf.data.channels import by_threes, gray, left_out, report_left_out
from deit_tf.data.decode import decode_channels
from deit_tf.data.npy import decode_npy, encode_npy
from deit_tf.data.tiff import tiff_pixels
from deit_tf.data.unreadable import naming_unreadable

SEED = tf.constant([3, 4], tf.int64)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def saved(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def tiff(*pages):
    buffer = io.BytesIO()
    first, *others = map(Image.fromarray, pages)
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    return buffer.getvalue()


def test_gray_is_pillows():
    pixels = noise(9, 11, 3)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    np.testing.assert_array_equal(gray(tf.constant(pixels)), expected)
    same = np.repeat(pixels[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(gray(tf.constant(same)), pixels[..., :1])


@pytest.mark.parametrize("shape", [(5, 7, 4), (5, 7, 1), (5, 7), (2, 3, 12)])
def test_an_array_in_a_graph_is_numpys(shape):
    pixels = noise(*shape)
    decode = tf.function(decode_npy, input_signature=[tf.TensorSpec([], tf.string)])
    np.testing.assert_array_equal(decode(saved(pixels)), pixels.reshape(*shape[:2], -1))
    np.testing.assert_array_equal(decode(encode_npy(pixels)), pixels.reshape(*shape[:2], -1))


@pytest.mark.parametrize(
    "content",
    [
        saved(noise(5, 7, 4).astype(np.float32)),
        saved(np.asfortranarray(noise(5, 7, 4))),
        saved(noise(5)),
        saved(noise(5, 7, 4, 2)),
        saved(noise(5, 7, 4))[:-1],
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"",
    ],
)
def test_another_array_is_refused(content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_npy(tf.constant(content))


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_than_the_models_are_refused(channels):
    with pytest.raises(tf.errors.InvalidArgumentError, match="uint8 .H, W, 4|are .npy files"):
        decode_channels(tf.constant(saved(noise(5, 7, 3))), 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"of {channels} channels are .npy"):
        decode_channels(tf.io.encode_png(noise(5, 7, 3)), channels)


def test_pages_are_channels():
    pages = [noise(5, 7) // (i + 1) for i in range(5)]
    np.testing.assert_array_equal(tiff_pixels(tiff(*pages)), np.stack(pages, -1))
    np.testing.assert_array_equal(
        tiff_pixels(tiff(noise(5, 7, 3), pages[1])), np.dstack([noise(5, 7, 3), pages[1]])
    )
    deep = noise(5, 7).astype(np.uint16) * 256 + 17
    np.testing.assert_array_equal(tiff_pixels(tiff(deep))[..., 0], noise(5, 7))
    with pytest.raises(ValueError, match="of one size"):
        tiff_pixels(tiff(noise(5, 7), noise(4, 7)))
    with pytest.raises(ValueError, match="in one of the modes.*Received: page 1 .*, F"):
        tiff_pixels(tiff(noise(5, 7).astype(np.float32)))


def test_three_at_a_time_is_each_channel_alone():
    pixels = tf.constant(noise(6, 6, 5))
    flipped = by_threes(lambda three, _: three[:, ::-1], pixels, 5)
    np.testing.assert_array_equal(flipped, pixels[:, ::-1])
    which = []
    by_threes(lambda three, channels: which.append(channels) or three, pixels, 5)
    assert which == [slice(0, 3), slice(3, 6)]


@pytest.mark.parametrize("recipe", ["deit", "3-augment"])
@pytest.mark.parametrize("channels", [1, 5])
def test_every_recipe_augments_them(recipe, channels):
    """As a pure function of the seed, and within what normalized pixels can be."""
    pixels = noise(20, 30, channels)
    content = tf.io.encode_png(pixels) if channels == 1 else tf.constant(encode_npy(pixels))
    config = AugmentConfig(recipe, random_erasing=1.0).resolve()
    norm = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    augment = functools.partial(augment_image, config=config, size=(16, 24), **norm)
    first, again, other = (augment(content, seed) for seed in (SEED, SEED, SEED + 1))
    assert first.shape == (16, 24, channels) and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert len(np.unique(np.asarray(first)[..., -1])) > 10


def test_a_gray_array_is_augmented_as_the_picture_of_it():
    pixels = noise(20, 30, 1)
    config = AugmentConfig("light").resolve()
    run = functools.partial(augment_image, seed=SEED, config=config, size=(16, 16))
    given = tf.io.encode_png(pixels), tf.constant(encode_npy(pixels))
    picture, array = (run(content, mean=(0.5,), std=(0.25,)) for content in given)
    np.testing.assert_array_equal(picture, array)


def test_no_channel_of_many_looks_at_another():
    """A plane is augmented alone as beside others, whose colors are none."""
    pixels = noise(20, 30, 6)
    pixels[..., 3:] = pixels[..., :3]
    config = AugmentConfig("3-augment", color_jitter=0.9).resolve()
    for seed in range(4):
        norm = {"mean": (0.5,) * 6, "std": (0.25,) * 6}
        args = (tf.constant(encode_npy(pixels)), SEED + seed, config, (16, 16))
        twice = augment_image(*args, **norm)
        np.testing.assert_array_equal(twice[..., :3], twice[..., 3:])
        pixels_alone = pixels.copy()
        pixels_alone[..., 1:] = 255 - pixels_alone[..., 1:]
        alone = augment_image(tf.constant(encode_npy(pixels_alone)), *args[1:], **norm)
        np.testing.assert_array_equal(alone[..., 0], twice[..., 0])


def test_a_gray_picture_is_augmented_as_its_rgb_is():
    """Nothing of the recipe looks at color there: the three channels stay equal."""
    content = tf.io.encode_png(noise(20, 30, 1))
    config = AugmentConfig("deit", random_erasing=0.0).resolve()
    run = functools.partial(augment_image, content, SEED, config, (16, 16))
    one, three = run(mean=(0.5,), std=(0.25,)), run(mean=(0.5,) * 3, std=(0.25,) * 3)
    np.testing.assert_array_equal(one[..., 0], three[..., 0])


@pytest.mark.parametrize(
    ("recipe", "channels", "said"),
    [
        ("deit", 5, "color and contrast is for RGB, and left out"),
        ("deit", 1, "channels: color changes nothing in gray images"),
        ("3-augment", 4, "grayscale and the jitter of saturation and the jitter of contrast is"),
        ("3-augment", 1, "grayscale and the jitter of saturation changes nothing"),
    ],
)
def test_what_is_left_out_is_said(recipe, channels, said, caplog):
    with caplog.at_level("INFO"):
        report_left_out(AugmentConfig(recipe).resolve(), channels)
    assert said in caplog.text
    assert bool(left_out(channels)) == (channels > 3)


def test_nothing_is_said_where_nothing_is_left_out(caplog):
    with caplog.at_level("INFO"):
        report_left_out(AugmentConfig("deit").resolve(), 3)
        report_left_out(AugmentConfig("none").resolve(), 5)
    assert not caplog.text
    with pytest.raises(ValueError, match="keras-cv is for three channels"):
        report_left_out(AugmentConfig("none", auto_augment="keras-cv").resolve(), 1)


@pytest.fixture
def folder(tmp_path):
    """Two classes of five channels, as arrays and as TIFF files; and what has others."""
    for name in ("crops", "woods"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.npy").write_bytes(encode_npy(noise(9, 8, 5) // (i + 1)))
            (tmp_path / name / f"{i}.tif").write_bytes(tiff(*noise(5, 9, 8) // (i + 1)))
        (tmp_path / name / "cut.npy").write_bytes(encode_npy(noise(9, 8, 5))[:-9])
        (tmp_path / name / "four.npy").write_bytes(encode_npy(noise(9, 8, 4)))
        (tmp_path / name / "photo.png").write_bytes(tf.io.encode_png(noise(9, 8, 3)).numpy())
    return tmp_path


def test_a_folder_of_multispectral_pictures(folder, caplog, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("DEIT_TF_CACHE", str(tmp_path_factory.mktemp("cache")))
    five = {"mean": (0.5,) * 5, "std": (0.25,) * 5}
    data = DataConfig(str(folder), batch_size=4, holdout=0.3, **five)
    train, held_out = open_sources(data)
    assert train.size + held_out.size == 12
    assert "photo.png" in caplog.text
    assert "decoded to 5 channels: crops/cut.npy, crops/four.npy" in caplog.text

    processor = ImageProcessor.from_config(data, 8)
    batches = train_dataset(train, data, AugmentConfig("light"), processor, epochs=1)
    images, labels = next(iter(batches))
    assert images.shape == (4, 8, 8, 5) and labels.shape == (4, 2)
    (_, image), *_ = sample(held_out, processor, 1)
    assert image.shape == (8, 8, 5)

    unchecked, _ = open_sources(replace(data, verify=False))
    with pytest.raises(ValueError, match="crops/cut.npy, .*four.npy"), naming_unreadable(unchecked):
        list(eval_dataset(unchecked, data, processor))


def test_images_of_any_kind_for_evaluation(tmp_path):
    pixels = noise(9, 8, 5)
    (tmp_path / "a.npy").write_bytes(encode_npy(pixels))
    (tmp_path / "a.tif").write_bytes(tiff(*pixels.transpose(2, 0, 1)))
    processor = ImageProcessor(8, mean=(0.5,) * 5, std=(0.25,) * 5)
    batch = processor.batch([tmp_path / "a.npy", tmp_path / "a.tif", pixels])
    assert batch.shape == (3, 8, 8, 5)
    np.testing.assert_array_equal(batch[1:], batch[:1].repeat(2, 0))
    with pytest.raises(ValueError, match="image 0 must be a .npy file or an array"):
        processor.batch(pixels[..., :4])
    with pytest.raises(ValueError, match="no .npy file of uint8 .H, W, 5"):
        processor.batch([tf.io.encode_png(pixels[..., :3]).numpy()])

    one = ImageProcessor(8, mean=(0.5,), std=(0.25,))
    rgb = Image.fromarray(pixels[..., :3])
    given = one.batch([rgb, np.asarray(rgb), np.asarray(rgb.convert("L")), saved(pixels[..., 0])])
    assert given.shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(given[1:3], given[:1].repeat(2, 0))


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("layout", ["huggingface", "timm", "keras-hub"])
def test_configs_of_others_have_as_many_numbers(layout, channels):
    mean, std = (0.4,) * channels, (0.3,) * channels
    processor = ImageProcessor(16, 1.0, mean, std)
    config = processor.to_preprocessor_config(layout)
    again = ImageProcessor.from_preprocessor_config(config)
    assert again.num_channels == channels
    np.testing.assert_allclose(again.mean, mean, rtol=1e-12)
    assert config.get("input_size", [channels])[0] == channels
    with pytest.raises(ValueError, match="one finite number per channel"):
        ImageProcessor(16, mean=(0.5,), std=(0.5,) * 3)
