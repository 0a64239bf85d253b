"""Models from `.keras` files of earlier versions, in the form that models have today."""

import keras
from keras import ops


def keep_axes(model: keras.Model) -> keras.Model:
    """The same network, with slices in place of indices between its layers: mobile GPUs take no
    index.

    Args:
        model: A functional model, such as a DeiT whose head tokens are `x[:, 0]` and `x[:, 1]`.
    Returns:
        A copy that computes the same; `model` itself where it has no index, or is not functional.
    """
    slices = [op for op in getattr(model, "operations", ()) if type(op).__name__ == "GetItem"]
    if not any(_drops_an_axis(op.input, op.output) for op in slices):
        return model

    def call(operation, *args, **kwargs):
        if type(operation).__name__ != "GetItem":
            return operation(*args, **kwargs)
        x, key = args
        dropped = operation.compute_output_spec(x, key)
        if not _drops_an_axis(x, dropped):
            return operation(x, key)
        kept = x[tuple(slice(i, i + 1 or None) if isinstance(i, int) else i for i in key)]
        return ops.reshape(kept, (-1, *dropped.shape[1:]))

    copy = keras.models.clone_model(model, call_function=call)
    copy.set_weights(model.get_weights())
    return copy


def _drops_an_axis(before, after) -> bool:
    """Whether a slice drops an axis; that of the batch, of free size, it keeps."""
    return after.ndim < before.ndim and after.shape[0] is None
