"""One training of an ablation by timm and torch, run by the interpreter that has them.

Started by benchmarks/ablation.py with a folder that holds everything: spec.json (model, optimizer,
learning rate of each step), weights.npz (to start from, in timm's names), epoch-N.npz (the batches
of each epoch: images, labels, the teacher's decisions) and held_out.npz. Writes answers.npz, the
logits of each head. Knows nothing of deit_tf: a peer's environment need not hold it.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1]))
import peer_worker

_KEPT = []  # a torch library is undone when it is collected


def build(spec, weights):
    """Timm's model, with the weights to start from."""
    _KEPT.append(peer_worker._torchvision())  # whose operators may be missing
    import timm.models.deit as deit
    from timm.models.vision_transformer import VisionTransformer

    kind = deit.VisionTransformerDistilled if spec["distilled"] else VisionTransformer
    model = kind(**spec["model"])
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    model.load_state_dict(state, strict=True)
    if spec["distilled"]:
        model.set_distilled_training(True)
    return model


def optimizer_of(model, optim):
    """AdamW with the original's rule: of biases, norms, class token and positions none decay."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and name not in ("pos_embed", "cls_token")
        groups[decays].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": optim["weight_decay"]},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        betas=(optim["beta_1"], optim["beta_2"]),
        eps=optim["epsilon"],
    )


def pictures(pixels, spec):
    """Normalized [B, 3, H, W] of uint8 [B, H, W, 3]."""
    mean, std = (torch.tensor(spec[name]) for name in ("mean", "std"))
    scaled = (torch.from_numpy(pixels).float() / 255 - mean) / std
    return scaled.permute(0, 3, 1, 2)


def loss_of(outputs, labels, decisions, alpha):
    """Cross-entropy, or the paper's hard distillation where there are the teacher's decisions."""
    if decisions is None:
        return cross_entropy(outputs, labels)
    class_logits, dist_logits = outputs
    return (1 - alpha) * cross_entropy(class_logits, labels) + alpha * cross_entropy(
        dist_logits, decisions
    )


def train_epoch(model, optimizer, batches, rates, spec):
    """One pass; the learning rate is that of each step."""
    model.train()
    size = spec["batch_size"]
    for step, rate in enumerate(rates):
        part = slice(step * size, (step + 1) * size)
        labels = torch.from_numpy(batches["labels"][part])
        decisions = torch.from_numpy(batches["teacher"][part]) if "teacher" in batches else None
        for group in optimizer.param_groups:
            group["lr"] = rate

        outputs = model(pictures(batches["images"][part], spec))
        optimizer.zero_grad()
        loss_of(outputs, labels, decisions, spec["alpha"]).backward()
        if spec["optim"]["clip_norm"]:
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec["optim"]["clip_norm"])
        optimizer.step()


@torch.inference_mode()
def answers(model, pixels, spec):
    """Logits [n, C] of each head."""
    model.eval()
    found = {"cls": [], "dist": []} if spec["distilled"] else {"cls": []}
    for start in range(0, len(pixels), spec["batch_size"]):
        features = model.forward_features(
            pictures(pixels[start : start + spec["batch_size"]], spec)
        )
        found["cls"].append(model.head(features[:, 0]).numpy())
        if spec["distilled"]:
            found["dist"].append(model.head_dist(features[:, 1]).numpy())
    return {head: np.concatenate(parts) for head, parts in found.items()}


def main():
    """Train, from the last finished epoch on."""
    folder = Path(sys.argv[1])
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    model = build(spec, np.load(folder / "weights.npz"))
    optimizer = optimizer_of(model, spec["optim"])
    held_out = np.load(folder / "held_out.npz")
    state = {"epoch": 0, "seconds": 0.0, "curve": []}

    kept = folder / "state.pt"
    if kept.is_file():
        saved = torch.load(kept, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]

    logits = answers(model, held_out["images"], spec)
    for epoch in range(state["epoch"], len(spec["rates"])):
        started = time.perf_counter()
        train_epoch(
            model,
            optimizer,
            dict(np.load(folder / f"epoch-{epoch}.npz")),
            spec["rates"][epoch],
            spec,
        )
        state["seconds"] += time.perf_counter() - started

        logits = answers(model, held_out["images"], spec)
        decided = sum(logits.values()).argmax(-1)
        state["curve"].append(round(float((decided == held_out["labels"]).mean()), 4))
        state["epoch"] = epoch + 1
        both = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
        torch.save(both, folder / ".state.partial")
        (folder / ".state.partial").rename(kept)

    np.savez(folder / "answers.npz", **logits)
    figures = state | {"torch": torch.__version__, "timm": __import__("timm").__version__}
    (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
