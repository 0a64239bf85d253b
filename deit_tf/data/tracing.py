"""Graphs that all data sets of a process share."""

import functools
import os
from collections.abc import Callable

import tensorflow as tf


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
