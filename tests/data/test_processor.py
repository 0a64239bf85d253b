"""The image processor: from every config that describes one, on every kind of image, equal to
Pillow."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

import deit_tf
from deit_tf.config import DataConfig

ImageProcessor = deit_tf.ImageProcessor
PHOTO = load_sample_images().images[0]  # [427, 640, 3]
HALF = (0.5,) * 3
DEIT = {
    "do_resize": True,
    "size": 256,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": 224,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "feature_extractor_type": "DeiTFeatureExtractor",
}
VIT = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
TIMM = {
    "input_size": [3, 224, 224],
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
}


def pillow(photo, before, size, interpolation):
    """Resize and crop as torchvision does it with Pillow."""
    image = Image.fromarray(photo)
    width, height = image.size
    if isinstance(before, int):
        short = min(width, height)
        before = (before * height // short, before * width // short)
    image = image.resize((before[1], before[0]), getattr(Image.Resampling, interpolation.upper()))
    top, left = (round((b - s) / 2) for b, s in zip(before, size, strict=True))
    return np.asarray(image.crop((left, top, left + size[1], top + size[0])))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("before", [73, 500, (73, 73), (64, 64), (70, 900), (900, 70)])
def test_every_mode_is_pillows(before, interpolation):
    processor = ImageProcessor(64, resize_to=before, interpolation=interpolation)
    ours = processor.crop(tf.constant(PHOTO)).numpy()
    # Both round to whole gray levels after each of two passes.
    assert np.abs(np.int32(ours) - pillow(PHOTO, before, (64, 64), interpolation)).max() <= 1


@pytest.mark.parametrize(
    "config, expected",
    [
        (DEIT, ImageProcessor((224, 224), resize_to=(256, 256))),
        (
            VIT,
            ImageProcessor(
                (224, 224), mean=HALF, std=HALF, resize_to=(224, 224), interpolation="bilinear"
            ),
        ),
        (
            DEIT | {"size": {"shortest_edge": 438}, "crop_size": {"height": 384, "width": 300}},
            ImageProcessor((384, 300), resize_to=438),
        ),
        (
            DEIT | {"do_normalize": False},
            ImageProcessor((224, 224), mean=(0.0,) * 3, std=(1.0,) * 3, resize_to=(256, 256)),
        ),
        (TIMM, ImageProcessor((224, 224), crop_ratio=0.9)),
        (
            {"architecture": "vit", "pretrained_cfg": TIMM | {"crop_mode": "squash"}},
            ImageProcessor((224, 224), crop_ratio=0.9, resize_to=(248, 248)),
        ),
    ],
)
def test_configs_of_the_libraries(tmp_path, config, expected):
    assert ImageProcessor.from_preprocessor_config(config) == expected
    name = "config.json" if "architecture" in config else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps(config))
    assert ImageProcessor.from_preprocessor_config(tmp_path) == expected
    assert ImageProcessor.from_preprocessor_config(tmp_path / name) == expected


@pytest.mark.parametrize("layout", ["huggingface", "timm"])
@pytest.mark.parametrize("protocol", ["deit", "timm", "huggingface"])
@pytest.mark.parametrize("size", [224, 384, (224, 320)])
def test_out_and_in_again(layout, protocol, size):
    processor = ImageProcessor(size, mean=(0.1, 0.2, 0.3)).with_protocol(protocol)
    again = ImageProcessor.from_preprocessor_config(
        json.loads(json.dumps(processor.to_preprocessor_config(layout)))
    )
    assert (again.size, again.before_crop, again.mean) == (
        processor.size,
        processor.before_crop,
        processor.mean,
    )
    assert again.interpolation == "bicubic" and str(again) == str(processor)


@pytest.mark.parametrize(
    "protocol, size, before",
    [
        ("deit", 224, 256),
        ("deit", 384, 438),
        ("timm", 224, 248),
        ("timm", 384, 384),
        ("huggingface", 224, (256, 256)),
        ("huggingface", 384, (438, 438)),
    ],
)
def test_protocols(protocol, size, before):
    processor = ImageProcessor.from_model_name(f"deit_base_distilled_patch16_{size}", protocol)
    assert (processor.size, processor.before_crop) == ((size, size), before)
    assert (
        ImageProcessor.from_model_name(f"facebook/deit-base-patch16-{size}", protocol) == processor
    )


def test_from_a_config_of_the_data():
    data = DataConfig(crop_ratio=0.9, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert ImageProcessor.from_config(data, 32) == ImageProcessor(32, 0.9, (0.5,) * 3, (0.25,) * 3)


def test_all_kinds_of_images_in_one_batch(tmp_path):
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "png")
    path = tmp_path / "photo.png"
    path.write_bytes(file.getvalue())
    processor = ImageProcessor(32)
    expected = processor(tf.constant(file.getvalue())).numpy()
    kinds = [path, str(path), file.getvalue(), Image.fromarray(PHOTO), PHOTO]
    for image in processor.batch(kinds):
        np.testing.assert_array_equal(image, expected)
    gray = np.uint8(PHOTO[:100, :50, 0])
    batch = processor.batch([gray, gray[..., None], Image.fromarray(gray), PHOTO])
    assert batch.shape == (4, 32, 32, 3) and batch.dtype == np.float32
    np.testing.assert_array_equal(batch[0], batch[1])
    np.testing.assert_array_equal(batch[0], batch[2])
    np.testing.assert_array_equal(processor.batch(PHOTO)[0], expected)
    alpha = Image.fromarray(PHOTO).convert("RGBA")
    np.testing.assert_array_equal(processor.batch([alpha])[0], expected)


def test_images_that_are_none(tmp_path):
    processor = ImageProcessor(32)
    (tmp_path / "note.jpg").write_text("no image")
    with pytest.raises(ValueError, match="note.jpg is no image that can be decoded"):
        processor.batch([PHOTO, tmp_path / "note.jpg"])
    with pytest.raises(ValueError, match="image 1 is no image"):
        processor.batch([PHOTO, b"\xff\xd8\xff\xe0"])
    with pytest.raises(FileNotFoundError, match="nothing.jpg"):
        processor.batch([tmp_path / "nothing.jpg"])
    with pytest.raises(ValueError, match="`images` must hold one"):
        processor.batch([])
    for wrong in (
        PHOTO.astype("float32"),
        PHOTO[None],
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        7,
    ):
        with pytest.raises(
            ValueError, match=r"image 0 must be a path, bytes, a PIL image or a uint8 array"
        ):
            processor.batch([wrong])


def test_the_same_object_inside_tf_data():
    file = tf.io.encode_png(PHOTO)
    processor = ImageProcessor.from_preprocessor_config(VIT)
    (mapped,) = tf.data.Dataset.from_tensors(file).map(processor).as_numpy_iterator()
    np.testing.assert_array_equal(mapped, processor.batch([PHOTO])[0])


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: ImageProcessor(32, interpolation="nearest"),
            "`interpolation` is bicubic or bilinear",
        ),
        (lambda: ImageProcessor(32, resize_to=31), "`resize_to` must not be smaller"),
        (lambda: ImageProcessor(224, resize_to=70000), "`resize_to` takes a whole number"),
        (lambda: ImageProcessor(224, crop_ratio=0.001), "`image_size / crop_ratio` takes a whole"),
        (lambda: ImageProcessor(224.0), "`image_size` takes a whole number"),
        (lambda: ImageProcessor(None), "`image_size` takes a whole number"),
        (lambda: ImageProcessor(True), "`image_size` takes a whole number"),
        (lambda: ImageProcessor(32, resize_to=(64, 31)), "`resize_to` must not be smaller"),
        (lambda: ImageProcessor(32, std=(0.0, 1.0, 1.0)), "`std` takes one finite number"),
        (
            lambda: ImageProcessor(32).with_protocol("imagenet"),
            "`protocol` is one of deit, timm, huggingface",
        ),
        (lambda: ImageProcessor.from_model_name("regnety_160"), "must end in an image size"),
        (
            lambda: ImageProcessor.from_preprocessor_config(DEIT | {"do_rescale": False}),
            "`do_rescale`",
        ),
        (
            lambda: ImageProcessor.from_preprocessor_config(DEIT | {"rescale_factor": 1.0}),
            "`rescale_factor`",
        ),
        (lambda: ImageProcessor.from_preprocessor_config(DEIT | {"resample": 0}), "`resample`"),
        (lambda: ImageProcessor.from_preprocessor_config(DEIT | {"size": "256"}), "`size`"),
        (
            lambda: ImageProcessor.from_preprocessor_config(TIMM | {"crop_mode": "border"}),
            "`crop_mode`",
        ),
        (
            lambda: ImageProcessor((9, 9), resize_to=(10, 30)).to_preprocessor_config("timm"),
            "timm has no crop ratio",
        ),
        (
            lambda: ImageProcessor.from_preprocessor_config(VIT | {"size": {"shortest_edge": 9}}),
            "Without `do_center_crop`",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder with one"):
        ImageProcessor.from_preprocessor_config(tmp_path)
    for content, message in (("{", "is no JSON file"), ("[]", "must hold a JSON object")):
        (tmp_path / "preprocessor_config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            ImageProcessor.from_preprocessor_config(tmp_path)
