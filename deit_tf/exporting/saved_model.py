"""A Keras classifier as a SavedModel for TensorFlow Serving: signatures, labels, warm-up,
verification.

Layout and signatures as https://www.tensorflow.org/tfx/serving/saved_model_basics asks for them. A
version appears under its name only after it was loaded in a C++ session and compared with Keras.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from deit_tf.data.decode import decode_image
from deit_tf.data.pillow import MOST_LEVELS, crop_by_pillow
from deit_tf.data.preprocess import ImageProcessor, normalize
from deit_tf.exporting.compare import ExportError, deviation
from deit_tf.exporting.sidecar import LABELS_FILE, check_labels, to_pixels
from deit_tf.exporting.tflite import comparison_images, float32_twin
from deit_tf.exporting.warmup import BATCH_SIZES, replay_warmup, write_warmup
from deit_tf.models.deit import heads
from deit_tf.models.features import attention_maps

BYTES, IMAGES, HEADS, ROLLOUT = "serving_default", "images", "heads", "rollout"
REPORT_FILE = Path("assets.extra", "verification.json")
# What a checkpoint holds beside the weights; measured at about 90 bytes a variable.
INDEX_BYTES, INDEX_BYTES_PER_VARIABLE = 4096, 256


def export_saved_model(
    model: keras.Model,
    directory: str | Path,
    *,
    processor: ImageProcessor,
    labels: Sequence[str] | None = None,
    version: int = 1,
    name: str | None = None,
    top_k: int = 5,
    rollout: bool = False,
    xla: bool = False,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    images: np.ndarray | None = None,
    tolerance: float = 1e-4,
) -> Path:
    """Write `directory/<name>/<version>/`, ready for TensorFlow Serving, after verifying it.

    The signatures take a batch of any size. `serving_default` maps `image_bytes` (tf.string [B],
    JPEG, PNG, GIF, BMP or WebP files) and `images` maps `images` (float32 [B, H, W, 3], normalized)
    to `logits` and `probabilities` (float32 [B, C]), `top_k_classes` (int32 [B, k]),
    `top_k_probabilities` and `top_k_labels` (string [B, k]); `heads`, of a distilled model, maps
    `images` to `cls` and `dist` logits [B, C]; `rollout`, where asked for, maps `images` to
    `rollout` [B, H/P, W/P], the share of each patch in the decision as `attention_maps` has it. One
    file that does not decode fails its whole batch.

    Args:
        model: From float32 [B, H, W, 3] images to [B, C] logits.
        directory: Model base path of the server; made where missing.
        processor: How the model wants its images.
        labels: C class names in class order; "0" to "C-1" by default.
        version: Number of the version, from 1; a server takes the highest.
        name: Folder of the model; `model.name` by default.
        top_k: How many classes the top-k outputs name, C at most.
        rollout: Whether there is a signature for the attention rollout; of a DeiT alone.
        xla: Whether the network, not the decoding of pictures, is compiled by XLA: on the server,
            anew for each batch size, so that it must fill batches up to `batch_sizes`.
        batch_sizes: Those that the server allows; each signature has a warm-up record of each.
        images: float32 [n, H, W, 3], normalized, to verify on; held-out ones. Noise if None.
        tolerance: Difference from Keras allowed, as `deviation` in deit_tf.exporting.compare has
            it.
    Returns:
        The folder of the version; `read_report` gives what was measured.
    Raises:
        ValueError: If an argument does not fit the model.
        FileExistsError: If the version exists; it is not touched.
        ExportError: If the verification fails; nothing is left behind.
    Differs: a model of mixed precision is exported, and compared, computing in float32.
    """
    samples = comparison_images(model, images)
    labels = [str(i) for i in range(model.output_shape[-1])] if labels is None else list(labels)
    check_labels(labels, model.output_shape[-1])
    _check_arguments(model, processor, version, top_k, batch_sizes)
    name = _checked_name(name or model.name)
    target = Path(directory, name, str(version))
    if target.exists():
        raise FileExistsError(f"{target} exists and is left as it is. Take the next `version`.")
    model = float32_twin(model)
    # On the file system of the target, so that the rename is one step and a server never sees half
    # a version; inside a folder of its own, as that one is made for its owner alone and the version
    # must be readable by the server.
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    with tempfile.TemporaryDirectory(prefix=".export-", dir=parent) as temporary:
        staged = Path(temporary, "version")
        signatures = _signatures(model, processor, labels, top_k, rollout, xla)
        write_saved_model(model, staged, signatures=signatures, labels=labels)
        inputs = {key: function.input_signature[0] for key, function in signatures.items()}
        write_warmup(staged, name, inputs, _encoded_pictures(samples, processor), batch_sizes)
        report = verify_saved_model(
            staged, model, samples, processor, tolerance, signatures=list(signatures)
        )
        report |= {"compared_on": "noise" if images is None else "images", "xla": xla}
        staged.joinpath(REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(
            staged, target
        )  # fails where another export was faster: the target is then a folder with files
    return target


def read_report(path: str | Path) -> dict:
    """What `verify_saved_model` measured when `path`, the folder of a version, was exported."""
    return json.loads(Path(path, REPORT_FILE).read_text())


def write_saved_model(
    model: keras.Model, path: str | Path, *, signatures: dict, labels: Sequence[str]
) -> None:
    """Write a SavedModel of `model` with these signatures to the folder `path`, unverified."""
    # The variables, and the model hidden in closures. A tracked Keras model saves and loads in
    # Python, but a C++ session does not find its variables
    # (https://github.com/keras-team/keras/issues/20095); Model.export writes each of them twice
    # (https://github.com/keras-team/keras/issues/23553).
    module = tf.Module()
    module.weights = [v.value for v in model.variables]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, LABELS_FILE)
        file.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        module.labels_file = tf.saved_model.Asset(str(file))
        tf.saved_model.save(module, str(path), signatures=signatures)


def verify_saved_model(
    path: str | Path,
    model: keras.Model,
    images: np.ndarray,
    processor: ImageProcessor | None = None,
    tolerance: float = 1e-4,
    signatures: Sequence[str] = (),
) -> dict:
    """Load a SavedModel in a C++ session, compare every signature with Keras and replay the warm-up
    records.

    Args:
        path: Folder of a version.
        model: The model it was made from, computing in float32.
        images: float32 [n, H, W, 3], normalized.
        processor: How bytes become images; None leaves the signature of bytes out.
        tolerance: Difference allowed, over max(1, largest |Keras's logit|).
        signatures: What there must be beside `images`, `heads` of a distilled model, and that of
            bytes.
    Returns:
        `weights_bytes` on disk, `images_compared` (n), `warmup_records` and, by signature, what
        `deviation` in deit_tf.exporting.compare measures; of two heads, that of the worse; of the
        rollout, times its number of patches. The bytes are 2n PNG and JPEG files made from
        `images`; for them `levels_from_pillow` as well, the largest difference of a pixel, prepared
        for the network, from what Pillow makes of the file.
    Raises:
        ExportError: If weights are missing or written twice, the session does not load or run, an
            output is missing, one differs, pixels differ from Pillow's, or there are no warm-up
            records.
    """
    images = np.asarray(images, np.float32)
    report = {"weights_bytes": _check_weights(Path(path), model), "images_compared": len(images)}
    loaded = load_saved_model(path)
    try:
        report[IMAGES] = _verify_images(loaded, model, images, tolerance)
        if has_two_heads(model):
            report[HEADS] = _verify_heads(loaded, model, images, tolerance)
        if ROLLOUT in signatures:
            report[ROLLOUT] = _verify_rollout(loaded, model, images, tolerance)
        if processor is not None:
            report[BYTES] = _verify_bytes(loaded, model, images, processor, tolerance)
        report["warmup_records"] = loaded.warm_up()
    except (tf.errors.OpError, KeyError, ValueError) as error:
        raise ExportError(
            f"{path} fails in a C++ session: {type(error).__name__}: {error}"
        ) from error
    if not report["warmup_records"]:
        raise ExportError(
            f"{path} has no warm-up records: its first requests would wait for the graph"
        )
    return report


class LoadedModel:
    """A SavedModel in a C++ session, as TensorFlow Serving holds it; from images [B, H, W, 3] to
    logits [B, C].

    Args:
        path: Folder of a version.
    Raises:
        ExportError: If the session does not load it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        logger = tf.get_logger()
        level = logger.level
        logger.setLevel(
            "ERROR"
        )  # it advises tf.saved_model.load, which finds variables as no server does
        try:
            graph = tf.compat.v1.saved_model.load(
                self._session, [tf.saved_model.SERVING], str(path)
            )
        except (OSError, RuntimeError, tf.errors.OpError) as error:
            raise ExportError(f"{path} does not load in a C++ session: {error}") from error
        finally:
            logger.setLevel(level)
        self.signatures = dict(graph.signature_def)
        assets = self.path / "assets" / LABELS_FILE
        self.labels = assets.read_text(encoding="utf-8").splitlines() if assets.exists() else []

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images of the signature `images`, in pixels."""
        (tensor,) = self._signature(IMAGES).inputs.values()
        height, width = (dim.size for dim in tensor.tensor_shape.dim[1:3])
        return height, width

    def run(self, signature: str, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Run a signature of one input on a batch; returns its outputs by name.

        Raises:
            ExportError: If there is no such signature.
            ValueError: If the batch has another shape or dtype.
            tf.errors.InvalidArgumentError: If one of the files in the batch does not decode.
        """
        definition = self._signature(signature)
        (tensor,) = definition.inputs.values()
        fetches = {key: output.name for key, output in definition.outputs.items()}
        return self._session.run(fetches, {tensor.name: batch})

    def warm_up(self) -> int:
        """Replay the warm-up records, as TensorFlow Serving does before it serves a version;
        returns their number.

        Raises:
            ValueError: If an answer is no good.
            tf.errors.OpError: If the session does not run one, or the file is damaged.
        """
        return replay_warmup(self.path, self.run)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits, float32 [B, C], of normalized images [B, H, W, 3]."""
        return self.run(IMAGES, np.asarray(images, np.float32))["logits"]

    def _signature(self, name: str):
        if name not in self.signatures:
            raise ExportError(
                f"{self.path} has no signature {name!r}, only {sorted(self.signatures)}"
            )
        return self.signatures[name]


def load_saved_model(path: str | Path) -> LoadedModel:
    """Load the folder of a version as a callable from images [B, H, W, 3] to logits [B, C]."""
    return LoadedModel(path)


def has_two_heads(model: keras.Model) -> bool:
    """Whether `model` is a DeiT with a class head and a distillation head."""
    return {"head", "head_dist"} <= {layer.name for layer in model.layers}


def _signatures(
    model: keras.Model,
    processor: ImageProcessor,
    labels: Sequence[str],
    top_k: int,
    rollout: bool = False,
    xla: bool = False,
) -> dict:
    """The signatures of `export_saved_model`, as functions that hold `model` by closure."""
    top_k = min(top_k, len(labels))
    image = tf.TensorSpec((*processor.size, 3), tf.float32)
    network = _network(model, xla)

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.cast(network(images), tf.float32)  # [B, C]
        probabilities = tf.nn.softmax(logits)
        classes = tf.math.top_k(logits, top_k).indices  # [B, k], int32
        return {
            "logits": logits,
            "probabilities": probabilities,
            "top_k_classes": classes,
            "top_k_probabilities": tf.gather(probabilities, classes, batch_dims=1),
            "top_k_labels": tf.gather(tf.constant(list(labels)), classes),
        }

    def from_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return classify(tf.map_fn(processor, image_bytes, fn_output_signature=image))

    encoded = tf.TensorSpec((None,), tf.string, name="image_bytes")
    batch = tf.TensorSpec((None, *image.shape), tf.float32, name="images")
    signatures = {
        BYTES: tf.function(from_bytes, input_signature=[encoded]),
        IMAGES: tf.function(classify, input_signature=[batch]),
    }
    if has_two_heads(model):
        signatures[HEADS] = tf.function(_network(heads(model), xla), input_signature=[batch])
    if rollout:
        maps = _network(_rollout(model), xla)
        signatures[ROLLOUT] = tf.function(
            lambda images: {"rollout": maps(images)}, input_signature=[batch]
        )
    return signatures


def _network(model: keras.Model, xla: bool):
    """`model` in inference, from images to what it gives; XLA takes no strings, so that decoding
    stays outside.
    """
    return tf.function(
        lambda images: model(images, training=False), jit_compile=True if xla else None
    )


def _rollout(model: keras.Model) -> keras.Model:
    maps = attention_maps(model)
    return keras.Model(maps.input, maps.output["rollout"])


def _checked_name(name: str) -> str:
    if name in (".", "..") or Path(name).name != name:
        raise ValueError(f"`name` must be the name of one folder. Received: {name!r}")
    return name


def _check_arguments(
    model: keras.Model,
    processor: ImageProcessor,
    version: int,
    top_k: int,
    batch_sizes: Sequence[int],
) -> None:
    if model.input_shape[1:] != (*processor.size, 3):
        raise ValueError(
            f"`processor` must make images of the model's shape {model.input_shape[1:]}. "
            f"Received: image_size={processor.image_size}"
        )
    if not batch_sizes:
        raise ValueError("`batch_sizes` must name one at least, such as (1,). Received none.")
    for argument, number in (
        ("version", version),
        ("top_k", top_k),
        *(("batch_sizes", size) for size in batch_sizes),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"`{argument}` takes a whole number from 1. Received: {number!r}")


def _check_weights(path: Path, model: keras.Model) -> int:
    """Bytes of the weights on disk, refused where they are not those of the model, once."""
    found = sum(file.stat().st_size for file in path.glob("variables/variables.data-*"))
    expected = sum(v.value.dtype.size * v.value.shape.num_elements() for v in model.variables)
    slack = 0.05 * expected + INDEX_BYTES + INDEX_BYTES_PER_VARIABLE * len(model.variables)
    if abs(found - expected) > slack:
        raise ExportError(
            f"{path} holds {found} bytes of weights, the model {expected}: "
            + ("some are missing" if found < expected else "each may be there twice")
        )
    return found


def _verify_images(
    loaded: LoadedModel, model: keras.Model, images: np.ndarray, tolerance: float
) -> dict[str, float]:
    expected = np.asarray(model(images, training=False))  # [n, C]
    outputs = loaded.run(IMAGES, images)
    _check_top_k(IMAGES, outputs, expected, loaded.labels, tolerance)
    # A batch of one as well: a batch size that tracing froze shows only with a second size.
    _compare(
        f"{IMAGES}, a batch of one",
        loaded.run(IMAGES, images[:1])["logits"],
        expected[:1],
        tolerance,
    )
    return _compare(IMAGES, outputs["logits"], expected, tolerance)


def _verify_heads(
    loaded: LoadedModel, model: keras.Model, images: np.ndarray, tolerance: float
) -> dict[str, float]:
    outputs, expected = loaded.run(HEADS, images), heads(model)(images, training=False)
    measured = [
        _compare(f"{HEADS}, {key}", outputs[key], expected[key], tolerance)
        for key in ("cls", "dist")
    ]
    return max(measured, key=lambda one: one["max_difference"])


def _verify_rollout(
    loaded: LoadedModel, model: keras.Model, images: np.ndarray, tolerance: float
) -> dict[str, float]:
    found, expected = (
        loaded.run(ROLLOUT, images)["rollout"],
        np.asarray(_rollout(model)(images)),
    )  # [n, H/P, W/P]
    patches = expected[
        0
    ].size  # shares sum to 1: times their number, they are of order 1 as logits are
    return _compare(
        ROLLOUT,
        *(patches * np.reshape(maps, (len(images), -1)) for maps in (found, expected)),
        tolerance,
    )


def _verify_bytes(
    loaded: LoadedModel,
    model: keras.Model,
    images: np.ndarray,
    processor: ImageProcessor,
    tolerance: float,
) -> dict[str, float]:
    encoded = _encoded_pictures(images, processor)
    cropped = np.stack(
        [processor.crop(decode_image(picture)) for picture in encoded]
    )  # uint8 [2n, H, W, 3]
    pillow = np.stack([crop_by_pillow(picture, processor) for picture in encoded])
    if (levels := int(np.abs(np.int16(cropped) - pillow).max())) > MOST_LEVELS:
        raise ExportError(
            f"pixels differ from Pillow's by {levels} gray levels, {MOST_LEVELS} are allowed"
        )
    expected = np.asarray(
        model(normalize(cropped, processor.mean, processor.std), training=False)
    )  # [2n, C]
    outputs = loaded.run(BYTES, encoded)
    _check_top_k(BYTES, outputs, expected, loaded.labels, tolerance)
    return _compare(BYTES, outputs["logits"], expected, tolerance) | {"levels_from_pillow": levels}


def _compare(
    what: str, logits: np.ndarray, expected: np.ndarray, tolerance: float
) -> dict[str, float]:
    measured = deviation(logits, expected)
    if not measured["max_difference"] <= tolerance:  # a NaN fails as well
        raise ExportError(
            f"signature {what}: logits differ from Keras by {measured['max_difference']:.3g}, "
            f"{tolerance:g} is allowed"
        )
    return measured


def _check_top_k(
    what: str, outputs: dict, expected: np.ndarray, labels: Sequence[str], tolerance: float
) -> None:
    """Compare probabilities, top-k and labels with what the logits of Keras make of them."""
    probabilities = np.asarray(tf.nn.softmax(expected))  # [n, C]
    classes = outputs["top_k_classes"]  # [n, k]
    best = -np.sort(-probabilities, axis=-1)[:, : classes.shape[-1]]
    names = [[labels[c].encode() for c in row] for row in classes] if labels else None
    # By probability, not by class: two classes that are equal to the last bit may change places.
    checks = {
        "probabilities": np.abs(outputs["probabilities"] - probabilities).max() <= tolerance,
        "top_k_probabilities": np.abs(outputs["top_k_probabilities"] - best).max() <= tolerance,
        "top_k_classes": np.abs(np.take_along_axis(probabilities, classes, -1) - best).max()
        <= tolerance,
        "top_k_labels": outputs["top_k_labels"].tolist() == names,
    }
    if wrong := [key for key, holds in checks.items() if not holds]:
        raise ExportError(
            f"signature {what}: {', '.join(wrong)} do not follow from the logits and {LABELS_FILE}"
        )


def _encoded_pictures(images: np.ndarray, processor: ImageProcessor) -> list[bytes]:
    """Normalized images [n, H, W, 3] as n PNG files, and as n JPEG files cut to another shape, so
    as to be resized.
    """
    pixels = to_pixels(images, processor.mean, processor.std)
    cut = pixels[:, :, : max(1, 2 * pixels.shape[2] // 3)]
    whole = [tf.io.encode_png(picture).numpy() for picture in pixels]
    return whole + [tf.io.encode_jpeg(picture, quality=95).numpy() for picture in cut]
