"""How the functions of data sets are traced."""

import functools
import os
from collections.abc import Callable

import tensorflow as tf

# A function whose data sets are traced as they are written: none has Python's `if` or `for` over
# tensors, which TensorFlow would look for and translate, a third of the time to the first batch.
as_written = tf.autograph.experimental.do_not_convert


def traced_once(function: Callable, signature: list[tf.TensorSpec] | None = None) -> Callable:
    """`function`, traced once for all data sets that call it.

    A worker of a cluster traces it anew for each: TensorFlow runs no function within a function of
    a data set that several workers share.
    """
    traced = tf.function(function, input_signature=signature, autograph=False)

    @functools.wraps(function)
    def call(*arguments):
        return function(*arguments) if "TF_CONFIG" in os.environ else traced(*arguments)

    call.experimental_get_tracing_count = traced.experimental_get_tracing_count
    return call
