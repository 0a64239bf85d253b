"""Where a recipe layer's draws come from: a seed in its inputs, or its own `seed`."""

import zlib

import tensorflow as tf

from deit_tf.data.tracing import as_written

_NOT_AUGMENTED = ("bounding_boxes", "keypoints", "segmentation_masks")


class Seeded:
    """For keras-cv layers whose result is a pure function of their inputs and a seed.

    The seed is `inputs["seed"]`, two whole numbers, or [B, 2] for a batch of images; layers hand it
    on. So the same seed gives the same bytes at any parallelism. Inputs without one draw the next
    seed of a generator that begins at the layer's `seed`: the same bytes where the calls come in
    the same order.
    """

    @as_written
    def __call__(self, *args, **kwargs):
        """As of a Keras layer."""
        return super().__call__(*args, **kwargs)

    def _given_seed(self, inputs: dict) -> tf.Tensor:
        refused = [key for key in _NOT_AUGMENTED if key in inputs]
        if refused:
            raise ValueError(
                f"{type(self).__name__} augments `images` and `labels` of a classifier. "
                f"Received also: {', '.join(refused)}"
            )
        if "seed" in inputs:
            return tf.convert_to_tensor(inputs["seed"])
        return self._random_generator.make_seeds(1)[:, 0]

    def _own_seed(self, seed: tf.Tensor) -> tf.Tensor:
        """The seed [2] of this layer, so that several layers draw apart from one `seed`."""
        kind = zlib.crc32(type(self).__name__.encode()) % 2**31
        return tf.random.fold_in(tf.random.fold_in(seed, kind), self.seed)


class SeededBatch(Seeded):
    """For layers that draw once for a whole batch: by the seed of its first image."""

    def _batch_seed(self, inputs: dict) -> tf.Tensor:
        seed = self._given_seed(inputs)
        return self._own_seed(seed if seed.shape.rank == 1 else seed[0])
