"""A SavedModel equals Keras in a C++ session; forms that only look right are refused and leave
nothing behind."""

import io
import json
import runpy
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from export_samples import PROCESSOR as SMALL_PROCESSOR
from PIL import Image
from sklearn.datasets import load_sample_images
from tensorflow.core.protobuf import saved_model_pb2

import deit_tf
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting import saved_model as serving
from deit_tf.exporting import verify, warmup
from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.reference import BATCH
from deit_tf.exporting.session import LoadedModel
from deit_tf.exporting.signatures import make_signatures
from deit_tf.exporting.verify import verify_saved_model
from deit_tf.models.features import attention_maps

EXPORT = Path(__file__).parents[2] / "export"
SCRIPT = EXPORT / "to_saved_model.py"
LABELS = [f"class {i}, é" for i in range(10)]
PROCESSOR = ImageProcessor(32)
# The same kernels run in the session and in Keras, in another order at most; logits are of order 1.
TOLERANCE = 1e-5


def photographs():
    """Two photographs, whole and cut, as uint8 arrays of four shapes."""
    china, flower = load_sample_images().images
    return [china, flower, china[:200, 100:], flower[50:, :150]]


def encode(picture, kind="JPEG"):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def build(name="deit_test", **kwargs):
    model = deit_tf.create_model(name, **{"num_classes": 10, "depth": 1, **kwargs})
    for layer in model.layers:
        if layer.name.startswith(
            "head"
        ):  # fresh heads give logits of 0.1, too small to tell right from wrong
            layer.kernel.assign(layer.kernel * 20)
    return model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build(drop_path_rate=0.1)


@pytest.fixture(scope="module")
def images():
    return np.stack([PROCESSOR(encode(picture)) for picture in photographs()])  # [4, 32, 32, 3]


@pytest.fixture(scope="module")
def exported(model, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return serving.export_saved_model(
        model,
        folder / "deep",
        processor=PROCESSOR,
        labels=LABELS,
        version=3,
        name="digits",
        images=images,
    )


@pytest.fixture(scope="module")
def loaded(exported):
    return serving.load_saved_model(exported)


def files(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def largest(value, reference):
    return np.abs(np.asarray(value) - np.asarray(reference)).max()


def write_tracked(model, path, *, signatures=None, labels=LABELS):
    """The known bad export: right in tf.saved_model.load, without variables in a C++ session."""
    module = tf.Module()
    module.model = model
    tf.saved_model.save(
        module, str(path), signatures=signatures or make_signatures(model, PROCESSOR, labels, 5)
    )


def write_signatures(model, path, signatures):
    """A SavedModel that is right in all but its signatures."""
    module = tf.Module()
    module.weights = [v.value for v in model.variables]
    tf.saved_model.save(module, str(path), signatures=signatures)
    path.joinpath("assets", "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")


def test_layout(exported, model):
    assert exported.parts[-3:] == ("deep", "digits", "3")
    assert [
        entry.name for entry in exported.parents[2].rglob(".*")
    ] == []  # the temporary folder is gone
    assert exported.joinpath("assets/labels.txt").read_text(encoding="utf-8").splitlines() == LABELS
    assert (
        exported.stat().st_mode & 0o055 == exported.parent.stat().st_mode & 0o055
    )  # readable for a server's account
    (weights,) = exported.glob("variables/variables.data-*")
    assert weights.stat().st_size < 1.1 * 4 * model.count_params()


def test_report(exported, images):
    report = serving.read_report(exported)
    assert report["compared_on"] == "images"
    assert report["images_compared"] == len(images)
    for signature in ("images", "heads", "serving_default"):
        assert report[signature]["max_difference"] < TOLERANCE
        assert report[signature]["top1_agreement"] == 1


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_images_signature_equals_keras(loaded, model, images, batch):
    outputs = loaded.run("images", images[:batch])
    logits = model.predict(images[:batch], verbose=0)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    order = np.argsort(-logits, axis=-1)[:, :5]
    assert np.abs(logits).max() > 0.5
    assert largest(outputs["logits"], logits) < TOLERANCE
    assert largest(outputs["probabilities"], probabilities) < TOLERANCE
    assert (
        largest(outputs["top_k_probabilities"], np.take_along_axis(probabilities, order, -1))
        < TOLERANCE
    )
    assert outputs["top_k_classes"].dtype == np.int32
    np.testing.assert_array_equal(outputs["top_k_classes"], order)
    assert [[label.decode() for label in row] for row in outputs["top_k_labels"]] == [
        [LABELS[c] for c in row] for row in order
    ]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_signature_equals_keras(loaded, model, kind):
    encoded = [encode(picture, kind) for picture in photographs()]
    outputs = loaded.run("serving_default", encoded)
    assert (
        largest(outputs["logits"], model(np.stack([PROCESSOR(file) for file in encoded])))
        < TOLERANCE
    )


def test_bytes_signature_follows_pillow(loaded, model):
    encoded = [encode(picture) for picture in photographs()]
    pixels = []
    for file in encoded:
        picture = Image.open(io.BytesIO(file))
        scale = int(32 / 0.875) / min(picture.size)
        picture = picture.resize(
            [int(side * scale + 1e-6) for side in picture.size], Image.Resampling.BICUBIC
        )
        left, top = ((side - 32) / 2 for side in picture.size)
        picture = picture.crop((round(left), round(top), round(left) + 32, round(top) + 32))
        pixels.append((np.asarray(picture, np.float32) / 255 - PROCESSOR.mean) / PROCESSOR.std)
    logits = loaded(np.float32(pixels))
    # TensorFlow and Pillow round the weights of the resize differently: a few pixels differ; 0.004
    # was seen.
    assert largest(loaded.run("serving_default", encoded)["logits"], logits) < 0.02
    assert largest(logits, model(np.float32(pixels))) < TOLERANCE


def test_heads_signature_equals_keras(loaded, model, images):
    outputs = loaded.run("heads", images)
    expected = deit_tf.heads(model)(images)
    assert set(outputs) == {"cls", "dist"}
    for key, logits in outputs.items():
        assert largest(logits, expected[key]) < TOLERANCE
    assert largest(outputs["cls"], outputs["dist"]) > 0.1


def test_python_loader_agrees(exported, model, images):
    signatures = tf.saved_model.load(str(exported)).signatures
    assert (
        largest(signatures["images"](images=tf.constant(images))["logits"], model(images))
        < TOLERANCE
    )


def test_one_bad_file_fails_its_batch_and_the_next_runs(loaded):
    good = encode(photographs()[0])
    for bad in (b"", b"text", good[: len(good) // 2]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            loaded.run("serving_default", [good, bad])
    assert np.isfinite(loaded.run("serving_default", [good])["logits"]).all()
    assert loaded.image_size == (32, 32)


def test_plain_model_few_classes_any_shape(tmp_path):
    model = build(num_classes=3, distilled=False, image_size=(32, 48))
    path = serving.export_saved_model(model, tmp_path, processor=ImageProcessor((32, 48)))
    loaded = serving.load_saved_model(path)
    assert path == tmp_path / "deit_test" / "1"
    assert (
        set(loaded.signatures) >= {"images", "serving_default"} and "heads" not in loaded.signatures
    )
    outputs = loaded.run("serving_default", [encode(photographs()[0])])
    assert sorted(outputs["top_k_labels"][0].tolist()) == [b"0", b"1", b"2"]
    assert serving.read_report(path)["compared_on"] == "noise"


def test_mixed_precision_is_exported_in_float32(model, images, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = build()
    finally:
        keras.config.set_dtype_policy("float32")
    plain = build()
    plain.set_weights(mixed.get_weights())
    path = serving.export_saved_model(mixed, tmp_path, processor=PROCESSOR, images=images)
    assert largest(mixed(images), plain(images)) > 10 * TOLERANCE
    assert largest(serving.load_saved_model(path)(images), plain(images)) < TOLERANCE


def test_existing_version_is_not_touched(exported, model):
    before = files(exported.parents[2])
    with pytest.raises(FileExistsError, match="Take the next `version`"):
        serving.export_saved_model(
            model, exported.parents[1], processor=PROCESSOR, version=3, name="digits"
        )
    assert files(exported.parents[2]) == before


def test_tracked_model_is_refused(model, images, tmp_path):
    write_tracked(model, tmp_path)
    signature = tf.saved_model.load(str(tmp_path)).signatures["images"]
    assert (
        largest(signature(images=tf.constant(images))["logits"], model(images)) < TOLERANCE
    )  # it looks right
    with pytest.raises(ExportError, match=r"(?s)fails in a C\+\+ session.*Could not find variable"):
        verify_saved_model(tmp_path, model, images, PROCESSOR)


def test_weights_written_twice_are_refused(model, images, tmp_path):
    module = tf.Module()
    module.weights = [v.value for v in model.variables]
    module.again = [tf.Variable(v.value) for v in model.variables]
    tf.saved_model.save(
        module, str(tmp_path), signatures=make_signatures(model, PROCESSOR, LABELS, 5)
    )
    with pytest.raises(ExportError, match="twice"):
        verify_saved_model(tmp_path, model, images, PROCESSOR)


@pytest.mark.parametrize(
    "layer, match",
    [
        ("head", "signature images: logits differ|do not follow"),
        pytest.param("head_dist", "differ|do not follow", marks=pytest.mark.slow),
    ],
)
def test_other_weights_are_refused(exported, model, images, layer, match):
    kernel = model.get_layer(layer).kernel
    before = kernel.numpy()
    kernel.assign(before * 1.001)
    try:
        with pytest.raises(ExportError, match=match):
            verify_saved_model(exported, model, images, PROCESSOR)
    finally:
        kernel.assign(before)
    assert (
        verify_saved_model(exported, model, images, PROCESSOR)["images"]["max_difference"]
        < TOLERANCE
    )


def test_swapped_heads_are_refused(exported, model, images):
    """Their mean, and with it every other signature, stays as it is."""
    first, second = model.get_layer("head").bias, model.get_layer("head_dist").bias
    before = first.numpy(), second.numpy()
    first.assign(before[0] + 0.01)
    second.assign(before[1] - 0.01)
    try:
        with pytest.raises(ExportError, match="signature heads, cls: logits differ"):
            verify_saved_model(exported, model, images, PROCESSOR)
    finally:
        first.assign(before[0])
        second.assign(before[1])


def test_other_labels_are_refused(exported, model, images, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    copy.joinpath("assets/labels.txt").write_text("\n".join(reversed(LABELS)), encoding="utf-8")
    with pytest.raises(ExportError, match="top_k_labels do not follow"):
        verify_saved_model(copy, model, images, PROCESSOR)


def test_missing_weights_are_refused(exported, images):
    with pytest.raises(ExportError, match="some are missing"):
        verify_saved_model(exported, build(depth=3), images, PROCESSOR)


def test_a_fixed_batch_is_refused(model, images, tmp_path):
    signatures = make_signatures(model, PROCESSOR, LABELS, 5)
    spec = tf.TensorSpec((len(images), 32, 32, 3), tf.float32, name="images")
    signatures["images"] = tf.function(signatures["images"].python_function, input_signature=[spec])
    write_signatures(model, tmp_path, signatures)
    with pytest.raises(ExportError, match="fails in a C\\+\\+ session"):
        verify_saved_model(tmp_path, model, images, PROCESSOR)


def test_another_preprocessing_is_refused(exported, model, images):
    with pytest.raises(ExportError, match="serving_default"):
        verify_saved_model(exported, model, images, ImageProcessor(32, crop_ratio=1.0))


def test_missing_signature_and_missing_folder_are_refused(exported, model, images, tmp_path):
    signatures = make_signatures(model, PROCESSOR, LABELS, 5)
    del signatures["heads"]
    write_signatures(model, tmp_path, signatures)
    with pytest.raises(ExportError, match="no signature 'heads'"):
        verify_saved_model(tmp_path, model, images, PROCESSOR)
    with pytest.raises(ExportError, match="does not load"):
        serving.load_saved_model(tmp_path / "nowhere")


def test_failed_verification_leaves_nothing(model, tmp_path, monkeypatch):
    tmp_path.joinpath("mine").write_text("kept")
    monkeypatch.setattr(serving, "write_saved_model", write_tracked)
    with pytest.raises(ExportError):
        serving.export_saved_model(model, tmp_path / "new" / "base", processor=PROCESSOR)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize(
    "argument",
    [
        {"labels": LABELS[:9]},
        {"labels": [*LABELS[:9], "two\nlines"]},
        {"labels": [*LABELS[:9], "line\n"]},
        {"labels": [*LABELS[:9], ""]},
        {"name": "a/b"},
        {"version": 0},
        {"version": "2"},
        {"top_k": 0},
        {"batch_sizes": ()},
        {"batch_sizes": (1, 0)},
        {"processor": ImageProcessor(224)},
        {"images": np.zeros((2, 16, 16, 3), "float32")},
        {"images": np.zeros((0, 32, 32, 3), "float32")},
    ],
)
def test_bad_arguments_are_named(model, tmp_path, argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"(`{name}`|[Cc]lass name).*Received"):
        serving.export_saved_model(model, tmp_path, **{"processor": PROCESSOR, **argument})
    assert list(tmp_path.iterdir()) == []


def test_a_distiller_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="export `.student`"):
        serving.export_saved_model(
            deit_tf.Distiller(model, kind="none"), tmp_path, processor=PROCESSOR
        )


def test_warmup_has_a_record_per_signature_and_batch_size(exported):
    asked = list(warmup.read_warmup(exported))
    assert {request.model_spec.name for request in asked} == {"digits"}
    shapes = [
        (r.model_spec.signature_name, *tf.make_ndarray(*r.inputs.values()).shape) for r in asked
    ]
    image = (32, 32, 3)
    floats = [(name, size, *image) for name in ("images", "heads") for size in (1, 8, 32)]
    assert shapes == [*(("serving_default", size) for size in (1, 8, 32)), *floats]
    assert serving.read_report(exported)["warmup_records"] == len(asked)
    assert (
        exported.joinpath(warmup.WARMUP_FILE).stat().st_size < 200_000
    )  # 41 small pictures; the zeros weigh nothing


def test_batching_allows_what_is_warmed_up():
    lines = EXPORT.joinpath("tf_serving/batching.config").read_text().splitlines()
    allowed = [int(line.split()[1]) for line in lines if line.startswith("allowed_batch_sizes")]
    assert tuple(allowed) == warmup.BATCH_SIZES


def test_an_export_without_warmup_or_with_a_bad_one_is_refused(exported, model, images, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    file = copy / warmup.WARMUP_FILE
    whole = file.read_bytes()
    file.unlink()
    with pytest.raises(ExportError, match="no warm-up records"):
        verify_saved_model(copy, model, images, PROCESSOR)
    file.write_bytes(whole[:-7])
    with pytest.raises(ExportError, match="DataLoss"):
        verify_saved_model(copy, model, images, PROCESSOR)
    warmup.write_warmup(
        copy,
        "digits",
        {"serving_default": tf.TensorSpec((None,), tf.string, "image_bytes")},
        [b"no"],
    )
    with pytest.raises(ExportError, match="InvalidArgument"):
        verify_saved_model(copy, model, images, PROCESSOR)


def test_a_warmup_answer_that_is_no_good_is_refused(exported):
    with pytest.raises(ValueError, match="gives no good 'logits'"):
        warmup.replay_warmup(
            exported, lambda _, batch: {"logits": np.full((len(batch), 10), np.nan)}
        )
    with pytest.raises(ValueError, match="gives no good 'logits'"):
        warmup.replay_warmup(exported, lambda _, batch: {"logits": np.zeros((len(batch) + 1, 10))})


@pytest.fixture(scope="module")
def compiled(model, images, tmp_path_factory):
    """With both options."""
    folder = tmp_path_factory.mktemp("compiled")
    options = {
        "rollout": True,
        "xla": True,
        "batch_sizes": (1,),
    }  # each batch size compiles each signature anew
    return serving.export_saved_model(
        model, folder, processor=PROCESSOR, images=images[:1], **options
    )


def test_rollout_signature_equals_keras(compiled, model, images):
    maps = serving.load_saved_model(compiled).run("rollout", images[:1])["rollout"]
    expected = attention_maps(model)(images[:1])["rollout"]
    assert maps.shape == (1, 4, 4) and np.ptp(maps) > 1e-5  # nearly even, of a fresh model
    assert largest(maps, expected) < 1e-7  # shares of 1 / 16, in another order of sums
    assert serving.read_report(compiled)["rollout"]["max_difference"] < TOLERANCE
    # The check sees a map that is wrong by a hundredth of one patch's share.
    other = type("", (), {"run": lambda *_: {"rollout": maps * 1.01}})()
    with pytest.raises(ExportError, match="signature rollout"):
        verify._verify_rollout(other, model, images[:1], 1e-4)


def test_rollout_is_of_a_deit_alone(tmp_path):
    image = keras.Input((32, 32, 3))
    flat = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(image)))
    with pytest.raises(ValueError, match="attention_maps.*takes a DeiT"):
        serving.export_saved_model(flat, tmp_path, processor=PROCESSOR, rollout=True)
    assert list(tmp_path.iterdir()) == []


def test_xla_compiles_the_network_and_equals_keras(compiled, exported, model, images):
    graphs = [
        saved_model_pb2.SavedModel.FromString((p / "saved_model.pb").read_bytes())
        for p in (compiled, exported)
    ]
    marked = [
        sum(f.attr["_XlaMustCompile"].b for f in graph.meta_graphs[0].graph_def.library.function)
        for graph in graphs
    ]
    assert marked == [3, 0]  # for bytes and images together, for the heads, for the rollout
    loaded = serving.load_saved_model(compiled)
    # XLA fuses, and sums in another order.
    assert largest(loaded(images[:1]), model(images[:1])) < TOLERANCE
    encoded = [encode(photographs()[0])]
    expected = model(np.stack([PROCESSOR(file) for file in encoded]))
    assert largest(loaded.run("serving_default", encoded)["logits"], expected) < TOLERANCE
    assert serving.read_report(compiled)["xla"] and not serving.read_report(exported)["xla"]


def test_report_is_json(exported):
    text = exported.joinpath("assets.extra", "verification.json").read_text()
    assert json.loads(text) == serving.read_report(exported)


def test_script(model, tmp_path, monkeypatch, capsys):
    model.save(tmp_path / "student.keras")
    tmp_path.joinpath("names.txt").write_text("\n".join(LABELS), encoding="utf-8")
    arguments = [tmp_path / "student.keras", "--out", tmp_path / "served", "--version", 2]
    monkeypatch.setattr(
        "sys.argv", [str(a) for a in (SCRIPT, *arguments, "--labels", tmp_path / "names.txt")]
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    (path,) = tmp_path.glob("served/*/2")
    assert serving.load_saved_model(path).class_names == tuple(LABELS)
    printed = capsys.readouterr().out
    assert printed.startswith(str(path)) and "on noise" in printed and "heads" in printed
    assert "9 warm-up records replayed" in printed
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "exists and is left as it is" in capsys.readouterr().err


def test_verification_runs_a_few_pictures_at_a_time(small_exports, small_model, monkeypatch):
    run, sizes = LoadedModel.run, []
    monkeypatch.setattr(
        LoadedModel,
        "run",
        lambda self, signature, batch: sizes.append(len(batch)) or run(self, signature, batch),
    )
    images = np.random.default_rng(0).normal(size=(2 * BATCH + 3, 16, 16, 3)).astype("float32")
    report = verify_saved_model(
        small_exports / "served" / "small" / "1", small_model, images, SMALL_PROCESSOR
    )
    assert report["images_compared"] == len(images) and max(sizes) == BATCH
    # Images, heads and two files of each; one image alone; the records.
    assert sum(sizes) == 4 * len(images) + 1 + report["warmup_records"]
