"""What a training step costs, read off its graph: operations, and memory at its highest.

The graph is traced, which computes nothing. Its tensors are allocated and freed in the order in
which their operations were made, as TensorFlow's executor does it within a chain; a tensor is freed
after its last reader, and an elementwise operation writes over an input that nobody reads after it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

# Operations whose result is the memory of their first input.
VIEWS = {
    "Reshape", "Identity", "StopGradient", "PreventGradient", "ExpandDims", "Squeeze", "Snapshot",
}  # fmt: skip
# Nothing of their own: the batch and the variables are counted by themselves.
FREE = {"Placeholder", "ReadVariableOp", "VarHandleOp", "Const", "NoOp", "AssignVariableOp"}
# Those that TensorFlow lets write over an input.
IN_PLACE = {
    "Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Maximum", "Neg", "Exp", "Erf", "Square",
    "Rsqrt", "Sqrt", "Softmax", "BiasAdd", "Relu", "Tanh", "SelectV2", "RsqrtGrad", "ReluGrad",
}  # fmt: skip
CONVOLUTIONS = {"Conv2D": (1, -1), "Conv2DBackpropInput": (1, 2), "Conv2DBackpropFilter": (-1, 2)}
PRODUCTS = {"MatMul": "transpose_a", "BatchMatMul": "adj_x", "BatchMatMulV2": "adj_x"}
TRACED = (2, 4)  # images; what a tensor takes is a constant plus a multiple of the images


@dataclass(frozen=True)
class Operation:
    """One operation of a step.

    Args:
        reads: Numbers of the buffers that it reads.
        writes: Numbers of those that it makes.
        in_place: Whether it may write over what it reads.
    """

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    in_place: bool


@dataclass(frozen=True)
class StepCost:
    """What a step costs, by its images.

    Args:
        operations: In order.
        sizes: Bytes of each buffer, at 2 and at 4 images.
        kept: Buffers that outlive the step.
        products: FLOPs of the matrix products, at 2 and at 4 images.
    """

    operations: list[Operation]
    sizes: list[tuple[int, int]]
    kept: frozenset[int]
    products: tuple[int, int]

    def flops(self, images: int) -> int:
        """Operations of the matrix products of a step; multiplication and addition count 1 each."""
        return round(_line(self.products, images))

    def peak_bytes(self, images: int) -> int:
        """Bytes of all tensors of a step together where they are most; neither the batch nor the
        variables are among them.
        """
        sizes = [_line(pair, images) for pair in self.sizes]
        last = {number: i for i, each in enumerate(self.operations) for number in each.reads}
        live = highest = 0.0

        for i, operation in enumerate(self.operations):
            made = sum(sizes[number] for number in operation.writes)
            dying = [n for n in operation.reads if last[n] == i and n not in self.kept]
            over = operation.in_place and any(sizes[number] >= made for number in dying)
            highest = max(highest, live if over else live + made)
            live += made - sum(sizes[number] for number in dying)
            live -= sum(sizes[n] for n in operation.writes if n not in last and n not in self.kept)

        return round(highest)


def step_cost(step: Callable, batch: Callable[[int], Any]) -> StepCost:
    """Trace a step for two sizes of batch, and read off what it costs.

    Args:
        step: Of a batch, such as `trainer.train_step`.
        batch: The shapes of a batch of so many images, as tf.TensorSpec.
    """
    traced = tf.function(step, autograph=False)
    graphs = [traced.get_concrete_function(batch(images)).graph for images in TRACED]
    first, second = (_Reading(graph) for graph in graphs)
    sizes = list(zip(first.sizes, second.sizes, strict=True))
    products = (matrix_flops(graphs[0]), matrix_flops(graphs[1]))
    return StepCost(first.operations, sizes, frozenset(first.kept), products)


def matrix_flops(graph: tf.Graph) -> int:
    """FLOPs of the matrix products and convolutions in a graph and in the functions it calls."""
    total = 0
    for operation in _needed(graph):
        total += _flops(operation)
        for called in _called(operation, graph):
            total += matrix_flops(called)
    return total


class _Reading:
    """The operations of a graph with their tensors as numbered buffers."""

    def __init__(self, graph: tf.Graph):
        self.operations: list[Operation] = []
        self.sizes: list[int] = []
        self._buffers: dict[int, int | None] = {}  # by id of a tensor; None is free

        for operation in _needed(graph):
            self._read(operation)
        kept = (self._buffers.get(id(tensor)) for tensor in getattr(graph, "outputs", ()))
        self.kept = {number for number in kept if number is not None}

    def _read(self, operation: tf.Operation) -> None:
        reads = [self._buffers.get(id(tensor)) for tensor in operation.inputs]
        if operation.type in VIEWS:
            self._buffers[id(operation.outputs[0])] = reads[0]
            made = []
        elif operation.type in FREE:
            self._buffers |= dict.fromkeys(map(id, operation.outputs))
            made = []
        else:
            made = [self._new(tensor) for tensor in operation.outputs]

        known = tuple({number for number in reads if number is not None})
        self.operations.append(Operation(known, tuple(made), operation.type in IN_PLACE))

    def _new(self, tensor: tf.Tensor) -> int:
        number = len(self.sizes)
        self.sizes.append(_bytes(tensor))
        self._buffers[id(tensor)] = number
        return number


def _needed(graph: tf.Graph) -> list[tf.Operation]:
    """The operations that the results or the side effects of a graph need, in order."""
    outputs = [tensor.op for tensor in getattr(graph, "outputs", ())]
    open_ = [*outputs, *getattr(graph, "control_outputs", ())]
    needed = set()
    while open_:
        operation = open_.pop()
        if operation not in needed:
            needed.add(operation)
            open_ += [tensor.op for tensor in operation.inputs]
            open_ += operation.control_inputs
    return [operation for operation in graph.get_operations() if operation in needed]


def _called(operation: tf.Operation, graph: tf.Graph) -> Iterator[tf.Graph]:
    """The graphs of the functions that an operation calls; of a condition both branches."""
    if operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
        name = operation.get_attr("f").name
        function = graph._get_function(name)  # the only way to a function by its name
        if function is not None and hasattr(function, "graph"):
            yield function.graph


def _flops(operation: tf.Operation) -> int:
    shapes = [tensor.shape.as_list() for tensor in (*operation.inputs, *operation.outputs)]
    if operation.type in PRODUCTS:
        turned = operation.get_attr(PRODUCTS[operation.type])
        shared = shapes[0][-2 if turned else -1]
        return 2 * shared * operation.outputs[0].shape.num_elements()
    if operation.type in CONVOLUTIONS:
        kernel, result = _convolution(operation)
        height, width, channels, _ = kernel
        return 2 * height * width * channels * result
    return 0


def _convolution(operation: tf.Operation) -> tuple[list[int], int]:
    """The kernel's shape, and the elements of the result of the forward pass."""
    if operation.type == "Conv2D":
        result = operation.outputs[0].shape
        return operation.inputs[1].shape.as_list(), result.num_elements()
    result = operation.inputs[2].shape
    is_filter = operation.type == "Conv2DBackpropFilter"
    kernel = operation.outputs[0].shape if is_filter else operation.inputs[1].shape
    return kernel.as_list(), result.num_elements()


def _bytes(tensor: tf.Tensor) -> int:
    elements = tensor.shape.num_elements() or 0
    return elements * tensor.dtype.size if tensor.dtype not in (tf.resource, tf.variant) else 0


def _line(pair: tuple[int, int], images: int) -> float:
    """The value at `images` of a line through two points."""
    (first, second), (few, more) = pair, TRACED
    return first + (second - first) * (images - few) / (more - few)
