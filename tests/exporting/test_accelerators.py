"""Every .tflite variant is one that a GPU takes whole; where there is a GPU, it does."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import deit_tf
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting import accelerators, tflite
from deit_tf.exporting.accelerators import compile_for, gpu_obstacles, measure_devices
from deit_tf.exporting.compare import EXACT, HALF, ExportError, device_text

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE = (32, 48)
PROCESSOR = ImageProcessor(SIZE)
# each variant and each input once; the other pairs are slow
CASES = [("float32", "float32"), ("float16", "uint8"), ("dynamic_int8", "uint8"), ("int8", "uint8")]
CASES += [
    pytest.param(variant, kind, marks=pytest.mark.slow)
    for variant in tflite.VARIANTS
    for kind in ("float32", "uint8")
    if (variant, kind) not in CASES
]
# A GPU adds in another order; and of int8 it computes the products in float32.
TOLERANCES = {"float32": 1e-5, "float16": 1e-3, "dynamic_int8": 5e-2, "int8": 1e-1}


def images(kind, count=2):
    random = np.random.default_rng(0)
    if kind == "uint8":
        return random.integers(0, 256, (count, *SIZE, 3)).astype(np.uint8)
    return random.normal(size=(count, *SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def content():
    """The content of the file of a variant and an input, each converted once."""
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model("deit_test", num_classes=10, image_size=SIZE, depth=1)
    made = {}

    def converted(variant, kind):
        if (variant, kind) not in made:
            calibration = images("float32", 8) if variant == "int8" else None
            made[variant, kind] = tflite.converted(model, variant, kind, PROCESSOR, calibration)
        return made[variant, kind]

    return converted


def saved_as_tflite(call, shape, folder):
    """A .tflite file of a function of one tensor, without weights."""
    spec = tf.TensorSpec(shape, tf.float32, name="images")
    function = tf.function(lambda images: {"logits": call(images)}, input_signature=[spec])
    tf.saved_model.save(tf.Module(), str(folder), signatures=function)
    return tflite.convert(folder)


@pytest.mark.parametrize("variant, kind", CASES)
def test_nothing_in_a_file_is_beyond_a_gpu(content, variant, kind):
    assert gpu_obstacles(content(variant, kind)) == []


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda x: tf.transpose(tf.reshape(x, (1, 4, 2, 3, 2)), (0, 2, 1, 3, 4)), "5 axes"),
        (lambda x: x[:, 0], "STRIDED_SLICE drops or adds an axis"),
        (lambda x: tf.unstack(x, axis=1)[1], "UNPACK"),
        (lambda x: tf.sort(x), "TOPK_V2"),
    ],
)
def test_what_a_gpu_refuses_is_named(call, reason, tmp_path):
    found = gpu_obstacles(saved_as_tflite(call, (1, 4, 12), tmp_path))
    assert any(line.startswith(reason) for line in found), found


@pytest.mark.parametrize("variant, kind", CASES)
def test_a_cpu_takes_every_file_whole(content, tmp_path, variant, kind):
    file = tmp_path / "m.tflite"
    file.write_bytes(content(variant, kind))
    taken = compile_for(file, "cpu", images(kind))
    assert (taken.whole, taken.left_out) == (True, ())
    # The Interpreter, which phones of today have, says the same: the kernels are the same.
    run = Interpreter(model_path=str(file)).get_signature_runner()
    logits = [run(images=image[None])["logits"][0] for image in images(kind)]
    np.testing.assert_array_equal(taken.logits, logits)


def test_what_a_cpu_leaves_out_is_named(tmp_path):
    file = tmp_path / "m.tflite"
    file.write_bytes(saved_as_tflite(lambda x: tf.sort(x * 2), (1, 4, 12), tmp_path / "saved"))
    taken = compile_for(file, "cpu")
    assert not taken.whole and "TOPK_V2" in taken.left_out and "MUL" not in taken.left_out


def test_models_of_older_files_are_taken_as_well():
    older = keras.saving.load_model(GOLDEN / "older_student.keras")
    assert gpu_obstacles(tflite.converted(older, "float32", "float32", None, None)) == []


@pytest.fixture(scope="module")
def adapter(content, tmp_path_factory):
    """Skips where there is no GPU, not even one in software."""
    file = tmp_path_factory.mktemp("gpu") / "m.tflite"
    file.write_bytes(content("float32", "float32"))
    if compile_for(file, "gpu") is None:
        pytest.skip(accelerators.SOFTWARE_ADAPTER)


@pytest.mark.parametrize("variant, kind", CASES)
def test_cpu_and_gpu_take_every_file_whole(adapter, content, tmp_path, variant, kind):
    file = tmp_path / "m.tflite"
    file.write_bytes(content(variant, kind))
    cpu, gpu = (compile_for(file, device, images(kind)) for device in ("cpu", "gpu"))
    assert (cpu.whole, cpu.left_out, gpu.whole, gpu.left_out) == (True, (), True, ())
    largest = max(1, np.abs(cpu.logits).max())
    assert np.abs(gpu.logits - cpu.logits).max() / largest < TOLERANCES[variant]


def test_a_gpu_says_why_it_refuses(adapter, tmp_path):
    file = tmp_path / "m.tflite"
    file.write_bytes(saved_as_tflite(lambda x: x[:, 0], (1, 4, 12), tmp_path / "saved"))
    refused = compile_for(file, "gpu")
    assert not refused.whole and "shrink_axis_mask" in refused.left_out[0]


@pytest.fixture
def no_adapter(monkeypatch, tmp_path):
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):  # the older and the newer name
        monkeypatch.setenv(name, str(tmp_path / "none.json"))


def logits_of(content, kind="float32"):
    run = Interpreter(model_content=content).get_signature_runner()
    return np.concatenate([run(images=image[None])["logits"] for image in images(kind)])


def test_without_an_adapter_the_file_alone_answers(no_adapter, content, tmp_path):
    file = tmp_path / "m.tflite"
    file.write_bytes(content("float32", "float32"))
    assert compile_for(file, "gpu") is None
    devices = measure_devices(file, images("float32"), logits_of(file.read_bytes()), EXACT)
    assert devices["cpu"]["whole"] and devices["cpu"]["max_difference"] == 0
    gpu = devices["gpu"]
    assert (gpu["tried"], gpu["whole"], gpu["left_out"]) == (False, True, [])
    assert "VK_ICD_FILENAMES" in gpu["note"] and device_text(gpu) == "untried: whole"


def test_a_file_that_a_gpu_would_refuse_is_called_so(no_adapter, tmp_path):
    file = tmp_path / "m.tflite"

    def first_sum(x):
        return tf.reshape(tf.reduce_sum(x, (1, 2))[:, 0], (1, 1))

    file.write_bytes(saved_as_tflite(first_sum, (1, *SIZE, 3), tmp_path / "saved"))
    shown = images("float32")
    gpu = measure_devices(file, shown, shown.sum((1, 2))[:, :1], HALF)["gpu"]
    assert not gpu["tried"] and not gpu["whole"]
    assert any("STRIDED_SLICE drops" in line for line in gpu["left_out"])
    assert device_text(gpu).startswith("untried: not ")


def test_a_file_that_differs_on_the_cpu_is_no_export(no_adapter, content, tmp_path):
    file = tmp_path / "m.tflite"
    file.write_bytes(content("float32", "float32"))
    with pytest.raises(ExportError, match="for the CPU differs from Keras: max_difference"):
        measure_devices(file, images("float32"), logits_of(file.read_bytes()) + 0.1, EXACT)


def test_what_differs_on_a_gpu_alone_is_said(content, tmp_path, monkeypatch):
    file = tmp_path / "m.tflite"
    file.write_bytes(content("float32", "float32"))
    right = logits_of(file.read_bytes())

    def compiled(file, device, images):
        wrong = {"cpu": 0, "gpu": 1}[device]
        return accelerators.Acceleration(device, True, (), right + wrong)

    monkeypatch.setattr(accelerators, "compile_for", compiled)
    gpu = measure_devices(file, images("float32"), right, EXACT)["gpu"]
    assert "max_difference 1" in gpu["excess"] and device_text(gpu).endswith("DIFFERS")


def test_a_gpu_that_fails_keeps_no_file_from_its_name(content, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import runpy, sys\n"
        "if 'gpu' in sys.argv:\n"
        "    sys.exit(9)\n"
        f"runpy.run_path({str(accelerators.WORKER)!r}, run_name='__main__')\n"
    )
    file = tmp_path / "m.tflite"
    file.write_bytes(content("float32", "float32"))
    monkeypatch.setattr(accelerators, "WORKER", worker)
    gpu = measure_devices(file, images("float32"), logits_of(file.read_bytes()), EXACT)["gpu"]
    assert not gpu["tried"] and "ended by 9" in gpu["note"]


def test_wrong_devices_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="`device` is cpu or gpu. Received: 'npu'"):
        compile_for(tmp_path / "m.tflite", "npu")
    tmp_path.joinpath("text.tflite").write_text("no flatbuffer at all")
    with pytest.raises(ExportError, match="text.tflite"):
        compile_for(tmp_path / "text.tflite", "cpu")
