"""What the small exports of conftest.py hold, and ways to damage a file."""

import importlib.util

import deit_tf

CLASS_NAMES = ("ant", "Bär, é", "[/x]", "日本")
PROCESSOR = deit_tf.ImageProcessor(
    16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), resize_to=20, interpolation="bilinear"
)
MUTATIONS = 300
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("tf2onnx", "onnx", "onnxruntime"))


def damaged(content, random):
    """Content that is cut, or has a bit or a byte changed anywhere or near either end."""
    content, kind = bytearray(content), random.integers(4)
    if kind == 0:
        return bytes(content[: random.integers(len(content))])
    if kind == 1:
        content[random.integers(len(content))] ^= 1 << random.integers(8)
    else:
        near = random.integers(min(2000, len(content)))
        at = near if kind == 2 else len(content) - 1 - near
        content[at] ^= random.integers(1, 256)
    return bytes(content)
