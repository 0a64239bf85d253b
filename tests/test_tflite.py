"""Every .tflite variant runs and agrees with Keras; a file that falls short keeps the name `.rejected`."""

import runpy
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_images

import deit_tf
from deit_tf import tflite
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.tflite import ExportError

SCRIPT = Path(__file__).parents[1] / "export" / "to_tflite.py"
# Largest difference from Keras over the largest logit: rounding; 11 bits of mantissa; 8-bit weights in two blocks.
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "dynamic_int8": 5e-2}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model("deit_test", num_classes=10, drop_path_rate=0.1)
    for name in ("head", "head_dist"):  # fresh heads give logits of 0.1, too small to tell right from wrong
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 20)
    return model


@pytest.fixture(scope="module")
def images():
    """Four photographs, float32 [4, 32, 32, 3]."""
    china, flower = load_sample_images().images
    pictures = [china, flower, china[:200, 100:], flower[50:, :150]]
    return np.stack([ImageProcessor(32)(tf.io.encode_png(picture)) for picture in pictures])


def save(model, folder, images_shape, call):
    """A SavedModel with one signature `images` -> `logits` from `call`."""
    module = tf.Module()
    module.weights = [v.value for v in model.variables]
    spec = tf.TensorSpec(images_shape, tf.float32, name="images")
    tf.saved_model.save(module, str(folder), signatures=tf.function(call, input_signature=[spec]))


@pytest.fixture(scope="module")
def exported(model, images, tmp_path_factory):
    """Report and file of every variant."""
    folder = tmp_path_factory.mktemp("phone") / "new"
    files = {variant: folder / f"{variant}.tflite" for variant in tflite.VARIANTS}
    return {v: (tflite.export_tflite(model, file, variant=v, images=images), file) for v, file in files.items()}


@pytest.mark.parametrize("variant", tflite.VARIANTS)
def test_variant_equals_keras(exported, model, images, variant):
    report, file = exported[variant]
    logits, expected = tflite.load_tflite(file)(images), np.asarray(model(images))
    assert np.abs(logits - expected).max() / np.abs(expected).max() < TOLERANCES[variant]
    assert report["max_difference"] == pytest.approx(np.abs(logits - expected).max() / max(1, np.abs(expected).max()))
    assert report["bytes"] == file.stat().st_size
    assert (report["file"], report["variant"]) == (str(file), variant)
    assert (report["compared_on"], report["images"]) == ("images", len(images))


def test_variants_store_smaller_weights(exported):
    size = {variant: file.stat().st_size for variant, (_, file) in exported.items()}
    assert size["float16"] < 0.6 * size["float32"]
    # Kernels of fewer than 1,024 weights stay float32, so a quarter is not reached.
    assert size["dynamic_int8"] < 0.45 * size["float32"]


def test_no_temporary_file_stays(exported):
    files = [file for _, file in exported.values()]
    assert sorted(files[0].parent.iterdir()) == sorted(files)


def test_graph_has_a_fixed_batch(exported):
    report, file = exported["float32"]
    assert not {"SHAPE", "PACK", "BROADCAST_TO", "REDUCE_PROD"} & set(report["ops"])
    assert [report["ops"][op] for op in ("SOFTMAX", "GELU", "CONV_2D")] == [2, 2, 1]
    assert tflite.load_tflite(file).image_size == (32, 32)


def test_mixed_precision_is_exported_in_float32(images, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = deit_tf.create_model("deit_test", num_classes=10)
    finally:
        keras.config.set_dtype_policy("float32")
    plain = deit_tf.create_model("deit_test", num_classes=10)
    plain.set_weights(model.get_weights())
    tflite.export_tflite(model, tmp_path / "m.tflite", images=images)
    assert np.abs(tflite.load_tflite(tmp_path / "m.tflite")(images) - plain(images)).max() < 1e-5


def test_file_without_weights_is_refused(model, images, tmp_path):
    """The known bad export: converts without an error, returns NaN."""
    spec = tf.TensorSpec((1, 32, 32, 3), tf.float32)
    function = tf.function(lambda images: model(images, training=False)).get_concrete_function(spec)
    file = tmp_path / "m.tflite"
    file.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([function], model).convert())
    assert file.stat().st_size < 0.5 * 4 * model.count_params()
    with pytest.raises(ExportError, match="VAR_HANDLE"):
        tflite.verify_tflite(file, images, model(images), weights=model.count_params())


def test_file_that_is_too_small_is_refused(exported, model, images):
    with pytest.raises(ExportError, match="too few"):
        tflite.verify_tflite(exported["float16"][1], images, model(images), weights=model.count_params())


def test_other_logits_are_refused(exported, model, images):
    file, logits, weights = exported["float32"][1], np.array(model(images)), model.count_params()
    with pytest.raises(ExportError, match="max_difference"):
        tflite.verify_tflite(file, images, logits + 1e-3, weights=weights)
    with pytest.raises(ExportError, match="shape"):
        tflite.verify_tflite(file, images, logits[:, :9], weights=weights)


def test_without_images_the_report_says_noise(model, tmp_path):
    report = tflite.export_tflite(model, tmp_path / "m.tflite")
    assert (report["compared_on"], report["images"]) == ("noise", tflite.NOISE_IMAGES)


def test_op_without_builtin_is_refused(model, images, tmp_path):
    save(model, tmp_path / "inverse", (1, 32, 32, 3), lambda images: {"logits": tf.linalg.inv(images[..., 0])})
    with pytest.raises(ExportError, match="built-in"):
        tflite.convert(tmp_path / "inverse")
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "inverse"))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    tmp_path.joinpath("flex.tflite").write_bytes(converter.convert())
    with pytest.raises(ExportError, match="CUSTOM Flex"):
        tflite.verify_tflite(tmp_path / "flex.tflite", images, model(images), weights=0)


def test_rejected_file_keeps_its_name_and_spares_the_old_one(model, images, tmp_path, monkeypatch):
    file = tmp_path / "m.tflite"
    file.write_bytes(b"the last good one")
    strict = replace(tflite.VARIANTS["dynamic_int8"], relative_rms=1e-6)
    monkeypatch.setitem(tflite.VARIANTS, "dynamic_int8", strict)
    with pytest.raises(ExportError, match="m.tflite.rejected differs from Keras: relative_rms"):
        tflite.export_tflite(model, file, variant="dynamic_int8", images=images)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.tflite", "m.tflite.rejected"]
    assert file.read_bytes() == b"the last good one"
    tflite.export_tflite(model, file, images=images)  # a good one takes both places
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.tflite"]
    assert tflite.load_tflite(file)(images).shape == (4, 10)


def test_not_a_number_is_refused(images, tmp_path):
    model = deit_tf.create_model("deit_test", num_classes=10)
    model.get_layer("head").bias.assign(np.full(10, np.nan))
    with pytest.raises(ExportError, match="nan"):
        tflite.export_tflite(model, tmp_path / "m.tflite", images=images)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.tflite.rejected"]


def test_deviation_by_hand():
    measured = tflite.deviation([[1.0, 4.0], [0.0, 0.5]], [[1.0, 2.0], [0.5, 0.0]])
    assert measured["max_difference"] == 1.0  # 2 / max(1, 2)
    assert measured["mean_difference"] == 0.375  # (0 + 2 + 0.5 + 0.5) / 4 / 2
    assert measured["relative_rms"] == pytest.approx((4.5 / 5.25) ** 0.5)
    assert measured["top1_agreement"] == 0.5
    assert tflite.deviation([[0.1]], [[0.2]])["max_difference"] == pytest.approx(0.1)  # divided by 1, not 0.2


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("file", {"file": "model.lite"}),
        ("variant", {"variant": "int4"}),
        ("images", {"images": np.zeros((2, 16, 16, 3), "float32")}),
        ("images", {"images": np.zeros((32, 32, 3), "float32")}),
    ],
)
def test_bad_arguments_are_named(model, tmp_path, name, kwargs):
    kwargs = {"file": "model.tflite", **kwargs}
    with pytest.raises(ValueError, match=f"`{name}`.*Received"):
        tflite.export_tflite(model, tmp_path / kwargs.pop("file"), **kwargs)
    assert list(tmp_path.iterdir()) == []


def test_other_models_and_files_are_refused(tmp_path):
    image = keras.Input((None, None, 3))
    pooled = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    with pytest.raises(ValueError, match="fixed image size"):
        tflite.export_tflite(pooled, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="returns logits"):
        tflite.export_tflite(keras.Model(image, image), tmp_path / "m.tflite")
    tmp_path.joinpath("text.tflite").write_text("no flatbuffer at all")
    with pytest.raises(ValueError):
        tflite.load_tflite(tmp_path / "text.tflite")


def run_script(monkeypatch, *arguments):
    """Exit status, or message, of the script."""
    monkeypatch.setattr("sys.argv", [str(argument) for argument in (SCRIPT, *arguments)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return exit_.value.code


def test_script(model, tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "student.keras", tmp_path / "phone"
    model.save(file)
    assert not run_script(monkeypatch, file, "--out", out, "--variants", "float32,float16")
    assert sorted(entry.suffix for entry in out.iterdir()) == [".tflite", ".tflite"]
    assert capsys.readouterr().out.startswith("compared with Keras on noise")
    assert "`--out` must be a folder" in run_script(
        monkeypatch, file, "--out", tmp_path / "a.tflite", "--variants", "float32,float16"
    )
    assert "`variant` is one of" in run_script(monkeypatch, file, "--out", out, "--variants", "int4")
    strict = replace(tflite.VARIANTS["dynamic_int8"], relative_rms=1e-6)
    monkeypatch.setitem(tflite.VARIANTS, "dynamic_int8", strict)
    assert run_script(monkeypatch, file, "--out", tmp_path / "b.tflite", "--variants", "dynamic_int8") == 1
    assert sorted(entry.name for entry in tmp_path.glob("*.rejected")) == ["b.tflite.rejected"]
