"""Run by an interpreter that has torch, timm and transformers: their models with random weights,
and ours in them.

python reference_models.py make timm|huggingface NAME FOLDER     # weights, an image, the logits
python reference_models.py make transformers CLASS FOLDER       # a small model, in several files
python reference_models.py load timm|huggingface FOLDER          # logits of one written here
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

# A build without its compiled operators, of which none is called here, does not import; once tried
# it is spoilt.
if subprocess.run(
    [sys.executable, "-c", "import torchvision"], stderr=subprocess.DEVNULL
).returncode:
    operators = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

WIDTHS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def randomize(model):
    """Give every weight a value, in a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = (
                p[0].numel() ** -0.5
                if p.ndim > 1 and not name.endswith(("_token", "pos_embed", "_embeddings"))
                else 0.1
            )
            unit = 1.0 if p.ndim == 1 and name.endswith("weight") else 0.0
            p.copy_(torch.randn(p.shape, generator=generator) * scale + unit)
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
            if name.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=generator) + 0.5)
    return model.eval()


def images(height, width, channels=3):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def save(folder, image, logits):
    np.savez(
        folder / "reference.npz", image=image.permute(0, 2, 3, 1).numpy(), logits=logits.numpy()
    )


def make_timm(name, folder):
    import timm
    from safetensors.torch import save_file

    model = randomize(timm.create_model(name))
    image = images(*model.default_cfg["input_size"][1:])
    save_file(model.state_dict(), folder / "model.safetensors")
    with torch.no_grad():
        save(folder, image, model(image))


def make_huggingface(name, folder):
    import transformers

    width, heads = WIDTHS[name.split("_")[1]]
    size = int(name.split("_")[-1])
    distilled = "distilled" in name
    config = (transformers.DeiTConfig if distilled else transformers.ViTConfig)(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=size,
        num_labels=1000,
    )
    kind = (
        transformers.DeiTForImageClassificationWithTeacher
        if distilled
        else transformers.ViTForImageClassification
    )
    model = randomize(kind(config))
    model.save_pretrained(folder)
    image = images(size, size)
    with torch.no_grad():
        save(folder, image, model(image).logits)


def make_transformers(kind, folder):
    import transformers

    config = transformers.DeiTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=64, num_labels=7
    )
    model = randomize(getattr(transformers, kind)(config))
    model.save_pretrained(folder, max_shard_size="5MB")
    image = images(64, 64)
    with torch.no_grad():
        save(folder, image, model(image)[0])  # logits, or the last hidden state


def load_timm(folder):
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    channels, *size = config["input_size"]
    image = images(*size, channels)
    with torch.no_grad():
        save(folder, image, model(image))
    (folder / "seen.json").write_text(
        json.dumps({k: config[k] for k in ("input_size", "crop_pct", "mean")})
    )


def load_huggingface(folder):
    import transformers
    from PIL import Image

    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, info = getattr(transformers, architecture).from_pretrained(
        folder, output_loading_info=True
    )
    size = model.config.image_size
    sides = (size, size) if isinstance(size, int) else size
    image = images(*sides, model.config.num_channels)
    with torch.no_grad():
        save(folder, image, model.eval()(image).logits)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    seen = {
        "keys": [*map(list, (info["missing_keys"], info["unexpected_keys"]))],
        "labels": model.config.id2label,
    }
    (folder / "seen.json").write_text(json.dumps(seen))
    if not (folder / "photo.png").exists():
        return
    photo = Image.open(folder / "photo.png")
    pixels = processor(photo, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.save(folder / "pixels.npy", pixels)


if __name__ == "__main__":
    command, library, *arguments, last = sys.argv[1:]
    globals()[f"{command}_{library}"](*arguments, Path(last))
