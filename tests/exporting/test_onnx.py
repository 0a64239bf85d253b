"""ONNX files: written, run by ONNX Runtime, compared with Keras, refused where they differ."""

import json
import sys

import keras
import numpy as np
import pytest
from export_samples import CLASS_NAMES, HAS_ONNX, PROCESSOR

import deit_tf
from deit_tf.exporting import onnx_file
from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.formats import find_export
from deit_tf.exporting.onnx_file import check_installed, export_onnx, verify_onnx

PACKAGES = ("tf2onnx", "onnx", "onnxruntime")
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="pip install 'deit_tf[onnx]'")


@pytest.fixture(scope="module")
def file(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    export_onnx(small_model, path, processor=PROCESSOR, labels=CLASS_NAMES)
    return path


@needs_onnx
def test_it_says_what_keras_says_of_any_batch(file, small_model, small_images):
    loaded = find_export(file).load()
    both = deit_tf.heads(small_model)(small_images)
    expected = {"mean": small_model(small_images), **both}
    for count in (1, len(small_images)):
        found = loaded.logits(small_images[:count])
        assert found.keys() == expected.keys()
        for name, logits in found.items():
            np.testing.assert_allclose(logits, expected[name][:count], atol=1e-4)  # as verified


@needs_onnx
def test_other_runtimes_find_names_and_a_free_batch(file):
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    (images,) = session.get_inputs()
    assert (images.name, images.shape) == ("images", ["batch", 16, 16, 3])
    outputs = {each.name: each.shape for each in session.get_outputs()}
    assert outputs == dict.fromkeys(("logits", "cls", "dist"), ["batch", len(CLASS_NAMES)])


@needs_onnx
def test_what_lies_beside_it(file):
    known = find_export(file).sidecar()
    assert known.class_names == CLASS_NAMES and known.agrees_with(PROCESSOR)
    assert known.verified["max_difference"] <= 1e-4 and known.verified["compared_on"] == "noise"
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "labels.txt",
        "small.onnx",
        "small.onnx.json",
    ]


@needs_onnx
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_convnet_of_any_precision(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    try:
        image = keras.Input((16, 16, 3))
        x = keras.layers.DepthwiseConv2D(3, strides=2)(keras.layers.Rescaling(1 / 255)(image))
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("hard_swish")(x))
        model = keras.Model(image, keras.layers.Dense(3, dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy("float32")
    report = export_onnx(model, tmp_path / "convnet.onnx")
    assert report["max_difference"] <= 1e-4 and "outputs" not in report


@needs_onnx
def test_a_file_of_other_weights_is_refused_and_nothing_is_left(small_model, tmp_path, monkeypatch):
    other = deit_tf.create_model("deit_test", num_classes=4, image_size=16, depth=1)
    content = onnx_file.converted(other)
    monkeypatch.setattr(onnx_file, "converted", lambda _: content)
    with pytest.raises(ExportError, match="small.onnx differs from Keras: max_difference"):
        export_onnx(small_model, tmp_path / "new" / "small.onnx")
    assert not (tmp_path / "new").exists()


@needs_onnx
def test_an_older_file_stays_where_a_new_one_fails(file, small_model, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr(onnx_file, "converted", lambda _: before[: len(before) // 2])
    with pytest.raises(ExportError):
        export_onnx(small_model, file)
    assert file.read_bytes() == before and find_export(file).sidecar()


@needs_onnx
def test_weights_that_are_missing_and_operations_of_others_are_refused(
    file, small_model, small_images, tmp_path
):
    import onnx

    (tmp_path / "short.onnx").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ExportError, match="too few for"):
        verify_onnx(tmp_path / "short.onnx", small_model, small_images)

    proto = onnx.load(file)
    proto.graph.node[0].domain = "com.example"
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match="which are no operations of ONNX"):
        verify_onnx(tmp_path / "foreign.onnx", small_model, small_images)


@needs_onnx
def test_damage_is_seen(file, tmp_path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "small.onnx").write_bytes(content)
    (tmp_path / "small.onnx.json").write_bytes((file.parent / "small.onnx.json").read_bytes())
    with pytest.raises(ValueError, match="checksum differs"):
        find_export(tmp_path / "small.onnx").load()
    (tmp_path / "none.onnx").write_bytes(b"none")
    with pytest.raises(ValueError, match="none.onnx is damaged: ONNX Runtime does not load it"):
        find_export(tmp_path / "none.onnx").load()


@needs_onnx
def test_arguments(small_model, tmp_path):
    with pytest.raises(ValueError, match="must end in .onnx"):
        export_onnx(small_model, tmp_path / "small.pb")
    with pytest.raises(ValueError, match="as many as the 4 classes"):
        export_onnx(small_model, tmp_path / "small.onnx", labels=["a"])


@needs_onnx
def test_what_one_protocol_buffer_does_not_hold(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    with pytest.raises(ValueError, match="Export it as a SavedModel"):
        export_onnx(small_model, tmp_path / "small.onnx")


@needs_onnx
def test_keras_exports_a_model_that_was_only_built(tmp_path, small_images):
    import onnxruntime

    model = deit_tf.create_model("deit_test", num_classes=3, image_size=16, depth=1)
    model.export(tmp_path / "built.onnx", format="onnx", verbose=False)
    distiller = deit_tf.Distiller(model, kind="none")
    distiller.export(tmp_path / "student.onnx", format="onnx", verbose=False)
    for name in ("built", "student"):
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        (logits,) = session.run(None, {session.get_inputs()[0].name: small_images})
        np.testing.assert_allclose(logits, model(small_images), atol=1e-4)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_its_installation(monkeypatch, name):
    for other in PACKAGES:
        monkeypatch.setitem(sys.modules, other, None if other == name else json)
    with pytest.raises(ImportError, match=r"pip install 'deit_tf\[onnx\]'.*" + name):
        check_installed()
