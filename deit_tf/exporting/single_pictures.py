"""A SavedModel whose requests of one picture LiteRT answers, by the file beside its graph."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from deit_tf.exporting.compare import EXACT, ExportError, deviation
from deit_tf.exporting.session import LoadedModel
from deit_tf.exporting.sidecar import read_sidecar, saved_model_description
from deit_tf.exporting.signatures import BYTES, IMAGES, answers

log = logging.getLogger(__name__)

LITERT_FILE = Path("assets.extra", "litert", "model.tflite")
MOST_THREADS = 4  # of a picture


class SinglePictures(LoadedModel):
    """A SavedModel in a C++ session; a request of one picture goes to LiteRT, unless that is busy,
    there is a GPU, or the version has no such file or one that is damaged or differs here.

    Args:
        path: Folder of a version.
    Raises:
        ExportError: If the session does not load it.
        ValueError: If what lies beside the graph is damaged.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._free = threading.Lock()  # an interpreter takes one request at a time
        self._alone = None
        file = self.path / LITERT_FILE
        if file.is_file() and not tf.config.list_physical_devices("GPU"):
            try:
                self._alone = self._by_litert(file)
            except (ExportError, ImportError, ValueError) as error:
                log.warning("%s is not used: %s", file, error)

    def run(self, signature: str, batch: np.ndarray) -> dict[str, np.ndarray]:
        """As of `LoadedModel`."""
        taken = self._alone is not None and signature in (BYTES, IMAGES) and len(batch) == 1
        if not (taken and self._free.acquire(blocking=False)):
            return super().run(signature, batch)
        try:
            return self._alone(signature, batch)
        finally:
            self._free.release()

    def _by_litert(self, file: Path) -> Callable[[str, np.ndarray], dict[str, np.ndarray]]:
        """What answers a request of one picture, compared with the session on this machine.

        Raises:
            ExportError: If it differs.
            ValueError: If the file is damaged.
        """
        from deit_tf.exporting.litert import load_tflite  # needs ai-edge-litert

        lite = load_tflite(file, min(os.cpu_count() or 1, MOST_THREADS))
        known = read_sidecar(*saved_model_description(self.path))
        shape = (1, *self.image_size, known.processor.num_channels)
        noise = np.random.default_rng(0).standard_normal(shape, np.float32)
        found = deviation(lite(noise), super().run(IMAGES, noise)["logits"])["max_difference"]
        if not found <= EXACT.max_difference:
            raise ExportError(f"it differs from the session by {found:.3g} on this machine")

        encoded = [tf.TensorSpec([], tf.string)]
        prepared = tf.function(known.processor, encoded, autograph=False)
        top_k = self._signature(IMAGES).outputs["top_k_classes"].tensor_shape.dim[1].size

        def run(signature: str, batch: np.ndarray) -> dict[str, np.ndarray]:
            images = batch if signature == IMAGES else prepared(batch[0])[None].numpy()
            logits = lite(images)  # [1, C]
            found = answers(logits, self.class_names, top_k, known.activation)
            return {key: np.asarray(value) for key, value in found.items()}

        return run
