"""Compile a .tflite file for one device, in a process of its own, which a driver may end.

    python compile_worker.py FILE cpu|gpu [IMAGES.npy LOGITS.npy]

The last line of standard output is JSON; what LiteRT prints goes to standard error. It imports
nothing of the package, which would load TensorFlow.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.interpreter import Interpreter

DEVICES = {"cpu": HardwareAccelerator.CPU, "gpu": HardwareAccelerator.GPU}


def run(model: CompiledModel, images: np.ndarray) -> np.ndarray:
    """float32 logits [n, C] of images [n, H, W, 3] of the type that the file takes."""
    (signature,) = model.get_signature_list()
    details = model.get_output_tensor_details(signature)
    names = list(model.get_signature_list()[signature]["outputs"])
    place = names.index("logits") if len(names) > 1 else 0
    classes = int(np.prod(details[names[place]]["shape"]))
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    logits = []
    for image in images:
        inputs[0].write(np.ascontiguousarray(image[None]))
        model.run_by_index(0, inputs, outputs)
        logits.append(outputs[place].read(classes, np.float32).copy())
    return np.stack(logits)


def outside_of_delegates(file: str) -> list[str]:
    """Names of the operations that XNNPACK leaves to slower kernels, in their order."""
    interpreter = Interpreter(model_path=file)
    interpreter.allocate_tensors()
    operations = interpreter._get_ops_details()
    makers = {o: op for op in operations if op["op_name"] != "DELEGATE" for o in op["outputs"]}

    inside = set()
    for delegate in (op for op in operations if op["op_name"] == "DELEGATE"):
        fed, wanted = set(delegate["inputs"]), list(delegate["outputs"])
        while wanted:
            tensor = wanted.pop()
            if tensor in fed or tensor not in makers or makers[tensor]["index"] in inside:
                continue
            inside.add(makers[tensor]["index"])
            wanted += list(makers[tensor]["inputs"])
    return [
        op["op_name"]
        for op in operations
        if op["op_name"] != "DELEGATE" and op["index"] not in inside
    ]


def main() -> None:
    """Answer, and end: 0 also where the device refuses the file."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    file, device, *arrays = sys.argv[1:]
    answer = {"whole": False, "left_out": [], "error": None}
    try:
        model = CompiledModel.from_file(file, DEVICES[device])
        answer["whole"] = model.is_fully_accelerated()
        if arrays:
            images, logits = map(Path, arrays)
            np.save(logits, run(model, np.load(images)))
    except RuntimeError as error:
        answer["error"] = str(error)
    if device == "cpu" and not answer["whole"]:
        answer["left_out"] = outside_of_delegates(file)
    print(json.dumps(answer), file=answers, flush=True)  # noqa: T201, its answer


if __name__ == "__main__":
    main()
