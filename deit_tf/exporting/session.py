"""A SavedModel in a C++ session, as TensorFlow Serving holds it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf

from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.sidecar import GRAPH_FILE
from deit_tf.exporting.signatures import HEADS, IMAGES
from deit_tf.files import CLASS_NAMES_FILE, read_class_names

# What TensorFlow raises for a graph that is damaged, beside its own errors.
DAMAGED = (OSError, RuntimeError, ValueError, TypeError, KeyError, tf.errors.OpError)


class LoadedModel:
    """A SavedModel in a C++ session; from images [B, H, W, 3] to logits [B, C].

    Args:
        path: Folder of a version.
    Raises:
        ExportError: If the session does not load it.
        ValueError: If the class names beside the graph are damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with _without_advice():
            try:
                graph = tf.compat.v1.saved_model.load(
                    self._session, [tf.saved_model.SERVING], str(path)
                )
            except DAMAGED as error:
                raise ExportError(f"{path} does not load in a C++ session: {error}") from error

        self.signatures = dict(graph.signature_def)
        names = self.path / "assets" / CLASS_NAMES_FILE
        self.class_names = read_class_names(names) if names.exists() else ()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images of the signature `images`, in pixels."""
        (tensor,) = self._signature(IMAGES).inputs.values()
        height, width = (dim.size for dim in tensor.tensor_shape.dim[1:3])
        return height, width

    @property
    def num_classes(self) -> int:
        """Number of classes that the signature `images` gives logits of."""
        return self._signature(IMAGES).outputs["logits"].tensor_shape.dim[1].size

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
        from deit_tf.exporting.warmup import replay_warmup  # needs tensorflow-serving-api

        return replay_warmup(self.path, self.run)

    def __call__(self, images: np.ndarray, processor: ImageProcessor | None = None) -> np.ndarray:
        """Logits, float32 [B, C], of normalized images [B, H, W, 3]; `processor`, which made them,
        is for forms that take pixels.

        Raises:
            ExportError: If the session does not run them.
        """
        return self.ask(IMAGES, np.asarray(images, np.float32))

    def logits(
        self, images: np.ndarray, processor: ImageProcessor | None = None
    ) -> dict[str, np.ndarray]:
        """The same as `mean`, and `cls` and `dist` of a distilled model."""
        images = np.asarray(images, np.float32)
        heads = self._run_graph(HEADS, images) if HEADS in self.signatures else {}
        return {"mean": self(images), **heads}

    def ask(
        self, signature: str, batch: np.ndarray, processor: ImageProcessor | None = None
    ) -> np.ndarray:
        """Logits [B, C] of a batch in the form that `signature` takes."""
        answers = self._run_graph(signature, batch)
        if "logits" not in answers:
            raise ExportError(
                f"{self.path} gives no `logits` by {signature!r}, only {', '.join(sorted(answers))}"
            )
        return answers["logits"]

    def _run_graph(self, signature: str, batch: np.ndarray) -> dict[str, np.ndarray]:
        try:
            return self.run(signature, batch)
        except DAMAGED as error:
            raise ExportError(f"{self.path} does not run {signature!r}: {error}") from error

    def _signature(self, name: str):
        if name not in self.signatures:
            raise ExportError(
                f"{self.path} has no signature {name!r}, only {sorted(self.signatures)}"
            )
        return self.signatures[name]


def load_saved_model(path: str | Path) -> LoadedModel:
    """Load the folder of a version as a callable from images [B, H, W, 3] to logits [B, C]."""
    return LoadedModel(path)


def newest_version(folder: Path) -> Path | None:
    """The folder of a version: `folder` itself, or the highest number in it that has a graph, as
    TensorFlow Serving chooses; None where there is neither.
    """
    if (folder / GRAPH_FILE).is_file():
        return folder
    if not folder.is_dir():
        return None
    numbered = {
        int(path.name): path
        for path in folder.iterdir()
        if path.name.isdecimal() and (path / GRAPH_FILE).is_file()
    }
    return numbered[max(numbered)] if numbered else None


@contextmanager
def _without_advice() -> Iterator[None]:
    """TensorFlow advises tf.saved_model.load, which finds variables as no server does."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
