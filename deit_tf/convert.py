"""A model of ours or of anyone's as a folder that transformers or timm loads."""

from pathlib import Path

from deit_tf.checkpoint import Layout
from deit_tf.runs import load_run
from deit_tf.weights import write_weights


def convert(source: str, out: str, layout: Layout = "huggingface", model: str | None = None) -> Path:
    """Write a folder with model.safetensors, config.json and, for Hugging Face, preprocessor_config.json.

    Args:
        source: A run directory, a .keras file, or weights of timm, the original or Hugging Face: a file, a folder,
            or hf://ORGANIZATION/NAME.
        out: The folder to make.
        layout: Whose it is to be: `huggingface` (transformers) or `timm`.
        model: Name of the model, where the source is a file of weights that does not tell it.
    Returns:
        The folder.
    Raises:
        FileExistsError: If `out` exists.
        FileNotFoundError: If there is nothing at `source`.
        ValueError: If the source is damaged, its model cannot be told, or the layout has no words for it.
    """
    run = load_run(source, model)
    described = run.processor.to_preprocessor_config(layout)
    return write_weights(run.model, out, layout=layout, labels=run.labels, preprocessing=described)
