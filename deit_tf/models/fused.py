"""The arithmetic of the layers, in the forms that TensorFlow's graph rewriter fuses, with gradients
by hand.

On two axes a matrix product, its bias and the exact GELU become one kernel
(tensorflow/core/grappler/optimizers/ remapper.cc). The automatic gradients of LayerNorm, GELU and
softmax keep and touch several times the memory of the
formulas here, which serve `training` alone, for first derivatives. Shapes: M rows, K and U widths.
"""

import math

from keras import ops

SQRT_HALF = math.sqrt(0.5)


@ops.custom_gradient
def linear(x, kernel, bias):
    """`x @ kernel + bias`, for training: [M, K], [K, U], [U] to [M, U]."""

    def gradient(upstream):  # [M, U]
        d_kernel = ops.matmul(ops.transpose(x), upstream)  # [K, U]
        return ops.matmul(upstream, ops.transpose(kernel)), d_kernel, _column_sums(upstream)

    return ops.add(ops.matmul(x, kernel), bias), gradient


def _column_sums(x):
    """Sums over the rows, [M, U] to [U]; as a product with ones, in under half the time of
    BiasAddGrad.
    """
    ones = ops.ones((1, ops.shape(x)[0]), x.dtype)
    return ops.reshape(ops.matmul(ones, x), (-1,))


def gelu(x, training: bool):
    """`x * Phi(x)` with Phi of the normal distribution: the exact GELU (Hendrycks & Gimpel
    2016).
    """
    if training:
        return _gelu_for_training(x)
    # Of its equivalent forms the rewriter knows this one alone; fused, it computes in float32 at
    # every precision.
    return x * 0.5 * (ops.erf(x * SQRT_HALF) + 1.0)


@ops.custom_gradient
def _gelu_for_training(x):
    wide = ops.cast(x, "float32")  # on CPUs erf of bfloat16 takes twice as long
    z = wide * SQRT_HALF
    phi = ops.erf(z) * 0.5 + 0.5
    slope = phi + z * (ops.exp(-ops.square(z)) * math.pi**-0.5)  # Phi(x) + x Phi'(x)
    slope = ops.cast(slope, x.dtype)

    def gradient(upstream):
        return upstream * slope

    return ops.cast(wide * phi, x.dtype), gradient


def layer_norm(x, gamma, beta, epsilon: float, training: bool):
    """Bring each row of [M, K] to mean 0 and variance 1, times gamma plus beta, both [K]; in
    float32 throughout.
    """
    if training:
        return _layer_norm_for_training(epsilon)(x, gamma, beta)
    centered, rate = _center(x, epsilon)
    # gamma before the rate: after it, TFLite's converter folds gamma into the next kernel, and the
    # activations of an int8 file are left with outlier channels that gamma damps.
    return ops.cast(
        centered * ops.cast(gamma, "float32") * rate + ops.cast(beta, "float32"), x.dtype
    )


def _center(x, epsilon: float):
    """float32 [M, K] with mean 0 per row, and the rate [M, 1] that brings its variance to 1."""
    x = ops.cast(x, "float32")
    centered = x - ops.mean(x, axis=-1, keepdims=True)
    return centered, ops.rsqrt(ops.mean(ops.square(centered), axis=-1, keepdims=True) + epsilon)


def _layer_norm_for_training(epsilon: float):
    @ops.custom_gradient
    def apply(x, gamma, beta):
        centered, rate = _center(x, epsilon)
        normalized = centered * rate
        wide_gamma = ops.cast(gamma, "float32")
        kept = ops.cast(normalized, x.dtype)

        def gradient(upstream):  # [M, K]
            g, y = ops.cast(upstream, "float32"), ops.cast(kept, "float32")
            gy = g * y
            average = ops.reshape(wide_gamma / x.shape[-1], (-1, 1))  # [K, 1]
            mean, along = ops.matmul(g, average), ops.matmul(gy, average)  # [M, 1] each
            d_x = (g * wide_gamma - (y * along + mean)) * rate
            d_gamma, d_beta = (
                ops.cast(_column_sums(gy), gamma.dtype),
                ops.cast(_column_sums(g), beta.dtype),
            )
            return ops.cast(d_x, x.dtype), d_gamma, d_beta

        return ops.cast(normalized * wide_gamma + ops.cast(beta, "float32"), x.dtype), gradient

    return apply


def attention_weights(q, k):
    """softmax(q k^T), the softmax in float32: [B, h, N, d] twice to [B, h, N, N], rows summing to
    1.
    """
    scores = ops.matmul(q, ops.swapaxes(k, -2, -1))  # [B, h, N, N]
    return ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), q.dtype)


def attention(q, k, v, training: bool):
    """softmax(q k^T) v of three [B, h, N, d], q scaled already; [B, h, N, d]."""
    return _attention_for_training(q, k, v) if training else ops.matmul(attention_weights(q, k), v)


@ops.custom_gradient
def _attention_for_training(q, k, v):
    weights = attention_weights(q, k)
    mixed = ops.matmul(weights, v)  # [B, h, N, d]

    def gradient(upstream):  # [B, h, N, d]
        # A row's sum of weights * d_weights, N products, is one of mixed * upstream, d products
        # (FlashAttention, B.4).
        along = ops.sum(
            ops.cast(mixed * upstream, "float32"), axis=-1, keepdims=True
        )  # [B, h, N, 1]
        d_weights = ops.matmul(upstream, ops.swapaxes(v, -2, -1))  # [B, h, N, N]
        d_scores = weights * (d_weights - ops.cast(along, q.dtype))
        d_v = ops.matmul(ops.swapaxes(weights, -2, -1), upstream)
        return ops.matmul(d_scores, k), ops.matmul(ops.swapaxes(d_scores, -2, -1), q), d_v

    return mixed, gradient
