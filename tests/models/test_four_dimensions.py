"""No tensor of a network has more than four axes, and no slice drops one: mobile GPUs take nothing
else."""

import keras
import pytest
import tensorflow as tf

import deit_tf

SHAPE = (32, 48)  # of the images, so that no two axes are equally long


def build(**config):
    return deit_tf.create_model("deit_test", num_classes=10, image_size=SHAPE, **config)


def only(model, output):
    return keras.Model(model.input, model.output[output])


NETWORKS = {
    "distilled": build,
    "plain": lambda: build(distilled=False),
    "DeiT III": lambda: build(distilled=False, init_values=1e-6, no_embed_class=True),
    "heads": lambda: deit_tf.heads(build()),
    "masked": lambda: deit_tf.create_masked_model("deit_test", image_size=SHAPE),
    "features": lambda: deit_tf.features(build()),
    "rollout": lambda: only(deit_tf.attention_maps(build()), "rollout"),
}


def operations(model, batch, training=False):
    """What TensorFlow runs; with the gradients where `training`."""

    def run(inputs):
        outputs = model(inputs, training=training)
        if training:
            total = sum(tf.reduce_sum(tf.square(each)) for each in tf.nest.flatten(outputs))
            return outputs, tf.gradients(total, [v.value for v in model.trainable_variables])
        return outputs

    specs = tf.nest.map_structure(
        lambda tensor: tf.TensorSpec((batch, *tensor.shape[1:]), tensor.dtype), model.input
    )
    return tf.function(run, autograph=False).get_concrete_function(specs).graph.get_operations()


def too_many_axes(operation):
    return any(tensor.shape.rank is None or tensor.shape.rank > 4 for tensor in operation.outputs)


def drops_an_axis(operation):
    """A number out of a shape is none of the network's tensors."""
    if operation.type == "StridedSlice":
        return operation.get_attr("shrink_axis_mask") and operation.inputs[0].shape.rank > 1
    return operation.type == "Unpack"


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_four_axes_at_most(name, batch):
    found = operations(NETWORKS[name](), batch)
    assert len(found) > 100
    for wrong in (too_many_axes, drops_an_axis):
        assert not [op.name for op in found if wrong(op)]


@pytest.mark.parametrize("name", ["distilled", "masked"])
def test_so_have_their_gradients(name):
    found = operations(NETWORKS[name](), None, training=True)
    assert len(found) > 400
    for wrong in (too_many_axes, drops_an_axis):
        assert not [op.name for op in found if wrong(op)]


def test_the_test_sees_what_it_is_for():
    image = keras.Input((4, 6, 3))
    rows = keras.Model(image, keras.ops.reshape(image, (-1, 2, 2, 6, 3))[:, 0])
    found = operations(rows, 1)
    assert any(map(too_many_axes, found)) and any(map(drops_an_axis, found))
