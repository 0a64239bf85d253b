"""How a picture is to be turned: the Exif tag that phones and cameras write into JPEG files.

The numbers 1 to 8 are those of TIFF 6.0 and Exif 2.3, tag 0x0112; turned as Pillow's
`ImageOps.exif_transpose` does.
"""

import functools

import tensorflow as tf

from deit_tf.data.tracing import traced_once

LOOKED_THROUGH = 1 << 17  # bytes: segments before the picture have at most 64 KB each
_TAG, _SHORT = 0x0112, 3
_EXIF = tuple(b"Exif\0\0")
_ENTRY = 12  # bytes of an entry: tag, type, count, value


@functools.partial(traced_once, signature=[tf.TensorSpec([], tf.string)])
def exif_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """The orientation of an image file, int32 [], 1 to 8.

    1, as it is, where the file says nothing, says nonsense, or is no JPEG file.

    Args:
        encoded: tf.string [], the bytes of the file.
    """
    as_it_is = functools.partial(tf.constant, 1)
    return tf.cond(tf.io.is_jpeg(encoded), functools.partial(_of_jpeg, encoded), as_it_is)


def turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn [H, W, 3] upright, or [W, H, 3] where it lies on its side."""
    branches = [
        functools.partial(_turned, image, axes, on_its_side)
        for on_its_side in (False, True)
        for axes in ([], [1], [0, 1], [0])
    ]
    turned = tf.switch_case(orientation - 1, branches)

    return tf.ensure_shape(turned, [None, None, image.shape[-1]])


def _turned(image: tf.Tensor, axes: list[int], on_its_side: bool) -> tf.Tensor:
    # In the branch: what stands outside of it is computed for upright images as well.
    source = _transposed(image) if on_its_side else image
    return tf.reverse(source, axes) if axes else tf.identity(source)


def _transposed(image: tf.Tensor) -> tf.Tensor:
    """[H, W, 3] to [W, H, 3], by the places of its pixels: of a transpose of bytes oneDNN complains
    in every process, where the CPU has no AVX512.
    """
    height, width, channels = tf.unstack(tf.shape(image))
    places = tf.range(width)[:, None] + width * tf.range(height)[None, :]  # [W, H]
    return tf.gather(tf.reshape(image, [-1, channels]), places)


def _of_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    head = tf.strings.substr(encoded, 0, LOOKED_THROUGH)
    # Zeros behind, so that what points beyond the end reads zeros.
    content = tf.pad(tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int32), [[0, 32]])
    found, start = _find_exif(content)
    return tf.cond(found, lambda: _of_tiff(content, start), lambda: tf.constant(1))


def _find_exif(content: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether there is a segment of Exif, and where its TIFF header begins."""
    last = tf.size(content) - 32

    def is_exif(at):
        return (content[at + 1] == 0xE1) & tf.reduce_all(content[at + 4 : at + 10] == _EXIF)

    def goes_on(at):
        # Application segments and comments precede what the picture itself needs.
        marker = content[at + 1]
        header = ((marker >= 0xE0) & (marker <= 0xEF)) | (marker == 0xFE)
        return (at < last) & (content[at] == 0xFF) & header & ~is_exif(at)

    def following(at):
        return [tf.minimum(at + 2 + _number(content, at + 2, 2, little=False), last)]

    (at,) = tf.while_loop(goes_on, following, [tf.constant(2)])
    return (at < last) & (content[at] == 0xFF) & is_exif(at), at + 10


def _of_tiff(content: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """The tag of the first directory behind a TIFF header."""
    little = content[start] == ord("I")
    last = tf.size(content) - 32
    first = tf.clip_by_value(start + _number(content, start + 4, 4, little), 0, last)
    count = tf.minimum(_number(content, first, 2, little), (last - first) // _ENTRY)

    places = first + 2 + _ENTRY * tf.range(count)  # [entries]
    tags, types = _number(content, places, 2, little), _number(content, places + 2, 2, little)
    values = _number(content, places + 8, 2, little)
    good = (tags == _TAG) & (types == _SHORT) & (values >= 1) & (values <= 8)
    return tf.concat([tf.boolean_mask(values, good), [1]], axis=0)[0]


def _number(content: tf.Tensor, at: tf.Tensor, length: int, little: tf.Tensor | bool) -> tf.Tensor:
    """The whole numbers of so many bytes that begin at `at`."""
    digits = [tf.gather(content, at + i) for i in range(length)]
    ascending = sum(digit * 256**i for i, digit in enumerate(digits))
    descending = sum(digit * 256 ** (length - 1 - i) for i, digit in enumerate(digits))
    return tf.where(little, ascending, descending)
