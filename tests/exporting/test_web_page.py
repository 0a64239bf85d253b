"""The page's JavaScript prepares pictures as `ImageProcessor` does; run by node, without a
browser."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from deit_tf.config import MAX_ASPECT
from deit_tf.data.orientation import exif_orientation, turn
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting import web
from deit_tf.exporting.sidecar import Sidecar, write_sidecar

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not on the PATH")
# Processors by name: short side and squashed, up and down, square and not, odd margins.
PROCESSORS = {
    "cropped": ImageProcessor(32),
    "enlarged": ImageProcessor(96, crop_ratio=0.9, mean=(0.5,) * 3, std=(0.25, 0.2, 0.3)),
    "bilinear": ImageProcessor(33, resize_to=40, interpolation="bilinear"),
    "squashed": ImageProcessor((24, 48), resize_to=(31, 50)),
}


def pictures():
    """uint8 [H, W, 3]: photographs, noise whose bicubic overshoots, stripes, one that grows in
    height while it shrinks in width."""
    china, flower = load_sample_images().images
    random = np.random.default_rng(0)
    return {
        "china": china,
        "flower": flower[7:300, 100:517],
        "noise": random.integers(0, 256, (71, 53, 3), np.uint8),
        "stripes": np.tile(np.uint8([[0], [255], [255]]), (30, 64))[..., None].repeat(3, -1),
        "flat": random.integers(0, 256, (20, 180, 3), np.uint8),
        "small": random.integers(0, 256, (9, 11, 3), np.uint8),
    }


def turned_jpeg(orientation, order):
    """A JPEG file whose Exif tag asks for a turn; `order` is that of its bytes."""
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture = Image.fromarray(load_sample_images().images[0][:40, :60])
    picture.save(file, "JPEG", exif=exif, icc_profile=b"a profile", comment=b"a comment")
    return file.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What node wrote, the cases, and the orientations that it read; one process for all."""
    folder = tmp_path_factory.mktemp("prepared")
    cases = {
        f"{name}-{kind}": (pixels, processor, None)
        for name, pixels in pictures().items()
        for kind, processor in PROCESSORS.items()
    }
    for orientation in (*range(1, 9), 9):
        encoded = turned_jpeg(orientation, "<" if orientation % 2 else ">")
        pixels = tf.io.decode_jpeg(encoded, dct_method="INTEGER_ACCURATE").numpy()
        cases[f"turned-{orientation}"] = (pixels, PROCESSORS["cropped"], encoded)

    described = []
    for name, (pixels, processor, encoded) in cases.items():
        (folder / f"{name}.rgb").write_bytes(pixels.tobytes())
        if encoded:
            (folder / f"{name}.jpg").write_bytes(encoded)
        write_sidecar(folder / "sidecar.json", folder / f"{name}.rgb", Sidecar(processor))
        sidecar = json.loads((folder / "sidecar.json").read_text())
        height, width = pixels.shape[:2]
        described.append({"name": name, "height": height, "width": width, "sidecar": sidecar})

    (folder / "cases.json").write_text(json.dumps(described))
    script = __file__.replace("test_web_page.py", "prepare_pictures.mjs")
    subprocess.run([NODE, script, str(web.PAGE), str(folder)], check=True, timeout=300)
    return folder, cases


@needs_node
@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("name", pictures())
def test_pixels_are_those_of_the_processor(prepared, name, kind):
    folder, cases = prepared
    pixels, processor, _ = cases[f"{name}-{kind}"]
    expected = processor.crop(pixels).numpy()
    found = np.frombuffer((folder / f"{name}-{kind}.pixels").read_bytes(), np.uint8)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)

    # a product and a difference in float32, in the same order
    normalized = np.frombuffer((folder / f"{name}-{kind}.input").read_bytes(), np.float32)
    np.testing.assert_array_equal(
        normalized.reshape(expected.shape), processor.normalize(expected).numpy()
    )


@needs_node
@pytest.mark.parametrize("orientation", (*range(1, 9), 9))
def test_pictures_are_turned_as_their_tag_says(prepared, orientation):
    folder, cases = prepared
    pixels, processor, encoded = cases[f"turned-{orientation}"]
    read = json.loads((folder / "orientations.json").read_text())[f"turned-{orientation}"]
    assert read == int(exif_orientation(encoded)) == (orientation if orientation < 9 else 1)
    expected = processor.crop(turn(tf.constant(pixels), exif_orientation(encoded))).numpy()
    found = np.frombuffer((folder / f"turned-{orientation}.pixels").read_bytes(), np.uint8)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@needs_node
def test_a_browser_gets_pictures_without_what_it_would_turn_them_by(prepared):
    folder, cases = prepared
    *_, encoded = cases["turned-6"]
    with Image.open(folder / "turned-6.plain.jpg") as plain, Image.open(io.BytesIO(encoded)) as own:
        assert not plain.getexif() and "icc_profile" not in plain.info
        assert own.getexif() and plain.info["comment"] == own.info["comment"]
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(own))


def test_the_script_in_the_page_is_the_one_that_it_allows():
    page = (web.PAGE / "index.html").read_text()
    script = re.search(r'<script type="importmap">(.*?)</script>', page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page
    for place in json.loads(script)["imports"].values():
        assert place.removeprefix(f"./{web.RUNTIME}/") in web.RUNTIME_FILES.values()


def test_the_page_names_no_other_server():
    for file in web.PAGE.iterdir():
        assert "://" not in file.read_text(), file.name


def test_it_refuses_the_same_shapes():
    assert f"const MAX_ASPECT = {MAX_ASPECT};" in (web.PAGE / "decode.js").read_text()


def test_the_lock_file_pins_the_runtime():
    lock = json.loads((web.PAGE / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    runtime = packages["node_modules/@litertjs/core"]
    assert runtime["version"] == web.runtime_version()
    assert all(entry["integrity"] and "resolved" not in entry for entry in packages.values())
