"""What a model is made of: blocks, heads, the image and not the mask."""

import keras
import pytest

import deit_tf
from deit_tf.config import height_width
from deit_tf.models.parts import blocks, has_two_heads, image_size, is_deit
from deit_tf.models.resnet import create_resnet

SMALL = dict(image_size=(16, 24), depth=3, embed_dim=12)
MODELS = {
    "distilled": lambda: deit_tf.create_model("deit_test", **SMALL),
    "plain": lambda: deit_tf.create_model("deit_test", distilled=False, **SMALL),
    "masked": lambda: deit_tf.create_masked_model("deit_test", **SMALL),
    "convnet": lambda: create_resnet("resnet8", image_size=(16, 24)),
}


@pytest.mark.parametrize(
    "name, count, deit, two",
    [
        ("distilled", 3, True, True),
        ("plain", 3, True, False),
        ("masked", 3, False, False),
        ("convnet", 0, False, False),
    ],
)
def test_parts(name, count, deit, two):
    model = MODELS[name]()
    assert [block.name for block in blocks(model)] == [f"blocks.{i}" for i in range(count)]
    assert (is_deit(model), has_two_heads(model)) == (deit, two)
    assert image_size(model) == (16, 24)


def test_a_layer_by_the_name_alone_makes_no_deit():
    image = keras.Input((16, 16, 3))
    tokens = keras.layers.Flatten(name="tokens")(image)
    named = keras.Model(image, keras.layers.Dense(2, name="head")(tokens))
    assert not is_deit(named)


def test_a_size_is_a_number_or_a_pair():
    assert height_width(8) == (8, 8) and height_width([8, 16]) == (8, 16)
    for wrong in (0, (8,), (8, -8), "8", (8, 8.0)):
        with pytest.raises(ValueError, match="`image_size` takes a whole number"):
            height_width(wrong)
