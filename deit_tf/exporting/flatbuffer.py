"""A .tflite file as objects: what stands in it, and the one change that is made to it.

Format: tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from collections import Counter

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"  # bytes 4 to 8 of the format
NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if type(code) is int}


def unpacked(content: bytes) -> schema.ModelT:
    """The file as objects, with its weights in them: litert-quantizer puts them behind the rest."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in (each for each in model.buffers if each.offset > 1):
        buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    return model


def op_name(model: schema.ModelT, operation: schema.OperatorT) -> str:
    """Name of an operation; a custom one is named `CUSTOM <its name>`."""
    entry = model.operatorCodes[operation.opcodeIndex]
    name = NAMES[_code(entry)]
    return f"CUSTOM {entry.customCode.decode()}" if name == "CUSTOM" else name


def op_counts(content: bytes) -> dict[str, int]:
    """How often each operation stands in a .tflite file, the most frequent first."""
    model = unpacked(content)
    names = (op_name(model, op) for graph in model.subgraphs for op in graph.operators)
    return dict(Counter(names).most_common())


def dequantize_pixels(content: bytes) -> bytes:
    """Let a .tflite file that takes uint8 pixels dequantize them, at scale 1, and not cast them.

    The numbers are the same, and XNNPACK, which casts no uint8, then takes the file whole. A file
    that casts no pixels comes back as it is.
    """
    model = unpacked(content)
    graph = model.subgraphs[0]
    pixels = graph.tensors[graph.inputs[0]]
    readers = [op for op in graph.operators if graph.inputs[0] in op.inputs]
    if pixels.type != schema.TensorType.UINT8 or {op_name(model, op) for op in readers} != {"CAST"}:
        return content

    for reader in readers:
        reader.opcodeIndex = _code_index(model, schema.BuiltinOperator.DEQUANTIZE)
        reader.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
        reader.builtinOptions = schema.DequantizeOptionsT()
    pixels.quantization = schema.QuantizationParametersT()
    pixels.quantization.scale = np.float32([1])
    pixels.quantization.zeroPoint = np.int64([0])

    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _code(entry: schema.OperatorCodeT) -> int:
    # Codes above 127 stand in the second field alone, files of old converters have only the first.
    return max(entry.builtinCode, entry.deprecatedBuiltinCode)


def _code_index(model: schema.ModelT, code: int) -> int:
    """Where an operation stands in the file's table; it is added where it does not."""
    codes = [_code(entry) for entry in model.operatorCodes]
    if code in codes:
        return codes.index(code)
    entry = schema.OperatorCodeT()
    entry.builtinCode = entry.deprecatedBuiltinCode = code
    entry.version = 1
    model.operatorCodes.append(entry)
    return len(codes)
