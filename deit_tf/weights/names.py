"""Weights of other libraries, in and out: the only room that knows their names.

A weight of a model here has timm's name once "/" is "."; a kernel is transposed by its rank, and
that is all for timm and the original. Hugging Face renames the modules and splits the fused qkv in
three. A model is known only by the paths of its weights.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import keras
import numpy as np

from deit_tf.config import CHANNELS

Layout = Literal["timm", "huggingface"]
State = Mapping[str, np.ndarray]

_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",  # of a norm; LayerScale's has this name in timm too
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_TO_TORCH = {
    2: (1, 0),
    4: (3, 2, 0, 1),
}  # kernel axes: [in, out] -> [out, in]; [kh, kw, in, out] -> [out, in, kh, kw]
_TO_KERAS = {2: (1, 0), 4: (2, 3, 1, 0)}
LAYER_SCALE = 1e-6  # where timm starts it; trained weights do not tell
_FIRST_KERNELS = ("patch_embed.proj.weight", "stem.conv.weight")  # see the image itself
_LAYER_SCALE = re.compile(r"\.ls[12]$")
_HEADS = ("head.", "head_dist.", "mask_token", "decoder.")

# timm's module: Hugging Face's, as the files on the hub have it (transformers 4); # is a block's
# number.
_HUGGINGFACE = {
    "cls_token": "deit.embeddings.cls_token",
    "dist_token": "deit.embeddings.distillation_token",
    "pos_embed": "deit.embeddings.position_embeddings",
    "mask_token": "deit.embeddings.mask_token",
    "patch_embed.proj": "deit.embeddings.patch_embeddings.projection",
    "blocks.#.norm1": "deit.encoder.layer.#.layernorm_before",
    "blocks.#.attn.q": "deit.encoder.layer.#.attention.attention.query",
    "blocks.#.attn.k": "deit.encoder.layer.#.attention.attention.key",
    "blocks.#.attn.v": "deit.encoder.layer.#.attention.attention.value",
    "blocks.#.attn.proj": "deit.encoder.layer.#.attention.output.dense",
    "blocks.#.norm2": "deit.encoder.layer.#.layernorm_after",
    "blocks.#.mlp.fc1": "deit.encoder.layer.#.intermediate.dense",
    "blocks.#.mlp.fc2": "deit.encoder.layer.#.output.dense",
    "norm": "deit.layernorm",
    "head": "cls_classifier",
    "head_dist": "distillation_classifier",
    "decoder.0": "decoder.0",
}
# What transformers 5 calls them in memory, and the head of DeiTForImageClassification.
_TRANSFORMERS_5 = {
    "deit.layers.#.layernorm_before": "blocks.#.norm1",
    "deit.layers.#.attention.q_proj": "blocks.#.attn.q",
    "deit.layers.#.attention.k_proj": "blocks.#.attn.k",
    "deit.layers.#.attention.v_proj": "blocks.#.attn.v",
    "deit.layers.#.attention.o_proj": "blocks.#.attn.proj",
    "deit.layers.#.layernorm_after": "blocks.#.norm2",
    "deit.layers.#.mlp.fc1": "blocks.#.mlp.fc1",
    "deit.layers.#.mlp.fc2": "blocks.#.mlp.fc2",
    "classifier": "head",
}
_HUGGINGFACE_FIRST = ("deit.", "cls_classifier.", "distillation_classifier.", "decoder.")
# The trunk alone, as DeiTModel and ViTModel are saved, has no first word; a pooler may be with it.
_TRUNK_ALONE = "embeddings."
_POOLER = re.compile(r"^((deit|vit)\.)?pooler\.")
_PASSED_OVER = re.compile(rf"{_POOLER.pattern}|num_batches_tracked$")
_FROM_HUGGINGFACE = {**{theirs: ours for ours, theirs in _HUGGINGFACE.items()}, **_TRANSFORMERS_5}


def load_reference(
    model: keras.Model,
    state: State,
    *,
    heads: Literal["keep", "new"] = "keep",
    grid: tuple[int, int] | None = None,
) -> None:
    """Put the weights of timm, the original or Hugging Face into a model, all of them or none.

    The layout is told from the keys. A position embedding of another size is resized, and weights
    for RGB are adapted to other channels (`adapt_channels`). The state may be a mapping that reads
    a tensor when it is asked for: each is fetched twice and not kept.

    Args:
        model: What build_deit, build_regnet or build_masked made.
        state: Arrays by the library's own key, in torch's layout.
        heads: `keep` loads what follows the trunk (the classifiers, the mask token and the decoder
            of masked image modeling); `new` leaves the model's own as they are and passes over the
            state's, so that the trunk goes from any task to any other.
        grid: Rows and columns of the state's position embedding; by default the model's where the
            count agrees, else a square.
    Raises:
        ValueError: Names every missing, extra, misshapen and non-finite key; the model is
            unchanged.
    """
    names = _weights_by_name(model)
    keys = _timm_names(state)
    if heads == "new":
        names = {name: weight for name, weight in names.items() if not name.startswith(_HEADS)}
        keys = {name: parts for name, parts in keys.items() if not name.startswith(_HEADS)}

    def array(name: str) -> np.ndarray:
        tensor = _fetch(state, keys[name])
        if name == "pos_embed":
            tensor = _fit_pos_embed(model, names, tensor, grid)
        if name in _FIRST_KERNELS:
            tensor = adapt_channels(tensor, names[name].shape[-2])
        return _to_keras(tensor, names[name])

    _check_state(names, keys, array)
    for name, weight in names.items():
        weight.assign(array(name))


def describe(state: State) -> dict[str, int | float | bool]:
    """Tell the model that a state dict belongs to, as far as shapes tell it.

    Args:
        state: Arrays by the library's own key, as `load_reference` takes them.
    Returns:
        Fields of ModelConfig: `patch_size`, `num_channels`, `embed_dim`, `depth`, `mlp_ratio`,
        `distilled`, `init_values`, `no_embed_class`, `image_size` (of a square image) and, where
        there is a head, `num_classes`. Of a network that is no DeiT `num_classes` alone.
    """
    keys = _timm_names(state)
    head = next(
        (name for name in ("head.bias", "head.fc.bias", "head_dist.bias") if name in keys), None
    )
    described = {"num_classes": len(_fetch(state, keys[head]))} if head else {}
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.bias"} <= set(
        keys
    ):
        return described

    kernel = _fetch(state, keys["patch_embed.proj.weight"])
    width, channels, patch, _ = kernel.shape  # [D, channels, P, P]
    distilled = "dist_token" in keys
    has_scale = "blocks.0.ls1.gamma" in keys
    places = _fetch(state, keys["pos_embed"]).shape[1]
    # A square grid tells whether the tokens before the patches have places; else DeiT III has none.
    prefix = 2 if distilled else 1
    squares = [count for count in (places, places - prefix) if math.isqrt(count) ** 2 == count]
    patches = squares[0] if squares else places - prefix * (not has_scale)
    return {
        **described,
        "image_size": round(patches**0.5) * patch,
        "patch_size": patch,
        "num_channels": channels,
        "embed_dim": width,
        "depth": len({name.split(".")[1] for name in keys if name.startswith("blocks.")}),
        "mlp_ratio": len(_fetch(state, keys["blocks.0.mlp.fc1.bias"])) / width,
        "distilled": distilled,
        "init_values": LAYER_SCALE if has_scale else None,
        "no_embed_class": patches == places,
    }


def is_huggingface(keys: Iterable[str]) -> bool:
    """Whether keys are those of a model of Hugging Face."""
    return any(key.startswith(("deit.", "vit.", _TRUNK_ALONE)) for key in keys)


def has_pooler(state: State) -> bool:
    """Whether a state has the pooler of Hugging Face's DeiTModel, which no classifier uses."""
    return any(_POOLER.match(key) for key in state)


def has_class_head_alone(state: State) -> bool:
    """Whether a state has a distillation token and one head, as DeiTForImageClassification."""
    keys = _timm_names(state)
    return "dist_token" in keys and _head_modules(keys) == {"head"}


def same_heads(model: keras.Model, state: State) -> bool:
    """Whether a state has what a model has behind its trunk, for as many classes: classifiers, or
    the mask token and decoder of masked image modeling.
    """
    ours, theirs = _weights_by_name(model), _timm_names(state)
    if _head_modules(ours) != _head_modules(theirs):
        return False
    biases = [name for name in ours if name.startswith(_HEADS) and name.endswith(".bias")]
    return all(
        name in theirs and _fetch(state, theirs[name]).shape == tuple(ours[name].shape)
        for name in biases
    )


def load_trunk(model: keras.Model, source: keras.Model) -> None:
    """Put the trunk of a trained DeiT, such as a masked model, into another; heads stay as they
    are.

    The position embedding is resized where the two have different grids.

    Args:
        model: What build_deit made.
        source: What build_deit or build_masked made, of the same width, depth and prefix tokens.
    Raises:
        ValueError: Names every weight that does not fit; the model is unchanged.
    """
    load_reference(
        model, to_reference(source), heads="new", grid=_grid(source, _weights_by_name(source))
    )


def to_reference(model: keras.Model, layout: Layout = "timm") -> dict[str, np.ndarray]:
    """Give the model's weights by another library's keys, as float32 arrays in torch's layout.

    Args:
        model: What build_deit or build_regnet made.
        layout: `timm` (the original's as well) or `huggingface` (DeiT alone: a distilled model as
            DeiTForImageClassificationWithTeacher has it, or, with the class head alone,
            DeiTForImageClassification; a plain one as ViTForImageClassification).
    Raises:
        ValueError: If `layout` is neither, or Hugging Face has no name for a weight.
    """
    if layout not in ("timm", "huggingface"):
        raise ValueError(f"`layout` is 'timm' or 'huggingface'. Received: layout={layout!r}")
    state = {name: _to_torch(weight) for name, weight in _weights_by_name(model).items()}
    if layout == "timm":
        return state
    if "pos_embed" in state and not _prefix(model, _weights_by_name(model)):
        raise ValueError(
            "Hugging Face's class token has a position of its own, and this model's has none "
            "(`no_embed_class`). Use layout='timm'."
        )
    renamed = {_rename(name, _HUGGINGFACE): array for name, array in _split_qkv(state).items()}
    if nameless := [name for name in renamed if not name.startswith(_HUGGINGFACE_FIRST)]:
        raise ValueError(
            f"Hugging Face's DeiT has no name for {', '.join(nameless[:5])}. Use layout='timm'."
        )
    if "dist_token" not in state:
        renamed = {re.sub(r"^deit\.", "vit.", key): array for key, array in renamed.items()}
    if "head_dist.weight" in state:
        return renamed

    return {key.replace("cls_classifier", "classifier"): array for key, array in renamed.items()}


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapt the first kernel of weights for RGB to images of other channels.

    Args:
        kernel: [D, 3, P, P], in torch's layout; of other channels it stays as it is.
        channels: Of the images.
    Returns:
        [D, channels, P, P]. For one channel the sum of the three, so that a gray picture gives what
        it gave as RGB; for others red, green and blue in turn, times 3 / channels.
    Source: timm/models/_manipulate.py, adapt_input_conv.
    """
    if kernel.ndim != 4 or kernel.shape[1] != CHANNELS or channels == CHANNELS:
        return kernel
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    in_turn = np.arange(channels) % CHANNELS
    return kernel[:, in_turn] * np.float32(CHANNELS / channels)


def resize_pos_embed(
    grid_tokens: np.ndarray, old: tuple[int, int], new: tuple[int, int]
) -> np.ndarray:
    """Resize the position embedding of the patches, as torch's bicubic interpolation does.

    Args:
        grid_tokens: [1, rows * columns, D], without class and distillation tokens.
        old: Its rows and columns.
        new: Rows and columns of the result.
    Returns:
        float32 [1, new rows * new columns, D].
    Source: facebookresearch/deit main.py, --finetune. The kernel has a = -0.75 and repeats the
        border; TensorFlow's bicubic has a = -0.5 and is off by a quarter of the embedding's
        deviation.
    """
    tokens = np.asarray(grid_tokens, np.float64).reshape(*old, -1)  # [r, c, D]
    rows, columns = (_bicubic_matrix(n, m) for n, m in zip(old, new, strict=True))
    resized = np.einsum("Rr,Cc,rcd->RCd", rows, columns, tokens)
    return resized.reshape(1, new[0] * new[1], -1).astype(np.float32)


def _bicubic_matrix(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """[new, old]: weights of the old pixels in each new one; align_corners=False, no antialias."""
    matrix = np.zeros((new, old))
    for i in range(new):
        center = (i + 0.5) * old / new - 0.5
        first = int(np.floor(center)) - 1
        for tap in range(first, first + 4):
            x = abs(center - tap)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[i, min(max(tap, 0), old - 1)] += near if x <= 1 else far
    return matrix


def _head_modules(names: Iterable[str]) -> set[str]:
    """Such as `head`, `head_dist`."""
    return {name.split(".")[0] for name in names if name.startswith(_HEADS)}


def _weights_by_name(model: keras.Model) -> dict[str, keras.Variable]:
    """The model's weights by timm's names."""
    names = {}
    for weight in model.weights:
        module, _, leaf = (
            re.sub(r"^(tokens|mask_patches)/", "", weight.path).replace("/", ".").rpartition(".")
        )
        if not _LAYER_SCALE.search(module):
            leaf = _LEAVES.get(leaf, leaf)
        names[f"{module}.{leaf}".removeprefix(".")] = weight
    return names


def _to_keras(array: np.ndarray, weight: keras.Variable) -> np.ndarray:
    return (
        array.transpose(_TO_KERAS[array.ndim])
        if weight.name == "kernel" and array.ndim in _TO_KERAS
        else array
    )


def _to_torch(weight: keras.Variable) -> np.ndarray:
    array = keras.ops.convert_to_numpy(keras.ops.cast(weight.value, "float32"))
    return (
        np.ascontiguousarray(array.transpose(_TO_TORCH[array.ndim]))
        if weight.name == "kernel"
        else array
    )


def _timm_names(state: State) -> dict[str, list[str]]:
    """The keys of a state of any layout by timm's names; a fused qkv may lie under three, in that
    order.
    """
    named = {key: key for key in state if not _PASSED_OVER.search(key)}
    # The original's models_v2.py has LayerScale's factors in the block itself.
    named = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): key for name, key in named.items()}
    if any(key.startswith(_TRUNK_ALONE) for key in named):
        named = {f"deit.{name}": key for name, key in named.items()}
    if is_huggingface(named):
        # The plain models lie on the hub as ViT, under the same names but for the first word.
        named = {
            _rename(re.sub(r"^vit\.", "deit.", name), _FROM_HUGGINGFACE): key
            for name, key in named.items()
        }
    return _fuse_qkv(named)


def _fetch(state: State, keys: list[str]) -> np.ndarray:
    """A tensor, or those of q, k and v stacked."""
    if len(keys) == 1:
        return np.asarray(state[keys[0]])
    return np.concatenate([state[key] for key in keys])


def _rename(key: str, table: Mapping[str, str]) -> str:
    """Look a key up by its module with the block's number as #; a key without entry stays."""
    number = re.search(r"(?<=\.)\d+(?=\.)", key) if not key.startswith("decoder") else None
    generic = key[: number.start()] + "#" + key[number.end() :] if number else key
    module, _, leaf = generic.rpartition(".")
    if generic in table:
        renamed = table[generic]
    elif module in table:
        renamed = f"{table[module]}.{leaf}"
    else:
        return key
    return renamed.replace("#", number.group()) if number else renamed


def _fuse_qkv(named: dict[str, str]) -> dict[str, list[str]]:
    """Put `attn.q`, `attn.k`, `attn.v` of each block under `attn.qkv`; an incomplete three stays as
    it is.
    """
    fused = {}
    for name, key in named.items():
        three = [re.sub(r"\.attn\.[qkv]\.", f".attn.{part}.", name) for part in "qkv"]
        if three[0] != three[1] and all(part in named for part in three):
            fused[re.sub(r"\.attn\.[qkv]\.", ".attn.qkv.", name)] = [named[part] for part in three]
        else:
            fused[name] = [key]
    return fused


def _split_qkv(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    split = {}
    for key, array in state.items():
        if ".attn.qkv." in key:
            parts = zip("qkv", np.split(array, 3), strict=True)
            split |= {key.replace(".attn.qkv.", f".attn.{part}."): third for part, third in parts}
        else:
            split[key] = array
    return split


def _fit_pos_embed(
    model: keras.Model,
    names: Mapping[str, keras.Variable],
    pos_embed: np.ndarray,
    grid: tuple[int, int] | None,
) -> np.ndarray:
    """Resize `pos_embed` [1, prefix + patches, D] to the model's grid where it has another."""
    if pos_embed.ndim != 3:
        raise ValueError(
            f"`pos_embed` has three axes, [1, tokens, D]. Received: {tuple(pos_embed.shape)}"
        )

    new, prefix = _grid(model, names), _prefix(model, names)
    patches = pos_embed.shape[1] - prefix
    side = round(max(patches, 0) ** 0.5)
    old = grid or (new if patches == new[0] * new[1] else (side, side))
    if old[0] * old[1] != patches:
        raise ValueError(
            f"`pos_embed` {pos_embed.shape} does not fit {prefix} tokens and a grid of {old[0]} "
            f"x {old[1]} patches. Pass `grid=(rows, columns)` of the checkpoint, or a model "
            "with as many tokens (distilled or not)."
        )
    if old == new:
        return pos_embed

    return np.concatenate(
        [pos_embed[:, :prefix], resize_pos_embed(pos_embed[:, prefix:], old, new)], axis=1
    )


def input_size(model: keras.Model) -> tuple[int, int]:
    """Height and width of a model's images; a masked model has its mask as a second input."""
    return next(tuple(each.shape[1:3]) for each in model.inputs if len(each.shape) == 4)


def _grid(model: keras.Model, names: Mapping[str, keras.Variable]) -> tuple[int, int]:
    """Rows and columns of patches."""
    patch = names["patch_embed.proj.weight"].shape[0]
    height, width = input_size(model)
    return height // patch, width // patch


def _prefix(model: keras.Model, names: Mapping[str, keras.Variable]) -> int:
    """Tokens before the patches that have a position embedding."""
    rows, columns = _grid(model, names)
    return names["pos_embed"].shape[1] - rows * columns


def _check_state(
    names: Mapping[str, keras.Variable],
    keys: Mapping[str, list[str]],
    array: Callable[[str], np.ndarray],
) -> None:
    """Raise one error that names everything in which the state does not fit."""
    wrong = {
        "missing": [name for name in names if name not in keys],
        "extra": [name for name in keys if name not in names],
        "misshapen": [],
        "not finite": [],
    }

    for name in (name for name in names if name in keys):
        tensor, shape = array(name), tuple(names[name].shape)
        if tuple(tensor.shape) != shape:
            wrong["misshapen"].append(f"{name} {tuple(tensor.shape)} for {shape}")
        if not np.isfinite(tensor).all():
            wrong["not finite"].append(name)

    if any(wrong.values()):
        lines = [f"{kind}: {', '.join(faults)}" for kind, faults in wrong.items() if faults]
        raise ValueError(
            "The weights do not fit the model, which stays as it was (names are timm's, shapes "
            "Keras's; for another class count or task pass heads='new').\n  " + "\n  ".join(lines)
        )
