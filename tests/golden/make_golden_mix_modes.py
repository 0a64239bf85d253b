"""timm's mixing by image and by pair, and its boxes of `cutmix_minmax`: what it drew and made.

Run with: torch 2.13 (CPU), timm 1.0.31.

    python make_golden_mix_modes.py OUT_DIR
"""

import copy
import importlib.metadata as md
import sys
from pathlib import Path

import numpy as np
import torch
from timm.data import mixup

BATCH, CLASSES, SIDES = 6, 5, (8, 12)
VERSIONS = " ".join(f"{name}=={md.version(name)}" for name in ("torch", "timm"))
SETTINGS = {
    "elem": dict(mode="elem"),
    "pair": dict(mode="pair"),
    "minmax": dict(mode="batch", mixup_alpha=0.0, cutmix_minmax=(0.25, 0.75)),
}
drawn = {}  # of the call that runs


def recorded(name, function):
    """The same function, which leaves what it gives in `drawn`."""

    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        drawn.setdefault(name, []).append(copy.deepcopy(result))  # timm goes on to change it
        return result

    return call


mixup.cutmix_bbox_and_lam = recorded("boxes", mixup.cutmix_bbox_and_lam)
arrays = {"versions": np.array(VERSIONS)}
draw = torch.Generator().manual_seed(16)
images = torch.randn(BATCH, 3, *SIDES, generator=draw)
labels = torch.randint(0, CLASSES, (BATCH,), generator=draw)
arrays |= {"image_nchw": images.numpy(), "labels": labels.numpy()}

for name, settings in SETTINGS.items():
    law = dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.8, label_smoothing=0.1) | settings
    mix = mixup.Mixup(num_classes=CLASSES, **law)
    mix._params_per_elem = recorded("params", mix._params_per_elem)
    for seed in range(3):
        drawn.clear()
        np.random.seed(seed)
        mixed, targets = mix(images.clone(), labels)

        count = {"elem": BATCH, "pair": BATCH // 2, "minmax": 1}[name]
        lam, cutmix = drawn["params"][0] if "params" in drawn else (np.ones(1), np.zeros(1, bool))
        boxes, found = np.zeros((count, 4), int), iter(drawn.get("boxes", []))
        cutmix = cutmix & (lam != 1) if "params" in drawn else np.full(1, "boxes" in drawn)
        lam = np.array(lam, "float32")  # where a box was drawn, what it leaves
        for row in np.flatnonzero(cutmix):
            (top, bottom, left, right), lam[row] = next(found)
            boxes[row] = top, left, bottom, right
        arrays |= {
            f"{name}/{seed}/lam": lam,
            f"{name}/{seed}/cutmix": cutmix,
            f"{name}/{seed}/box": boxes,
            f"{name}/{seed}/image": mixed.numpy(),
            f"{name}/{seed}/target": targets.numpy(),
        }

np.savez_compressed(Path(sys.argv[1]) / "timm_mix_modes.npz", **arrays)
