"""A student that starts from a run or a file has its shape, and what contradicts it is named."""

from dataclasses import replace

import numpy as np
import pytest

import deit_tf
from deit_tf.config import DataConfig, StudentConfig, TrainConfig
from deit_tf.files import write_json
from deit_tf.runs import shaped_as_begun, shaped_as_weights, write_config

SHAPE = dict(patch_size=4, embed_dim=24, depth=1)
GRAY = dict(mean=(0.5,), std=(0.25,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of gray pictures of 16 x 24 pixels."""
    folder = tmp_path_factory.mktemp("run")
    model = deit_tf.create_model(
        "deit_test", num_classes=3, image_size=(16, 24), num_channels=1, **SHAPE
    )
    model.save(folder / "student.keras")
    write_json({"split": "threshold"}, folder / "facts.json")
    student = StudentConfig("deit_test", (16, 24), **SHAPE)
    write_config(TrainConfig(model=student, data=DataConfig(**GRAY)), folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A masked model outside of any run, without a distillation token."""
    place = tmp_path_factory.mktemp("file") / "pretrained.keras"
    deit_tf.create_masked_model(
        "deit_test", image_size=16, distilled=False, num_channels=3, **SHAPE
    ).save(place)
    return place


def config(weights, **model):
    return TrainConfig(model=StudentConfig(weights=str(weights), **model))


def test_it_has_the_shape_image_size_and_channels_of_the_run(run, caplog):
    with caplog.at_level("INFO"):
        shaped = shaped_as_weights(config(run, drop_path_rate=0.3))
    size = (16, 24)
    assert shaped.model == StudentConfig(
        "deit_test", size, **SHAPE, weights=str(run), drop_path_rate=0.3
    )
    assert (shaped.data.mean, shaped.data.std) == (GRAY["mean"], GRAY["std"])
    assert "model.name deit_test, model.image_size (16, 24), model.patch_size 4" in caplog.text
    assert shaped_as_weights(config(run / "student.keras")).model.depth == 1


def test_what_is_given_stays(run):
    given = replace(config(run, image_size=32), data=DataConfig(mean=(0.4, 0.4, 0.4)))
    shaped = shaped_as_weights(given)
    assert shaped.model.image_size == 32 and shaped.data.mean == (0.4, 0.4, 0.4)
    named = shaped_as_weights(config(run, name="deit_test"))
    assert named.model.image_size is None  # that of the name
    assert (named.model.depth, named.model.patch_size) == (1, 4)


def test_a_file_outside_of_a_run_gives_its_shape(file):
    shaped = shaped_as_weights(config(file))
    assert shaped.model.name == "deit_tiny_patch16_224"  # of the models without that token
    assert (shaped.model.image_size, shaped.model.embed_dim) == (16, 24)
    assert shaped.model.num_heads is None  # as the name has it
    assert shaped.data == DataConfig()
    student = deit_tf.create_model(shaped.model.name, num_classes=5, **shaped.model.overrides())
    assert student.input_shape == (None, 16, 16, 3) and student.output_shape == (None, 5)


@pytest.mark.parametrize(
    "given, had, received",
    [
        ({"depth": 3}, "depth=1", "Received: depth=3"),
        ({"embed_dim": 48, "patch_size": 8}, "patch_size=4, embed_dim=24", "patch_size=8, embed"),
        (
            {"name": "deit_small_patch16_224", "depth": 1},
            "patch_size=4, embed_dim=24, num_heads=3, distilled=True",
            "distilled=False of deit_small_patch16_224",
        ),
    ],
)
def test_a_contradiction_names_both_values(run, given, had, received):
    with pytest.raises(ValueError) as refused:
        shaped_as_weights(config(run, **given))
    text = str(refused.value)
    assert f"{run} are those of a model of {had}. Leave out the name" in text and received in text


def test_a_run_that_goes_on_keeps_the_shape_it_was_begun_with(run):
    """Also where what it started from is gone, or came before the weights gave it a shape."""
    begun = shaped_as_weights(config(run))
    assert shaped_as_begun(config(run), begun) == begun
    assert shaped_as_begun(config(run, depth=2), begun).model.depth == 2
    assert shaped_as_begun(config("elsewhere"), begun) == config("elsewhere")


def test_other_weights_leave_the_config_as_it_is(tmp_path):
    for given in (TrainConfig(), config("hf://facebook/nobody"), config(tmp_path / "nothing")):
        assert shaped_as_weights(given) is given


def test_a_model_without_a_name_is_that_of_the_weights(run):
    like = deit_tf.create_model(weights=run, num_classes=7, image_size=(32, 24))
    assert like.input_shape == (None, 32, 24, 1) and like.output_shape == (None, 7)
    assert len([layer for layer in like.layers if layer.name.startswith("blocks.")]) == 1
    same = deit_tf.create_model(weights=run)
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 1)).astype("float32")
    before = deit_tf.create_model(
        "deit_test", weights=run, num_classes=3, image_size=(16, 24), **SHAPE
    )
    np.testing.assert_array_equal(same(images), before(images))
    with pytest.raises(ValueError, match="a model of depth=1. .* Received: depth=2"):
        deit_tf.create_model(weights=run, depth=2)
    with pytest.raises(ValueError, match="`name` is one of list_models"):
        deit_tf.create_model()
