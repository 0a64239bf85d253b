"""One contender of a benchmark in a process of its own, run by the interpreter that has its
library.

Started by benchmarks/peers.py, which says by lines on standard input when it is its turn; answers
are lines of JSON.
Knows nothing of deit_tf, unless deit_tf is the contender: a peer's environment need not hold it.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
NAME, SIDE, CLASSES = "deit_tiny_distilled_patch16_224", 224, 1000
WIDTH, DEPTH, HEADS = 192, 12, 3
LEARNING_RATE = 1e-4


def tensorflow_step(make_model, task, batch, precision, threads, runtime, parts):
    """A function that runs one batch, for deit_tf and keras-hub, by graph mode, XLA or LiteRT."""
    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    model = make_model()
    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(batch, SIDE, SIDE, 3)), tf.float32)
    if runtime == "LiteRT":
        return litert_step(model, images.numpy(), threads)
    compiled = runtime == "XLA"
    if task == "inference":
        run = tf.function(
            lambda images: model(images, training=False), jit_compile=compiled, autograph=False
        )
        return lambda: run(images).numpy()

    labels = tf.constant(random.integers(0, CLASSES, batch))
    if parts > 1:
        return distiller_step(model, images, labels, parts)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(LEARNING_RATE), loss, metrics=None, jit_compile=compiled)
    model.optimizer.build(model.trainable_variables)
    run = tf.function(model.train_step, jit_compile=compiled, autograph=False)

    return lambda: float(run((images, labels))["loss"])


def litert_step(model, images, threads):
    """This project's .tflite file, one image at a time."""
    import tempfile

    from deit_tf.exporting.litert import load_tflite
    from deit_tf.exporting.tflite import export_tflite

    folder = tempfile.mkdtemp()
    try:
        export_tflite(model, f"{folder}/model.tflite", images=images[:1])
        file = load_tflite(f"{folder}/model.tflite", threads)
    finally:
        shutil.rmtree(folder)
    return lambda: file(images)


def distiller_step(model, images, labels, parts):
    """This project's own training step, with a batch in parts and all its figures."""
    import keras
    import tensorflow as tf

    import deit_tf

    distiller = deit_tf.Distiller(model, kind="none")
    distiller.compile(keras.optimizers.AdamW(LEARNING_RATE), micro_batches=parts)
    distiller.optimizer.build(distiller.learned)
    run = tf.function(distiller.train_step, autograph=False)
    return lambda: float(run((images, labels))["loss"])


def deit_tf_model():
    """This project's."""
    import deit_tf

    return deit_tf.create_model(NAME)


def keras_hub_model():
    """keras-hub's, which has the class head alone; its logits are those of `activation=None`."""
    import keras_hub

    backbone = keras_hub.models.DeiTBackbone(
        image_shape=(SIDE, SIDE, 3),
        patch_size=16,
        num_layers=DEPTH,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        intermediate_dim=4 * WIDTH,
    )
    return keras_hub.models.DeiTImageClassifier(backbone=backbone, num_classes=CLASSES)


def torch_step(make_model, task, batch, precision, threads, runtime, automatic):
    """A function that runs one batch, for timm and transformers, eager, compiled or exported;
    `automatic` keeps weights in float32.
    """
    import torch

    torch.set_num_threads(threads)
    model, images = make_model(), torch.randn(batch, 3, SIDE, SIDE)
    if precision == "bfloat16" and not automatic:
        model, images = model.to(torch.bfloat16), images.to(torch.bfloat16)
    model = model.train(task == "train")
    if runtime in EXPORTED:
        return EXPORTED[runtime](model, images, threads)
    forward = torch.compile(model) if runtime == "torch.compile" else model
    mixed = torch.autocast("cpu", torch.bfloat16) if automatic else contextlib.nullcontext()
    if task == "inference":

        def infer():
            with torch.inference_mode(), mixed:
                return _logits(forward(images))

        return infer

    labels = torch.randint(CLASSES, (batch,))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)

    def train():
        with mixed:
            loss = torch.nn.functional.cross_entropy(_logits(forward(images)).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return train


def onnxruntime_step(model, images, threads):
    """The model as an ONNX file, in ONNX Runtime."""
    import io

    import onnxruntime
    import torch

    file = io.BytesIO()
    torch.onnx.export(model, (images,), dynamo=True).save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feeds)[0]


def openvino_step(model, images, threads):
    """The model converted by OpenVINO, in float32 as the others, for the least time of a batch."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    converted = openvino.convert_model(model, example_input=images)
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    feeds = images.numpy()
    return lambda: compiled(feeds)[0]


EXPORTED = {"ONNX Runtime": onnxruntime_step, "OpenVINO": openvino_step}


def _logits(output):
    return getattr(output, "logits", output)


def _torchvision():
    """Where torchvision's build lacks its compiled operators, of which none is called here, declare
    them.
    """
    import torch

    if subprocess.run(
        [sys.executable, "-c", "import torchvision"], stderr=subprocess.DEVNULL, check=False
    ).returncode:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def timm_model():
    """timm's; in training as well its output is the mean of both heads."""
    _KEPT.append(_torchvision())
    import timm

    return timm.create_model(NAME)


def transformers_model():
    """Hugging Face's, both heads; it takes no labels."""
    _KEPT.append(_torchvision())
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    config = DeiTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        num_labels=CLASSES,
    )
    return DeiTForImageClassificationWithTeacher(config)


_KEPT = []  # a torch library is undone when it is collected
KERAS = {"deit_tf": deit_tf_model, "keras-hub": keras_hub_model}
TORCH = {"timm": timm_model, "transformers": transformers_model}


def peak_memory() -> float:
    """The largest resident set of this process so far, in MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def build(spec):
    """The step of a contender, as benchmarks/peers.py describes it."""
    common = (spec["task"], spec["batch"], spec["precision"], spec["threads"], spec["runtime"])
    if spec["library"] in KERAS:
        return tensorflow_step(KERAS[spec["library"]], *common, spec["parts"])
    return torch_step(TORCH[spec["library"]], *common, spec["automatic"])


def main() -> None:
    """Build the contender, warm it up, then take turns until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    spec = json.loads(sys.argv[1])
    try:
        if spec["library"] == "deit_tf":
            import deit_tf  # noqa: F401, before TensorFlow, as its users do
        step = build(spec)
        for _ in range(spec["warm_up"]):
            step()
    except Exception as error:  # every reason is reported and the contender skipped
        answer(error=f"{type(error).__name__}: {error}".splitlines()[0])
        return

    answer(ready=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        answer(seconds=seconds, peak_mb=peak_memory())


if __name__ == "__main__":
    main()
