"""Pictures come upright, in range, and none fills the memory; a graph and Pillow see the same."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

import deit_tf
from deit_tf.config import MAX_PIXELS
from deit_tf.data.crop import decode_and_crop
from deit_tf.data.decode import decode_image
from deit_tf.data.headers import has_palette, header_pixels
from deit_tf.data.orientation import exif_orientation

RANDOM = np.random.default_rng(0)
COLORS = RANDOM.integers(256, size=(12, 20, 3), dtype=np.uint8)


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photograph(orientation, order="<"):
    """A JPEG file with an Exif tag; quality 100 and no subsampling."""
    exif = Image.Exif()
    exif.endian = order
    if orientation is not None:
        exif[0x0112] = orientation
        exif[0x010F] = "a camera"
    options = {"quality": 100, "subsampling": 0}
    return encode(Image.fromarray(COLORS), "JPEG", exif=exif, **options)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_pillow_turns_them(orientation, order):
    encoded = photograph(orientation, order)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(decode_image(encoded, upright=True), np.asarray(expected))
    graph = tf.function(lambda content: decode_image(content, upright=True))
    np.testing.assert_array_equal(graph(tf.constant(encoded)), np.asarray(expected))


@pytest.mark.parametrize("orientation", [None, 0, 9, 65535])
def test_without_a_tag_that_makes_sense_nothing_is_turned(orientation):
    encoded = photograph(orientation)
    assert int(exif_orientation(encoded)) == 1
    np.testing.assert_array_equal(decode_image(encoded, True), decode_image(encoded))


def test_other_files_are_not_asked():
    assert int(exif_orientation(encode(Image.fromarray(COLORS), "PNG"))) == 1
    assert int(exif_orientation(b"")) == 1


def test_exif_behind_another_segment_is_found():
    encoded = photograph(6)
    jfif = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + bytes(9)
    assert int(exif_orientation(encoded[:2] + jfif + encoded[2:])) == 6


def test_damaged_exif_turns_nothing_and_never_fails():
    encoded = bytearray(photograph(6))
    start = encoded.index(b"Exif")
    for _ in range(300):
        damaged = bytearray(encoded)
        for place in RANDOM.integers(start - 2, start + 40, size=3):
            damaged[place] = RANDOM.integers(256)
        assert 1 <= int(exif_orientation(bytes(damaged))) <= 8
    for length in range(0, start + 60, 3):
        assert 1 <= int(exif_orientation(bytes(encoded[:length]))) <= 8


def test_published_protocols_leave_the_tag_out():
    encoded = photograph(6)
    processor = deit_tf.ImageProcessor(8, crop_ratio=1.0)
    assert (processor(encoded) != processor.with_protocol("deit")(encoded)).numpy().any()
    assert not processor.with_protocol("timm").exif_orientation


def test_images_of_pillow_are_turned_too():
    encoded = photograph(8)
    processor = deit_tf.ImageProcessor(8)
    by_pillow = processor.batch(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(by_pillow, processor.batch(encoded))


def palette(colors):
    return Image.fromarray(COLORS).quantize(colors)


@pytest.mark.parametrize("colors", [2, 4, 16, 256])
def test_bmp_files_with_a_palette_are_refused_in_graphs_and_read_outside(colors):
    encoded = encode(palette(colors), "BMP")
    assert bool(has_palette(encoded))
    with pytest.raises(tf.errors.InvalidArgumentError, match="BMP file with a palette"):
        decode_image(encoded)
    processor = deit_tf.ImageProcessor(8)
    expected = processor.batch(np.asarray(palette(colors).convert("RGB")))
    np.testing.assert_array_equal(processor.batch(encoded), expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_other_bmp_files_are_read(mode):
    image = Image.fromarray(COLORS).convert(mode)
    encoded = encode(image, "BMP")
    assert not bool(has_palette(encoded))
    np.testing.assert_array_equal(decode_image(encoded), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_headers_tell_the_size(form, options):
    assert float(header_pixels(encode(Image.fromarray(COLORS), form, **options))) == 12 * 20


def test_a_bmp_file_from_the_top_down_tells_its_size():
    encoded = bytearray(encode(Image.fromarray(COLORS), "BMP"))
    encoded[22:26] = struct.pack("<i", -12)
    assert float(header_pixels(bytes(encoded))) == 12 * 20


def test_an_extended_webp_tells_its_size():
    encoded = encode(Image.fromarray(COLORS).convert("RGBA"), "WEBP")
    assert float(header_pixels(encoded)) == 12 * 20


def png_of(width, height):
    """A PNG file whose header promises a size, and which holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + chunk + data


def test_pictures_that_would_fill_the_memory_are_refused_by_their_headers():
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 128,000,000 pixels"):
        decode_image(png_of(side, side))
    with pytest.raises(ValueError, match=f"big.png has {side} x {side} pixels; at most"):
        deit_tf.data.pictures.pixels_of(png_of(side, side), "big.png")


def test_sixteen_bits_are_read_alike_from_files_and_from_pillow(tmp_path):
    values = RANDOM.integers(65536, size=(12, 20), dtype=np.uint16)
    image = Image.fromarray(values)
    image.save(tmp_path / "x.png")
    processor = deit_tf.ImageProcessor(8)
    np.testing.assert_array_equal(processor.batch(tmp_path / "x.png"), processor.batch(image))
    wide = Image.fromarray(values.astype(np.int32))
    np.testing.assert_array_equal(processor.batch(wide), processor.batch(image))


def test_a_webp_file_that_moves_is_refused_by_name(tmp_path):
    frames = [Image.new("RGB", (9, 9), color) for color in ("black", "red")]
    frames[0].save(tmp_path / "moves.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="moves.webp is a WebP file that moves. Save one frame"):
        deit_tf.ImageProcessor(16).batch(tmp_path / "moves.webp")
    frames[0].save(tmp_path / "still.webp")
    assert deit_tf.ImageProcessor(16).batch(tmp_path / "still.webp").shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    "image", [Image.fromarray(np.full((4, 4), 70000, np.int32)), Image.new("F", (4, 4))]
)
def test_values_without_a_range_are_refused(image):
    with pytest.raises(ValueError, match="an image of mode"):
        deit_tf.ImageProcessor(8).batch(image)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_other_mode_is_read(mode):
    image = Image.fromarray(COLORS).convert(mode)
    expected = deit_tf.ImageProcessor(8).batch(np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(deit_tf.ImageProcessor(8).batch(image), expected)


@pytest.mark.parametrize("size", [65536, (8, 65536), 0])
def test_absurd_sizes_are_refused(size):
    with pytest.raises(ValueError, match="from 1 to 4096"):
        deit_tf.ImageProcessor(size)
    with pytest.raises(ValueError, match="from 1 to 4096"):
        deit_tf.ImageProcessor(8, resize_to=size)


@pytest.mark.parametrize("values", [(float("nan"),) * 3, (0.5, float("inf"), 0.5)])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_numbers_that_are_not_finite_are_refused(name, values):
    with pytest.raises(ValueError, match=f"`{name}` takes one finite number per channel"):
        deit_tf.ImageProcessor(8, **{name: values})


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_training_turns_photographs_too(orientation):
    encoded = photograph(orientation)
    upright = Image.fromarray(decode_image(encoded, upright=True).numpy())
    turned_before = encode(upright, "PNG")
    whole = {"size": (12, 12), "seed": [1, 2], "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    np.testing.assert_array_equal(
        decode_and_crop(encoded, **whole, upright=True), decode_and_crop(turned_before, **whole)
    )
