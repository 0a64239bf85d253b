"""A function is traced once for all data sets of a process, and never by workers of a cluster."""

import pytest
import tensorflow as tf

from deit_tf.data.tracing import traced_once


@pytest.mark.parametrize("config, traces", [(None, 1), ("{}", 0)])
def test_workers_of_a_cluster_call_the_function_itself(monkeypatch, config, traces):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config:
        monkeypatch.setenv("TF_CONFIG", config)
    double = traced_once(lambda x: 2 * x, [tf.TensorSpec([], tf.int64)])

    for _ in range(2):
        data = tf.data.Dataset.range(3).map(lambda x: double(x))
        assert list(data.as_numpy_iterator()) == [0, 2, 4]
    assert double.experimental_get_tracing_count() == traces
