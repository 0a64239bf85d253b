"""A `.tflite` file with all outputs says what Keras says: logits, both heads, the rollout."""

import numpy as np
import pytest
from export_samples import CLASS_NAMES, PROCESSOR

import deit_tf
from deit_tf.exporting.compare import EXACT, ExportError
from deit_tf.exporting.litert import load_tflite
from deit_tf.exporting.outputs import expected_outputs, verify_outputs
from deit_tf.exporting.tflite import VARIANTS, export_tflite


@pytest.fixture(scope="module", params=["float32", "int8"])
def exported(request, small_model, small_images, tmp_path_factory):
    """A variant's name, its file and its report; int8 has its own way to name outputs."""
    file = tmp_path_factory.mktemp("outputs") / "small.tflite"
    options = {"processor": PROCESSOR, "labels": CLASS_NAMES, "calibration": small_images}
    report = export_tflite(
        small_model, file, variant=request.param, images=small_images, outputs="all", **options
    )
    return request.param, file, report


def test_each_output_equals_keras(exported, small_model, small_images):
    variant, file, report = exported
    found, heads = load_tflite(file).outputs(small_images), deit_tf.heads(small_model)(small_images)
    rollout = deit_tf.attention_maps(small_model)(small_images)["rollout"]
    expected = {
        "logits": small_model(small_images),
        "heads": np.stack([heads["cls"], heads["dist"]], axis=1),
        "rollout": rollout,
    }
    assert found.keys() == expected.keys()
    # rounding; 8-bit weights and activations of one block
    tolerance = {"float32": 1e-5, "int8": 5e-2}[variant]
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() / np.abs(values).max() < tolerance, name
    assert sorted(report["outputs"]) == ["heads", "rollout"]


def test_the_graph_computes_attention_once(exported):
    _, _, report = exported
    assert report["ops"]["SOFTMAX"] == 1  # of one block, for the logits and for the rollout


def test_the_heads_are_found_beside_their_mean(exported, small_images):
    _, file, _ = exported
    logits = load_tflite(file).logits(small_images)
    np.testing.assert_allclose(logits["mean"], (logits["cls"] + logits["dist"]) / 2, atol=1e-5)
    assert np.abs(logits["cls"] - logits["dist"]).max() > 0.1
    np.testing.assert_array_equal(load_tflite(file)(small_images), logits["mean"])


def test_another_classifier_gives_its_logits_alone(tmp_path):
    model = deit_tf.create_model("deit_test", num_classes=4, image_size=16, distilled=False)
    report = export_tflite(model, tmp_path / "plain.tflite", outputs="all")
    assert sorted(report["outputs"]) == ["rollout"]


@pytest.mark.parametrize("name", ["heads", "rollout"])
def test_an_output_that_differs_is_refused(small_model, small_images, name):
    expected = expected_outputs(small_model, small_images)
    wrong = expected | {name: expected[name][:, ::-1]}
    with pytest.raises(ExportError, match=f"m.tflite differs .* output '{name}': max_difference"):
        verify_outputs("m.tflite", wrong, expected, EXACT)
    del wrong[name]
    with pytest.raises(ExportError, match=f"no output '{name}', only"):
        verify_outputs("m.tflite", wrong, expected, VARIANTS["int8"].limits)


def test_other_outputs_are_refused(small_model, tmp_path):
    with pytest.raises(ValueError, match="`outputs` is one of logits, all. Received: 'rollout'"):
        export_tflite(small_model, tmp_path / "m.tflite", outputs="rollout")
