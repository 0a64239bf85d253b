"""The training augmentation: recipes by name, and what differs from them."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal


@dataclass(frozen=True)
class AugmentConfig:
    """A training augmentation by name, and what differs from it.

    Args:
        recipe: `deit` (the paper's), `3-augment` (DeiT III), `light` (fine-tuning on small data),
            `none`.
        crop: `random_resized`, a window of any size and aspect; or `simple`, one of the model's
            size out of the image at that size, mirrored 4 pixels beyond its border (DeiT III).
        scale: Share of the image's area that `random_resized` keeps, smallest and largest;
            1, 1 resizes the whole image, whatever `ratio`.
        ratio: Width / height of `random_resized`, smallest and largest.
        interpolation: Of the crop's resize: `bicubic`, `bilinear`, or `random`, either by chance.
        hflip: Probability of a horizontal flip.
        auto_augment: `rand-m9-mstd0.5-inc1` in timm's notation, `3-augment`, `keras-cv` (keras-cv's
            own RandAugment, for comparison) or `none`.
        color_jitter: Strength of brightness, contrast and saturation jitter; only where
            `auto_augment` is no RandAugment.
        random_erasing: Probability that a rectangle is erased.
        erase_mode: What takes its place: noise of each `pixel`; one color, `rand`; or the mean
            color, `const`.
        erase_count: Most rectangles of an image; from 1 up each number is as likely, and they share
            the area.
        mixup: Alpha of mixup's Beta distribution; 0 turns mixup off.
        cutmix: Alpha of CutMix's Beta distribution; 0 turns CutMix off.
        cutmix_minmax: Smallest and largest share of a side that CutMix's box has, such as 0.2, 0.8:
            the box then lies within the image, whatever alpha; null draws it by `cutmix`.
        mix_mode: What shares a draw of mixup and CutMix: the `batch`, which is its group; each
            `pair` of images that are mixed; or each image by itself, `elem`.
        mix_probability: Share of the groups that are mixed at all.
        mix_switch: Share of the mixed groups that get CutMix where both are on.
        mix_group: Images of a group, which share one draw of mixup and CutMix (see `mix_mode`) and
            pair among themselves: the largest divisor of `data.batch_size` up to this. The paper's
            64 were the share of one GPU; as many as the batch make one draw for all of it.
        label_smoothing: Share of each true label spread over all classes.
        repeats: Repeated augmentation: how often an image appears in a row, each time drawn anew;
            copies in a row go to different groups, while there are any.
    """

    recipe: Literal["deit", "3-augment", "light", "none"] = "deit"
    crop: Literal["random_resized", "simple"] | None = None
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] | None = None
    hflip: float | None = None
    auto_augment: str | None = None
    color_jitter: float | None = None
    random_erasing: float | None = None
    erase_mode: Literal["const", "rand", "pixel"] | None = None
    erase_count: int | None = None
    mixup: float | None = None
    cutmix: float | None = None
    cutmix_minmax: tuple[float, float] | None = None
    mix_mode: Literal["batch", "pair", "elem"] | None = None
    mix_probability: float | None = None
    mix_switch: float | None = None
    mix_group: int | None = None
    label_smoothing: float | None = None
    repeats: int | None = None

    def resolve(self, several_labels: bool = False) -> "AugmentConfig":
        """The same config with every `None` replaced by the recipe's value.

        Args:
            several_labels: Whether images have any number of labels, which are not smoothed.
        Raises:
            ValueError: If a value lies out of its range, or several labels are to be smoothed.
        """
        given = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if several_labels:
            self._check_unsmoothed()
            given["label_smoothing"] = 0.0
        resolved = replace(self, **{**RECIPES[self.recipe], **given})
        for name, (low, high) in _AUGMENT_RANGES.items():
            value = getattr(resolved, name)
            if not low <= value <= high:
                raise ValueError(f"`augment.{name}` lies in {low:g}..{high:g}. Received: {value}")

        for name, high in (("scale", 1.0), ("ratio", math.inf)):
            smallest, largest = getattr(resolved, name)
            if not 0 < smallest <= largest <= high:
                raise ValueError(
                    f"`augment.{name}` is the smallest and the largest, above 0 and up to "
                    f"{high:g}. Received: {(smallest, largest)}"
                )

        return resolved._with_minmax() if resolved.cutmix_minmax else resolved

    def _check_unsmoothed(self) -> None:
        if self.label_smoothing:
            raise ValueError(
                "`augment.label_smoothing` spreads one label over all classes, and is 0 for `task` "
                f"multilabel. Received: {self.label_smoothing}"
            )

    def _with_minmax(self) -> "AugmentConfig":
        """With CutMix on, whose alpha its own law of boxes does without, as timm has it."""
        smallest, largest = self.cutmix_minmax
        if not 0 <= smallest < largest <= 1:
            raise ValueError(
                "`augment.cutmix_minmax` is the smallest and the largest share of a side, the one "
                f"below the other, in 0..1. Received: {(smallest, largest)}"
            )
        return replace(self, cutmix=1.0)


_AUGMENT_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("hflip", "random_erasing", "mix_probability", "mix_switch", "label_smoothing"), (0, 1)
    ),
    **dict.fromkeys(("mixup", "cutmix", "color_jitter"), (0, math.inf)),
    "mix_group": (2, math.inf),
    "repeats": (1, math.inf),
    "erase_count": (1, 15),
}
_THIRDS = (3 / 4, 4 / 3)
_DEIT: dict[str, Any] = dict(
    crop="random_resized",
    scale=(0.08, 1.0),
    ratio=_THIRDS,
    interpolation="bicubic",
    hflip=0.5,
    auto_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.0,
    random_erasing=0.25,
    erase_mode="pixel",
    erase_count=1,
    mixup=0.8,
    cutmix=1.0,
    cutmix_minmax=None,
    mix_mode="batch",
    mix_probability=1.0,
    mix_switch=0.5,
    mix_group=64,
    label_smoothing=0.1,
    repeats=3,
)
_LIGHT = _DEIT | dict(
    scale=(0.5, 1.0), auto_augment="none", random_erasing=0.0, mixup=0.0, cutmix=0.0, repeats=1
)
# paper, table 9 (deit); DeiT III, section 3.2 and README_revenge.md (3-augment); the last two are
# ours.
RECIPES: dict[str, dict[str, Any]] = {
    "deit": _DEIT,
    "3-augment": _DEIT
    | dict(auto_augment="3-augment", color_jitter=0.3, random_erasing=0.0, label_smoothing=0.0),
    "light": _LIGHT,
    "none": _LIGHT | dict(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, label_smoothing=0.0),
}
