"""Every .tflite variant runs and agrees with Keras; a file that falls short keeps the name
`.rejected`."""

import functools
import hashlib
import json
import runpy
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_images

import deit_tf
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting import litert, reference, tflite
from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.flatbuffer import op_counts
from deit_tf.exporting.sidecar import read_sidecar, tflite_description

SCRIPT = Path(__file__).parents[2] / "export" / "to_tflite.py"
# Largest difference from Keras over the largest logit: rounding; 11 bits of mantissa; 8-bit weights
# in two blocks.
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "dynamic_int8": 5e-2}
VARIANTS = tuple(TOLERANCES)  # int8: tests/test_quantize.py


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model("deit_test", num_classes=10, drop_path_rate=0.1, depth=1)
    for name in (
        "head",
        "head_dist",
    ):  # fresh heads give logits of 0.1, too small to tell right from wrong
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 20)
    return model


@pytest.fixture(scope="module")
def images():
    """Four photographs, float32 [4, 32, 32, 3]."""
    china, flower = load_sample_images().images
    pictures = [china, flower, china[:200, 100:], flower[50:, :150]]
    return np.stack([ImageProcessor(32)(tf.io.encode_png(picture)) for picture in pictures])


def limited(variant, **limits):
    """A variant with other limits."""
    return replace(variant, limits=replace(variant.limits, **limits))


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
    files = {variant: folder / f"{variant}.tflite" for variant in VARIANTS}
    return {
        v: (tflite.export_tflite(model, file, variant=v, images=images), file)
        for v, file in files.items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_equals_keras(exported, model, images, variant):
    report, file = exported[variant]
    logits, expected = litert.load_tflite(file)(images), np.asarray(model(images))
    assert np.abs(logits - expected).max() / np.abs(expected).max() < TOLERANCES[variant]
    assert report["max_difference"] == pytest.approx(
        np.abs(logits - expected).max() / max(1, np.abs(expected).max())
    )
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
    assert sorted(files[0].parent.iterdir()) == sorted(
        [*files, *(file.with_suffix(".json") for file in files)]
    )


LABELS = [f"class {i}, é" for i in range(10)]
PROCESSOR = ImageProcessor(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def on_pixels(model, tmp_path_factory):
    """A file that takes pixels, with labels; its report."""
    file, pixels = (
        tmp_path_factory.mktemp("pixels") / "m.tflite",
        load_sample_images().images[0][:64, :32],
    )
    images = np.stack([PROCESSOR(tf.io.encode_png(part)) for part in (pixels[:32], pixels[32:])])
    options = {"input_type": "uint8", "processor": PROCESSOR, "labels": LABELS}
    return tflite.export_tflite(model, file, images=images, **options), file, images


def test_a_file_takes_pixels_and_normalises_them(on_pixels, model):
    _, file, images = on_pixels
    loaded, pixels = litert.load_tflite(file), PROCESSOR.to_pixels(images)
    assert (loaded.input_type, pixels.dtype) == ("uint8", np.uint8)
    by_hand = (pixels / np.float32(255) - PROCESSOR.mean) / PROCESSOR.std
    # float32 rounding of the normalization, then of the graph
    np.testing.assert_allclose(loaded(pixels), model(np.float32(by_hand)), atol=1e-5)
    np.testing.assert_allclose(
        loaded(images), loaded(pixels)
    )  # normalized ones become pixels again, by the JSON file
    np.testing.assert_allclose(
        images, by_hand, atol=1e-5
    )  # a picture of whole gray levels is not changed by it
    assert np.abs(loaded(255 - pixels) - loaded(pixels)).max() > 0.1


def test_json_beside_the_file(on_pixels, exported):
    report, file, images = on_pixels
    told = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (told["mean"], told["std"], told["image_size"]) == (
        [0.5, 0.4, 0.3],
        [0.2, 0.25, 0.3],
        [32, 32],
    )
    assert (told["input"]["type"], told["labels"]) == ("uint8", LABELS)
    assert told["verified"] == {key: value for key, value in report.items() if key != "file"}
    assert file.with_name("labels.txt").read_text(encoding="utf-8").splitlines() == LABELS
    plain = read_sidecar(*tflite_description(exported["float16"][1]))
    assert (plain.class_names, plain.input_type, plain.processor) == (None, "float32", None)


def test_a_json_file_of_another_file_is_refused(on_pixels, tmp_path):
    _, file, images = on_pixels
    tmp_path.joinpath("m.tflite").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="no m.json beside it"):
        litert.load_tflite(tmp_path / "m.tflite")(images)
    told = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    tmp_path.joinpath("m.json").write_text(json.dumps(told | {"sha256": "0" * 64}))
    with pytest.raises(ValueError, match="checksum differs"):
        litert.load_tflite(tmp_path / "m.tflite")(images)


def test_other_labels_in_the_folder_are_not_overwritten(model, tmp_path):
    tmp_path.joinpath("labels.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match="`labels` differ from those"):
        tflite.export_tflite(model, tmp_path / "m.tflite", labels=LABELS)
    assert tmp_path.joinpath("labels.txt").read_text() == "cat\ndog\n"


def test_times_are_taken_in_turns(exported, images):
    files = {variant: file for variant, (_, file) in exported.items()}
    times = litert.latencies(files, images, num_threads=1, rounds=3)
    assert list(times) == list(files)
    assert all(0 < t["best_ms"] <= t["median_ms"] and t["threads"] == 1 for t in times.values())


def test_graph_has_a_fixed_batch(exported):
    report, file = exported["float32"]
    assert not {"SHAPE", "PACK", "BROADCAST_TO", "REDUCE_PROD"} & set(report["ops"])
    assert [report["ops"][op] for op in ("SOFTMAX", "GELU", "CONV_2D")] == [1, 1, 1]
    assert litert.load_tflite(file).image_size == (32, 32)


def test_mixed_precision_is_exported_in_float32(images, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = deit_tf.create_model("deit_test", num_classes=10)
    finally:
        keras.config.set_dtype_policy("float32")
    plain = deit_tf.create_model("deit_test", num_classes=10)
    plain.set_weights(model.get_weights())
    tflite.export_tflite(model, tmp_path / "m.tflite", images=images)
    assert np.abs(litert.load_tflite(tmp_path / "m.tflite")(images) - plain(images)).max() < 1e-5


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
        tflite.verify_tflite(
            exported["float16"][1], images, model(images), weights=model.count_params()
        )


def test_other_logits_are_refused(exported, model, images):
    file, logits, weights = exported["float32"][1], np.array(model(images)), model.count_params()
    with pytest.raises(ExportError, match="max_difference"):
        tflite.verify_tflite(file, images, logits + 1e-3, weights=weights)
    with pytest.raises(ExportError, match="shape"):
        tflite.verify_tflite(file, images, logits[:, :9], weights=weights)


@pytest.mark.parametrize("limit, kind", [("top1_agreement", "top1"), ("clear_agreement", "clear")])
def test_other_classes_are_refused(exported, images, monkeypatch, limit, kind):
    """Two classes change places on most images: the differences are small enough, the classes are
    not the same."""
    file = exported["float32"][1]
    logits = np.tile(litert.load_tflite(file)(images), (10, 1))
    wrong = logits.copy()
    rows = np.arange(len(wrong))
    order = np.argsort(-logits, axis=-1)
    wrong[rows, order[:, 1]] = logits[rows, order[:, 0]] + 0.01
    loose = limited(
        tflite.VARIANTS["float32"],
        max_difference=9,
        relative_rms=9,
        top1_agreement=0,
        clear_agreement=0,
    )
    monkeypatch.setitem(tflite.VARIANTS, "float32", loose)
    tflite.verify_tflite(file, np.tile(images, (10, 1, 1, 1)), wrong, weights=0)
    monkeypatch.setitem(tflite.VARIANTS, "float32", limited(loose, **{limit: 0.5}))
    if kind == "clear":
        wrong[rows, order[:, 1]] += 2  # clearly so
    with pytest.raises(ExportError, match=rf"on 0 of 40 images \({kind}\), a share of 0.5"):
        tflite.verify_tflite(file, np.tile(images, (10, 1, 1, 1)), wrong, weights=0)


def test_without_images_the_report_says_noise(model, tmp_path):
    report = tflite.export_tflite(model, tmp_path / "m.tflite")
    assert (report["compared_on"], report["images"]) == ("noise", reference.NOISE_IMAGES)


def test_either_form_of_gelu_becomes_one_op(tmp_path):
    """TensorFlow's rewriter fuses one, the converter knows the other and fails on `Erf`."""
    kernel = tf.Variable(np.random.default_rng(0).normal(size=(3, 8)).astype("float32"))
    forms = [lambda x: (tf.math.erf(x * 0.5**0.5) + 1.0) * 0.5 * x, lambda x: tf.nn.gelu(x)]
    for number, form in enumerate(forms):
        module, folder = tf.Module(), tmp_path / str(number)
        module.weights = [kernel]
        spec = tf.TensorSpec((1, 3), tf.float32, name="images")

        def call(images, form=form):
            return {"logits": form(images @ kernel)}

        tf.saved_model.save(
            module, str(folder), signatures=tf.function(call, input_signature=[spec])
        )
        tflite._rearrange_gelu(folder / "saved_model.pb")
        content = tflite.convert(folder)
        assert op_counts(content)["GELU"] == 1
        runner = litert.Interpreter(model_content=content).get_signature_runner()
        images = np.array([[1, -2, 0.5]], "float32")
        np.testing.assert_allclose(
            runner(images=images)["logits"], tf.nn.gelu(images @ kernel), atol=1e-5
        )


def test_op_without_builtin_is_refused(model, images, tmp_path):
    save(
        model,
        tmp_path / "inverse",
        (1, 32, 32, 3),
        lambda images: {"logits": tf.linalg.inv(images[..., 0])},
    )
    with pytest.raises(ExportError, match="built-in"):
        tflite.convert(tmp_path / "inverse")
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "inverse"))
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    tmp_path.joinpath("flex.tflite").write_bytes(converter.convert())
    with pytest.raises(ExportError, match="CUSTOM Flex"):
        tflite.verify_tflite(tmp_path / "flex.tflite", images, model(images), weights=0)


def test_rejected_file_keeps_its_name_and_spares_the_old_one(model, images, tmp_path, monkeypatch):
    file = tmp_path / "m.tflite"
    file.write_bytes(b"the last good one")
    strict = limited(tflite.VARIANTS["dynamic_int8"], relative_rms=1e-6)
    monkeypatch.setitem(tflite.VARIANTS, "dynamic_int8", strict)
    with pytest.raises(ExportError, match="m.tflite.rejected differs from Keras: relative_rms"):
        tflite.export_tflite(model, file, variant="dynamic_int8", images=images)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.tflite", "m.tflite.rejected"]
    assert file.read_bytes() == b"the last good one"
    tflite.export_tflite(model, file, images=images)  # a good one takes both places
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.json", "m.tflite"]
    assert litert.load_tflite(file)(images).shape == (4, 10)


def test_not_a_number_is_refused(images, tmp_path):
    model = deit_tf.create_model("deit_test", num_classes=10)
    model.get_layer("head").bias.assign(np.full(10, np.nan))
    with pytest.raises(ExportError, match="nan"):
        tflite.export_tflite(model, tmp_path / "m.tflite", images=images)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.tflite.rejected"]


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("file", {"file": "model.lite"}),
        ("variant", {"variant": "int4"}),
        ("images", {"images": np.zeros((2, 16, 16, 3), "float32")}),
        ("images", {"images": np.zeros((32, 32, 3), "float32")}),
        ("input_type", {"input_type": "int8"}),
        ("processor", {"input_type": "uint8"}),
        ("processor", {"processor": ImageProcessor(48)}),
        ("labels", {"labels": ["cat", "dog"]}),
    ],
)
def test_bad_arguments_are_named(model, tmp_path, name, kwargs):
    kwargs = {"file": "model.tflite", **kwargs}
    with pytest.raises(ValueError, match=f"(`{name}`|Class names).*Received"):
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
        litert.load_tflite(tmp_path / "text.tflite")


def run_script(monkeypatch, capsys, *arguments):
    """Exit status of the script, and what it printed on stdout and stderr."""
    monkeypatch.setattr("sys.argv", [str(argument) for argument in (SCRIPT, *arguments)])
    status = 0
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_script(small_model, tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "student.keras", tmp_path / "phone"
    small_model.save(file)
    run = functools.partial(run_script, monkeypatch, capsys, file, "--out")

    status, printed, _ = run(out, "--variants", "float32,float16")
    names = [
        f"student_{variant}{suffix}"
        for variant in ("float16", "float32")
        for suffix in (".check.json", ".json", ".tflite")
    ]
    assert status == 0 and sorted(entry.name for entry in out.iterdir()) == names
    assert "compared with Keras on noise" in printed and "SOFTMAX 1" in printed
    latency = json.loads(out.joinpath("student_float16.json").read_text())["verified"]["latency"]
    assert latency["of_float32"] > 0 and latency["threads"] == 1

    assert run(out, "--input", "uint8")[0] == 0
    assert litert.load_tflite(out / "student_float32_uint8.tflite").input_type == "uint8"

    strict = limited(tflite.VARIANTS["dynamic_int8"], relative_rms=1e-6)
    monkeypatch.setitem(tflite.VARIANTS, "dynamic_int8", strict)
    assert run(tmp_path / "b.tflite", "--variants", "dynamic_int8")[0] == 1
    assert sorted(entry.name for entry in tmp_path.glob("*.rejected")) == ["b.tflite.rejected"]


@pytest.mark.parametrize(
    "out, options, message",
    [
        ("phone", ["--threads", "0"], "counts from 1"),
        ("a.tflite", ["--variants", "float32,float16"], "`--out` must be a folder"),
        ("phone", ["--variants", "int4"], "`variant` is one of"),
    ],
)
def test_script_refuses(model, tmp_path, monkeypatch, capsys, out, options, message):
    model.save(tmp_path / "student.keras")
    given = [tmp_path / "student.keras", "--out", tmp_path / out, *options]
    status, _, printed = run_script(monkeypatch, capsys, *given)
    assert status == 2 and message in printed
