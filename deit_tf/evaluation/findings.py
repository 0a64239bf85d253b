"""What a trained run does on its held-out images: decisions of every head, the pictures worth a
look, the exports.

Arrays and plain records; how they look on a page is the report's affair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf

from deit_tf.data import Source, eval_dataset, masked_eval_dataset, sample
from deit_tf.distillation.teacher import Teacher
from deit_tf.distillation.teacher_sources import load_teacher
from deit_tf.evaluation.multilabel import Labelings
from deit_tf.evaluation.photographs import photograph
from deit_tf.exporting.compare import ExportError, agreement, deviation
from deit_tf.exporting.formats import Export, find_exports
from deit_tf.exporting.reference import keras_logits
from deit_tf.exporting.signatures import rollout_model
from deit_tf.losses import masked_l1
from deit_tf.models import heads
from deit_tf.models.parts import is_deit
from deit_tf.runs import RunFolder, load_model, load_run

PICTURES = 12


@dataclass(frozen=True)
class Artifact:
    """An exported model, run on held-out images beside Keras.

    Args:
        path: Where it lies.
        size: Bytes of all its files.
        deviation: What `deviation` in deit_tf.exporting.compare measures; None where it did not
            run.
        allowed: The largest difference that its form may have; None where nothing says how it was
            made.
        error: Why it did not run, or what is wrong with it.
    """

    path: str
    size: int
    deviation: dict[str, float] | None = None
    allowed: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Decisions:
    """What everyone says about each of n held-out images.

    Args:
        truth: int [n].
        top: Top class int [n] by `model` (mean of the heads), `cls`, `dist`, `teacher`, `ema`,
            where they are.
        confidence: Probability of the model's top class, float [n].
    """

    truth: np.ndarray
    top: dict[str, np.ndarray]
    confidence: np.ndarray

    def accuracy(self) -> dict[str, float]:
        """Share of right answers, 0..1, by who answers."""
        return {name: float((top == self.truth).mean()) for name, top in self.top.items()}

    def agreement(self) -> dict[str, float]:
        """Share of images, 0..1, on which each decides as the teacher does."""
        teacher = self.top.get("teacher")
        others = {name: top for name, top in self.top.items() if name != "teacher"}
        return (
            {}
            if teacher is None
            else {name: float((top == teacher).mean()) for name, top in others.items()}
        )

    def confusion(self, classes: int) -> np.ndarray:
        """Images [C, C] by true class (rows) and the model's decision."""
        matrix = np.zeros((classes, classes), int)
        np.add.at(matrix, (self.truth, self.top["model"]), 1)
        return matrix

    def mistakes(self, count: int = PICTURES) -> np.ndarray:
        """Images that the model gets wrong, the most confident first."""
        wrong = np.flatnonzero(self.top["model"] != self.truth)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:count]

    @property
    def voices(self) -> list[str]:
        """Who may disagree: the heads, or the model where it has one, and the teacher."""
        students = [name for name in ("cls", "dist") if name in self.top] or ["model"]
        return students + [name for name in ("teacher",) if name in self.top]

    def disagreements(self, count: int = PICTURES) -> np.ndarray:
        """Images on which the voices are not of one mind; three opinions first, then by the model's
        confidence.
        """
        opinions = np.array(
            [len(set(column)) for column in np.stack([self.top[name] for name in self.voices]).T]
        )
        divided = np.flatnonzero(opinions > 1)
        return divided[np.lexsort((-self.confidence[divided], -opinions[divided]))][:count]


@dataclass(frozen=True)
class Attention:
    """Where the attention to a held-out picture comes from, and what the heads say of it.

    Args:
        pixels: What the model sees, as `photograph` has it.
        rollout: Attention rollout, [H/P, W/P], sum 1.
        label: The true class, int []; or float [C], 1 where a class is there.
        logits: [C] by head.
    """

    pixels: np.ndarray
    rollout: np.ndarray
    label: np.ndarray
    logits: dict[str, np.ndarray]


class Findings:
    """A run, looked at on its held-out images; each part is computed when it is asked for.

    Args:
        path: A run directory.
        exports: A folder to look for exported artifacts in, besides the run itself.
    Raises:
        FileNotFoundError: If `path` is no finished run.
    """

    def __init__(self, path: str | Path, exports: str | Path | None = None):
        self.path = Path(path)
        folder = RunFolder(self.path)
        self.summary = folder.read_summary()
        self.run = load_run(self.path)
        self.epochs = folder.read_metrics()
        self._folders = [self.path] + ([Path(exports)] if exports else [])
        self.notes: list[str] = []

    @property
    def masked(self) -> bool:
        """Whether the run pre-trained a trunk and has no classes to decide on."""
        return self.run.config.task == "masked"

    @property
    def multilabel(self) -> bool:
        """Whether an image of the run has any number of labels."""
        return self.run.config.task == "multilabel"

    @cached_property
    def held_out(self) -> Source | None:
        """The images that the run did not train on; None, with a note, where they are not at
        hand.
        """
        try:
            return self.run.sources[1]
        except (FileNotFoundError, ValueError) as error:
            self.notes.append(
                f"The held-out images are not at hand, so nothing below looks at pictures: {error}"
            )
            return None

    @cached_property
    def teacher(self) -> Teacher | None:
        """The teacher of a distilled run; None, with a note, where it cannot be loaded."""
        distill = self.run.config.distill
        if self.summary["kind"] not in ("hard", "soft") or not distill.teacher:
            return None
        try:
            return load_teacher(
                distill.teacher, self.run.labels, self.run.processor, self.multilabel
            )
        except (OSError, ValueError, ImportError) as error:
            self.notes.append(
                f"The teacher could not be loaded, so its opinions are missing: {error}"
            )
            return None

    @cached_property
    def decisions(self) -> Decisions | None:
        """What the model, its heads, its teacher and its moving average decide; None without
        images, or of images with any number of labels.
        """
        if self.masked or self.multilabel or self.held_out is None:
            return None
        voices, truth, top, confidence = self._voices(), [], {}, []

        for images, labels in eval_dataset(
            self.held_out, self.run.config.data, self.run.processor
        ).as_numpy_iterator():
            truth.append(labels)
            for name, logits in voices(images).items():
                top.setdefault(name, []).append(logits.argmax(-1))
                if name == "model":
                    confidence.append(tf.nn.softmax(logits).numpy().max(-1))

        return Decisions(
            np.concatenate(truth),
            {k: np.concatenate(v) for k, v in top.items()},
            np.concatenate(confidence),
        )

    @cached_property
    def labelings(self) -> Labelings | None:
        """The same of images with any number of labels; None of other images, and without any."""
        if not self.multilabel or self.held_out is None:
            return None
        voices, truth, logits = self._voices(), [], {}
        batches = eval_dataset(self.held_out, self.run.config.data, self.run.processor)
        for images, labels in batches.as_numpy_iterator():
            truth.append(labels > 0.5)
            for name, each in voices(images).items():
                logits.setdefault(name, []).append(each)

        whole = {name: np.concatenate(parts) for name, parts in logits.items()}
        return Labelings(np.concatenate(truth), whole)

    def pictures(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """What the model sees of held-out images, as `photograph` has it, by their number."""
        chosen = np.asarray(sorted(indices), np.int64)
        if self.held_out is None or not len(chosen):
            return {}
        items = self.held_out.read(None).filter(lambda item: tf.reduce_any(item["index"] == chosen))
        return {
            int(item["index"]): photograph(self.run.processor, item["image"])
            for item in items.as_numpy_iterator()
        }

    @cached_property
    def rollouts(self) -> list[Attention]:
        """Held-out pictures from all over the data, and where the attention to them comes from;
        none of a convnet.
        """
        if self.masked or self.held_out is None or not is_deit(self.run.model):
            return []
        found = sample(self.held_out, self.run.processor, PICTURES)
        images = np.stack([image for _, image in found])
        rollout = rollout_model(self.run.model).predict_on_batch(images)
        logits = heads(self.run.model).predict_on_batch(images)

        return [
            Attention(
                photograph(self.run.processor, item["image"]),
                rollout[i],
                item["label"],
                {head: each[i] for head, each in logits.items()},
            )
            for i, (item, _) in enumerate(found)
        ]

    @cached_property
    def reconstructions(self) -> list[dict]:
        """Of a masked run: `image`, `seen`, `guess`, uint8 [H, W, 3], and the `loss` of each."""
        if not self.masked or self.held_out is None:
            return []
        config, model = self.run.config, self.run.model
        patch = model.get_layer("patch_embed").patch_size
        source = _spread(self.held_out, PICTURES)
        data = masked_eval_dataset(source, config.data, config.mask, self.run.processor, patch)
        batch = next(data.unbatch().batch(PICTURES).as_numpy_iterator())
        guesses = model.predict_on_batch(batch)
        triples = zip(batch["image"], batch["mask"], guesses, strict=True)
        return [self._reconstruction(*each, patch) for each in triples]

    def _reconstruction(
        self, image: np.ndarray, mask: np.ndarray, guess: np.ndarray, patch: int
    ) -> dict:
        rows, columns = (side // patch for side in image.shape[:2])
        hidden = (
            np.kron(mask.reshape(rows, columns), np.ones((patch, patch)))[..., None] > 0
        )  # [H, W, 1]
        pixels, loss = (
            self.run.processor.to_rgb(image),
            float(masked_l1(image[None], guess[None], mask[None])),
        )
        guessed = np.where(hidden, self.run.processor.to_rgb(guess), pixels)

        return {
            "image": pixels,
            "seen": np.where(hidden, np.uint8(128), pixels),
            "guess": guessed,
            "loss": loss,
        }

    @cached_property
    def artifacts(self) -> list[Artifact]:
        """Exported models below the run, or in the folder of exports, each run on up to 32 held-out
        images.
        """
        if self.masked:
            return []
        found = {each.path: each for folder in self._folders for each in find_exports(folder)}
        return [self._measure(found[path]) for path in sorted(found)]

    def _measure(self, export: Export) -> Artifact:
        path, size = str(export.path), export.size
        if self.held_out is None:
            return Artifact(path, size, error="no held-out images to run it on")

        images, expected = self._compared_on
        try:
            limits = export.limits()
            wrong = export.mismatch(self.run.processor)
            logits = export.load()(images, self.run.processor)
            measured, agreed = deviation(logits, expected), agreement(logits, expected)
        except (ExportError, ImportError, ValueError, RuntimeError, OSError) as error:
            return Artifact(path, size, error=str(error))

        if limits is None:
            return Artifact(path, size, measured, error=wrong)
        wrong = wrong or limits.exceeded(measured, agreed)
        return Artifact(path, size, measured, limits.max_difference, wrong)

    @cached_property
    def _compared_on(self) -> tuple[np.ndarray, np.ndarray]:
        """Held-out images [n, H, W, 3] and the logits [n, C] that exports should give of them."""
        images = self.run.samples
        return images, keras_logits(self.run.model, images)

    def _voices(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """From normalized images [B, H, W, 3] to the logits [B, C] of all who have an opinion."""
        model, teacher = self.run.model, self.teacher
        both = heads(model) if is_deit(model) else None
        file = RunFolder(self.path).find_model("_ema")
        average = load_model(file) if file else None

        def voices(images: np.ndarray) -> dict[str, np.ndarray]:
            said = both.predict_on_batch(images) if both else {}
            logits = {
                "model": sum(said.values()) / len(said) if said else model.predict_on_batch(images)
            }
            logits |= said if len(said) > 1 else {}
            if teacher:
                logits["teacher"] = np.asarray(teacher.logits(images, self.run.processor))
            return logits | ({"ema": average.predict_on_batch(images)} if average else {})

        return voices


def _spread(source: Source, count: int) -> Source:
    """Up to `count` images at equal distances, so that folders of one class after the other all
    have their say.
    """
    stride, size = max(1, source.size // count), min(source.size, count)

    def read(seed):
        return source.read(seed).shard(stride, 0).take(size)

    return replace(source, size=size, read=read, at=None)
