"""An ONNX file, run by ONNX Runtime on the CPU: as a callable from images to logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.outputs import LOGITS
from deit_tf.exporting.sidecar import onnx_description, read_sidecar

INSTALL = "pip install 'deit_tf[onnx]'"


class OnnxModel:
    """An ONNX file as a callable, from normalized images [B, H, W, 3] to float32 [B, C] logits.

    Args:
        file: A file with one input, images [B, H, W, 3], and one output, or several of which one
            is `logits`.
    Raises:
        ImportError: Where ONNX Runtime is not installed.
        ValueError: If the file is damaged, has other inputs or outputs, or is not the one that the
            JSON file beside it describes.
    """

    def __init__(self, file: str | Path):
        self.file = Path(file)
        # First: the checksum in it finds any damage, and ONNX Runtime by far not all.
        read_sidecar(*onnx_description(self.file))
        self._session = _session(self.file)

        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        names = [each.name for each in outputs]
        takes_images = len(inputs) == 1 and len(inputs[0].shape) == 4
        if not takes_images or len(names) > 1 and LOGITS not in names:
            raise ValueError(
                f"{file} must take images [B, H, W, 3] and give {LOGITS!r}. Received: inputs "
                f"{[(each.name, each.shape) for each in inputs]}, outputs {names}"
            )
        (self._input,) = inputs
        self._logits = outputs[names.index(LOGITS) if LOGITS in names else 0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images in pixels."""
        height, width = self._input.shape[1:3]
        return height, width

    @property
    def num_classes(self) -> int:
        """Number of classes that it gives logits of."""
        return self._logits.shape[-1]

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All that the file gives, by name, of normalized images [B, H, W, 3].

        Raises:
            ExportError: If ONNX Runtime does not run it.
        """
        names = [each.name for each in self._session.get_outputs()]
        feed = {self._input.name: np.asarray(images, np.float32)}
        with _failing_as(ExportError, f"{self.file} does not run"):
            return dict(zip(names, self._session.run(names, feed), strict=True))

    def __call__(self, images: np.ndarray, processor: ImageProcessor | None = None) -> np.ndarray:
        """Logits, float32 [B, C], of normalized images; `processor`, which made them, is for forms
        that take pixels.
        """
        return self.outputs(images)[self._logits.name]

    def logits(
        self, images: np.ndarray, processor: ImageProcessor | None = None
    ) -> dict[str, np.ndarray]:
        """The same as `mean`, and `cls` and `dist` of a distilled model."""
        found = self.outputs(images)
        mean = found.pop(self._logits.name)
        return {"mean": mean, **found}

    def ask(
        self, entry: str, batch: np.ndarray, processor: ImageProcessor | None = None
    ) -> np.ndarray:
        """The same as calling it: there is one entry."""
        return self(batch, processor)


def _session(file: Path):
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{file} is run by ONNX Runtime, which is missing: {INSTALL}") from error

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    with _failing_as(ValueError, f"{file} is damaged: ONNX Runtime does not load it"):
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


@contextmanager
def _failing_as(kind: type[Exception], sentence: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises, which has no class in common, into one kind of error."""
    try:
        yield
    except Exception as error:
        raise kind(f"{sentence}. {' '.join(str(error).split())[:300]}") from error
