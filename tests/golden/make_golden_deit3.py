"""Reference values for DeiT III (Touvron, Cord, Jegou 2022): models with LayerScale, the binary cross-entropy, LAMB.

Run with: torch 2.13 (CPU), torchvision 0.28, timm 1.0.31; no trained weights.

    python make_golden_deit3.py OUT_DIR
"""
import importlib.metadata as md
import sys
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2

OUT = Path(sys.argv[1])
VERSIONS = " ".join(f"{n}=={md.version(n)}" for n in ("torch", "timm"))


def save(name, **arrays):
    np.savez_compressed(OUT / f"{name}.npz", versions=np.array(VERSIONS), **arrays)
    print(name, (OUT / f"{name}.npz").stat().st_size // 1024, "KiB")


def randomise(module, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            scale = 0.2 if p.ndim > 1 else 0.3
            p.copy_(torch.randn(p.shape, generator=g) * scale + (1.0 if "norm" in name and "weight" in name else 0.0))


# 1. Models as timm's deit3_*: LayerScale, no position embedding for the class token, no distillation token.
cfg = dict(patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10, no_embed_class=True, init_values=1e-6)
for tag, size in (("", 32), ("_32x48", (32, 48))):
    m = VisionTransformer(img_size=size, **cfg).eval()
    randomise(m, 11)
    hw = (size, size) if isinstance(size, int) else size
    x = torch.randn(3, 3, *hw, generator=torch.Generator().manual_seed(12))
    with torch.no_grad():
        save(
            f"timm_deit3{tag}", image_nchw=x.numpy(), logits=m(x).numpy(), tokens=m.forward_features(x).numpy(),
            **{"weight/" + k: v.numpy() for k, v in m.state_dict().items()},
        )

# 2. Parameter counts and evaluation settings by name.
names = timm.list_models("deit3*")
counts, crops, sizes = [], [], []
for name in names:
    with torch.device("meta"):
        model = timm.create_model(name)
    counts.append(sum(p.numel() for p in model.parameters()))
    crops.append(model.pretrained_cfg["crop_pct"])
    sizes.append(model.pretrained_cfg["input_size"][-1])
# 3. The binary cross-entropy of the original (engine.py: targets > 0 become 1; mean over batch and classes), and timm's.
g = torch.Generator().manual_seed(13)
logits = torch.randn(6, 10, generator=g) * 2
a, b = torch.randint(0, 10, (6,), generator=g), torch.randint(0, 10, (6,), generator=g)
b[0] = a[0]
lam = 0.3
soft = lam * F.one_hot(a, 10) + (1 - lam) * F.one_hot(b, 10)
hard = soft.gt(0.0).to(soft.dtype)
save(
    "deit3_facts", names=np.array(names), parameters=np.array(counts), crop=np.array(crops), image_size=np.array(sizes),
    bce_logits=logits.numpy(), bce_soft_targets=soft.numpy(),
    bce_original=F.binary_cross_entropy_with_logits(logits, hard).numpy(),
    bce_each=F.binary_cross_entropy_with_logits(logits, hard, reduction="none").mean(-1).numpy(),
    bce_timm_smoothing_0_1=BinaryCrossEntropy(smoothing=0.1)(logits, a).numpy(), labels=a.numpy(),
)


# 4. LAMB as timm has it (the original trains with apex's fused LAMB): 12 steps, kernels decayed, biases not.
class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(7, 5)


for clip in (1.0, None):
    m = Tiny()
    randomise(m, 14)
    start = {k: v.detach().clone().numpy() for k, v in m.state_dict().items()}
    opt = create_optimizer_v2(m, opt="lamb", lr=4e-3, weight_decay=0.02, betas=(0.9, 0.999), eps=1e-6, max_grad_norm=clip)
    g = torch.Generator().manual_seed(15)
    grads, after = [], []
    for _ in range(12):
        each = {k: torch.randn(p.shape, generator=g) * 0.4 for k, p in m.named_parameters()}
        for k, p in m.named_parameters():
            p.grad = each[k].clone()
        opt.step()
        grads.append({k: v.numpy() for k, v in each.items()})
        after.append({k: v.detach().clone().numpy() for k, v in m.state_dict().items()})
    save(
        f"timm_lamb_clip_{clip}", lr=4e-3, weight_decay=0.02, epsilon=1e-6, max_grad_norm=np.array(clip or 0.0),
        **{f"start/{k}": v for k, v in start.items()},
        **{f"gradient/{k}": np.stack([s[k] for s in grads]) for k in start},
        **{f"after/{k}": np.stack([s[k] for s in after]) for k in start},
    )
