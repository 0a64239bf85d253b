"""A .tflite file, run by LiteRT: as a callable, and against the clock."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.flatbuffer import IDENTIFIER
from deit_tf.exporting.sidecar import read_sidecar, tflite_description
from deit_tf.exporting.signatures import HEADS
from deit_tf.native_log import quiet_native_log

LOGITS = "logits"  # the output, where a file gives others too
WARM_UP = 2  # runs of a file that its times leave out


class LiteModel:
    """A .tflite file as a callable, from normalized images [B, H, W, 3] to float32 [B, C] logits.

    Args:
        file: A file with one signature from one image [1, H, W, 3] to logits [1, C]; where it gives
            more, the logits are named so.
        num_threads: Threads per image; by default LiteRT chooses.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no .tflite file, is damaged, has another signature, or is not
            the one that the JSON file beside it describes.
    """

    def __init__(self, file: str | Path, num_threads: int | None = None):
        self.file = Path(file)
        # First: the checksum in it finds any damage, and LiteRT by far not all.
        self._sidecar = read_sidecar(*tflite_description(self.file))
        _check_identifier(self.file)
        self._interpreter = _loaded(self.file, num_threads)

        signatures: Mapping[str, dict] = self._interpreter.get_signature_list()
        shapes = [(list(s["inputs"]), list(s["outputs"])) for s in signatures.values()]
        if len(shapes) != 1 or len(shapes[0][0]) != 1 or not _names_logits(shapes[0][1]):
            raise ValueError(
                f"`file` needs one signature, of one input and one output, or several of which one "
                f"is {LOGITS!r}. Received: {file} with {shapes}"
            )

        (self._input,), outputs = shapes[0]
        self.logits_name = outputs[0] if len(outputs) == 1 else LOGITS
        self._run = self._interpreter.get_signature_runner()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images in pixels."""
        height, width = self._run.get_input_details()[self._input]["shape"][1:3]
        return int(height), int(width)

    @property
    def num_classes(self) -> int:
        """Number of classes that it gives logits of."""
        return int(self._run.get_output_details()[self.logits_name]["shape"][-1])

    @property
    def input_type(self) -> str:
        """`float32`, normalized images, or `uint8`, pixels."""
        return np.dtype(self._run.get_input_details()[self._input]["dtype"]).name

    def prepared(self, images: np.ndarray, processor: ImageProcessor | None = None) -> np.ndarray:
        """Images [B, H, W, 3] as the file takes them: normalized ones become pixels where it asks
        for these.

        Args:
            images: Normalized, or uint8 pixels.
            processor: What normalized them; by default what the JSON file beside the file says.
        Raises:
            ValueError: If nothing says how they were normalized.
        """
        images = np.asarray(images)
        if self.input_type != "uint8":
            return images.astype(np.float32, copy=False)
        if images.dtype == np.uint8:
            return images

        processor = processor or (self._sidecar and self._sidecar.processor)
        if processor is None:
            description, _ = tflite_description(self.file)
            raise ValueError(
                f"{self.file} takes pixels and has no {description.name} beside it that says how "
                "images are normalized. Export it again, copy both, or pass uint8 images."
            )

        return processor.to_pixels(images)

    def __call__(self, images: np.ndarray, processor: ImageProcessor | None = None) -> np.ndarray:
        """Logits, float32 [B, C], of images [B, H, W, 3] and their processor, as `prepared` takes
        them.

        Raises:
            ExportError: If LiteRT does not run it.
        """
        return self.outputs(images, processor)[self.logits_name]

    def outputs(
        self, images: np.ndarray, processor: ImageProcessor | None = None
    ) -> dict[str, np.ndarray]:
        """All that the file gives, by name, of such images.

        Raises:
            ExportError: If LiteRT does not run it.
        """
        images = self.prepared(images, processor)
        try:
            answers = [self._run(**{self._input: image[None]}) for image in images]
        except RuntimeError as error:
            raise ExportError(f"{self.file} does not run: {error}") from error
        return {key: np.concatenate([answer[key] for answer in answers]) for key in answers[0]}

    def logits(
        self, images: np.ndarray, processor: ImageProcessor | None = None
    ) -> dict[str, np.ndarray]:
        """The same as `mean`, and `cls` and `dist` where the file gives both heads."""
        found = self.outputs(images, processor)
        logits = {"mean": found[self.logits_name]}
        if HEADS in found:
            logits |= {"cls": found[HEADS][:, 0], "dist": found[HEADS][:, 1]}
        return logits

    def ask(
        self, entry: str, batch: np.ndarray, processor: ImageProcessor | None = None
    ) -> np.ndarray:
        """The same: there is one entry."""
        return self(batch, processor)


def load_tflite(file: str | Path, num_threads: int | None = None) -> LiteModel:
    """Load a .tflite file as a callable from images [B, H, W, 3] to logits [B, C]; it runs them one
    at a time.
    """
    return LiteModel(file, num_threads)


def _names_logits(outputs: list[str]) -> bool:
    """Whether it is clear which of a file's outputs is the logits."""
    return len(outputs) == 1 or LOGITS in outputs


def _check_identifier(file: Path) -> None:
    """Refuse, by ValueError, what does not begin as a .tflite file does."""
    with file.open("rb") as content:
        head = content.read(8)
    if head[4:] != IDENTIFIER:
        raise ValueError(
            f"{file} is no .tflite file, or damaged: it does not begin as one. Received: {head!r}"
        )


def _loaded(file: Path, num_threads: int | None) -> Interpreter:
    try:
        with quiet_native_log():  # which tells of each process's first delegate
            interpreter = Interpreter(model_path=str(file), num_threads=num_threads)
            interpreter.allocate_tensors()
        # Names that are no text are found here, and not when they are asked for.
        interpreter.get_signature_list()
        interpreter.get_input_details()
        interpreter.get_output_details()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: LiteRT does not load it. {error}") from error
    return interpreter


def latencies(
    files: Mapping[Any, str | Path],
    images: np.ndarray,
    *,
    processor: ImageProcessor | None = None,
    num_threads: int = 1,
    rounds: int = 20,
) -> dict[Any, dict]:
    """Time .tflite files against one another, taking turns, so that what else the machine does hits
    all of them.

    Args:
        files: The files, by name.
        images: float32 [n, H, W, 3], normalized; the first is run.
        processor: What normalized them; by default what the JSON file beside each file says.
        num_threads: Threads per image.
        rounds: How often each file runs, after two runs that do not count.
    Returns:
        By name `best_ms` and `median_ms` of an image, and `threads`.
    """
    loaded = {name: load_tflite(file, num_threads) for name, file in files.items()}
    image = np.asarray(images)[:1]
    inputs = {name: model.prepared(image, processor) for name, model in loaded.items()}
    times = {name: [] for name in files}

    for _ in range(rounds + WARM_UP):
        for name, model in loaded.items():
            started = time.perf_counter()
            model(inputs[name])
            times[name].append((time.perf_counter() - started) * 1000)

    return {
        name: {
            "best_ms": min(taken[WARM_UP:]),
            "median_ms": float(np.median(taken[WARM_UP:])),
            "threads": num_threads,
        }
        for name, taken in times.items()
    }
