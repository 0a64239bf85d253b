"""Why a DeiT says what it says of a picture: where the attention of each token comes from, and what
the head that reads it says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from deit_tf.evaluation.charts import span, tint, where
from deit_tf.evaluation.figures import draw_explanation
from deit_tf.evaluation.pages import WHO, write_page
from deit_tf.evaluation.predict import Opened, in_batches, open_model, read_batch
from deit_tf.exporting.activations import SIGMOID
from deit_tf.exporting.formats import find_export
from deit_tf.models import heads
from deit_tf.models.features import token_rollouts
from deit_tf.models.parts import is_deit

PAGE = "explain.html"
SUFFIX = "-explained"  # of the PNG files, so that none takes the place of a picture beside it
TOP = 5
TOKENS = {"cls": "class token", "dist": "distillation token"}


@dataclass(frozen=True)
class HeadAnswer:
    """What a head says of a picture, and where its token has it from.

    Args:
        head: `cls` or `dist`.
        classes: Its most probable classes, first the first, as of `Opened.most_probable`.
        rollout: Share of each patch in the token that the head reads, [H/P, W/P], sum 1.
    """

    head: str
    classes: list[dict[str, Any]]
    rollout: np.ndarray

    @property
    def who(self) -> str:
        """The head in words."""
        return WHO[self.head]

    @property
    def token(self) -> str:
        """The token that it reads, in words."""
        return TOKENS[self.head]

    @property
    def span(self) -> str:
        """In words: how unevenly the patches count."""
        return span(self.rollout)

    @property
    def where(self) -> str:
        """In words: the patch that counts most."""
        return where(self.rollout)


@dataclass(frozen=True)
class Explanation:
    """A picture, and what each head says of it.

    Args:
        image: The file.
        pixels: The picture as the model sees it, uint8 [H, W, 3].
        answers: One of each head, that of the class token first.
        multilabel: Whether an image may have any number of labels.
    """

    image: str
    pixels: np.ndarray
    answers: tuple[HeadAnswer, ...]
    multilabel: bool = False

    @property
    def found(self) -> list[tuple[str, ...]]:
        """What each head finds: its most probable class; of several labels, those of the listed
        classes that it takes to be there, in alphabetical order.
        """
        if not self.multilabel:
            return [(answer.classes[0]["label"],) for answer in self.answers]
        return [
            tuple(sorted(one["label"] for one in answer.classes if one["probability"] > 0.5))
            for answer in self.answers
        ]

    @property
    def agree(self) -> bool:
        """Whether the heads find the same."""
        return len(set(self.found)) == 1

    @property
    def verdict(self) -> str:
        """In words: what the heads find, and whether they agree."""
        said = [", ".join(found) or "none of the labels" for found in self.found]
        if len(said) == 1:
            return f"The model says {said[0]}"
        if self.agree:
            return f"Both heads say {said[0]}"
        return f"The heads disagree: the class head says {said[0]}, the distillation head {said[1]}"

    def tinted(self, answer: HeadAnswer) -> np.ndarray:
        """The picture with the rollout of an answer over it, uint8 [H, W, 3]."""
        return tint(self.pixels, answer.rollout)


def explain_files(
    path: str,
    images: Sequence[str],
    out: str | Path,
    *,
    run: str | None = None,
    name: str | None = None,
    batch_size: int = 32,
) -> Iterator[dict[str, Any]]:
    """Write a PNG file for each picture, and one page of all: the picture, the attention rollout of
    each token that a head reads, and the most probable classes of each head.

    Args:
        path: A DeiT: a run, a `.keras` file or weights, as `open_model` takes them.
        images: Files.
        out: Folder for the PNG files and `explain.html`; made where there is something to show.
        run: As in `open_model`.
        name: As in `open_model`.
        batch_size: Images per step.
    Returns:
        Per file, as it is done, `image` and `picture`, the PNG file; or `image` and `error`, where
        it cannot be read. The page is there when all are done, if there was anything to show.
    Raises:
        FileNotFoundError: If the model is not there.
        ValueError: If the model is an export or no DeiT; if `batch_size` is not positive.
    """
    batches = in_batches(images, batch_size)
    if export := find_export(path):
        raise ValueError(
            f"`explain` follows the attention through the blocks, of which an export gives nothing "
            f"out. Pass the run, .keras file or weights that it was made from. Received: {path}, a "
            f"{export.format.name}"
        )
    opened = open_model(path, run, name)
    if not is_deit(opened.network):
        raise ValueError(
            f"`explain` shows the attention of a DeiT, and {path} has none to show: "
            f"{opened.network.name}. `predict` names what it sees."
        )

    return _write(opened, Path(path).name or opened.network.name, batches, Path(out))


def _write(
    opened: Opened, name: str, batches: Sequence[Sequence[str]], folder: Path
) -> Iterator[dict[str, Any]]:
    """Explain and draw batch after batch, then write the page."""
    networks = heads(opened.network), token_rollouts(opened.network)
    shown: list[Explanation] = []
    taken: set[str] = set()

    for batch in batches:
        answers, explanations = _explain_batch(opened, *networks, batch)
        of_file = iter(explanations)
        if explanations:
            folder.mkdir(parents=True, exist_ok=True)
        for answer in answers:
            if "error" not in answer:
                explanation = next(of_file)
                file = folder / f"{_free_name(answer['image'], taken)}.png"
                answer["picture"] = str(draw_explanation(explanation, file))
                shown.append(explanation)
            yield answer

    if shown:
        page = {
            "name": name,
            "size": opened.processor.size,
            "explanations": shown,
            "patches": shown[0].answers[0].rollout.shape,
            "agreeing": sum(each.agree for each in shown),
        }
        write_page("explain.html", page, folder / PAGE)


def _explain_batch(
    opened: Opened, by_head: keras.Model, by_token: keras.Model, images: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Explanation]]:
    """Answers of `read_batch`, and an explanation of each file that could be read."""
    answers, pixels = read_batch(opened.processor, images)
    if not len(pixels):
        return answers, []

    logits, rollouts = by_head.predict_on_batch(pixels), by_token.predict_on_batch(pixels)
    classes = {head: opened.most_probable(each, TOP) for head, each in logits.items()}
    good = [answer["image"] for answer in answers if "error" not in answer]
    shown = opened.processor.to_rgb(pixels)

    return answers, [
        Explanation(
            image,
            shown[i],
            tuple(HeadAnswer(head, classes[head][i], rollouts[head][i]) for head in classes),
            opened.activation == SIGMOID,
        )
        for i, image in enumerate(good)
    ]


def _free_name(image: str, taken: set[str]) -> str:
    """A name for the PNG file of a picture, without its ending; not one of `taken`, to which it is
    added.
    """
    stem = f"{Path(image).stem}{SUFFIX}"
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name)
    return name
