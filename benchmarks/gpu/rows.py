"""What each case should show, as one table: what was found, in words, and what is wrong with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

WEIGHTS = 1e-5  # largest difference of a weight of one device and of several
LOGITS = 1e-4  # of a logit of a SavedModel, over the largest
MEMORY = 0.2  # by which the measured memory may miss the plan
SCALING = 0.8  # of the images per second of one device, on each of several


def no_fault(found: dict) -> str:
    """Of what is looked at and not judged."""
    return ""


@dataclass(frozen=True)
class Case:
    """One thing to look at, in a process of its own.

    Args:
        name: As the table has it.
        run: The function that looks, by its key in `gpu_check.CASES`.
        options: Its keyword arguments.
        text: What it found, in words.
        fault: What is wrong with that; empty where nothing is.
    """

    name: str
    run: str
    options: Mapping[str, Any]
    text: Callable[[dict], str]
    fault: Callable[[dict], str] = no_fault


def row(case: Case, found: dict) -> dict:
    """A case with what it found and its verdict: `ok`, `refused`, `skipped` or `FAILS`."""
    if "failure" in found:
        verdict, text = "FAILS", found["failure"]
    elif "skipped_because" in found:
        verdict, text = "skipped", found["skipped_because"]
    elif "refused" in found:
        verdict, text = "refused", f"{found['refused']}: {found['error']}"
    else:
        fault = case.fault(found)
        verdict, text = ("FAILS" if fault else "ok"), case.text(found)
        text = f"{text}. {fault}" if fault else text
    return {"check": case.name, "verdict": verdict, "text": text, "found": found}


def table(rows: list[dict]) -> Table:
    """Rows as a table."""
    shown = Table("check", "found", "verdict")
    for each in rows:
        shown.add_row(each["check"], each["text"], each["verdict"])
    return shown


def seen_text(found: dict) -> str:
    """Versions, driver and devices in a line."""
    gpus = [f"{gpu['name']} ({gpu['compute_capability']})" for gpu in found["gpus"]]
    built = f"CUDA {found['cuda_version']}, cuDNN {found['cudnn_version']}"
    return (
        f"TensorFlow {found['tensorflow']} ({built if found['built_with_cuda'] else 'no CUDA'}), "
        f"Keras {found['keras']}, driver {found['driver'] or 'none'}; {', '.join(gpus) or 'no GPU'}"
    )


def step_text(found: dict) -> str:
    """Speed, memory and loss of a step."""
    return (
        f"{found['images_per_second']:.0f} images/s, {found['peak_bytes'] / 1e6:,.0f} MB, loss "
        f"{found['first_loss']:.3f} to {found['loss']:.3f}"
    )


def step_fault(found: dict) -> str:
    """A loss that is not finite or does not fall on the same batch; bits that differ."""
    if not found["loss"] < found["first_loss"]:  # a NaN as well
        return "The loss does not fall on one batch again and again"
    return "" if found["same_bits"] else "Two runs under deterministic kernels differ"


def mirrored_text(found: dict) -> str:
    """One device against several."""
    one, every = found["images_per_second"]
    return (
        f"{found['devices']} devices: weights differ by {found['difference']:.1e} (moved by "
        f"{found['moved']:.1e}); {one:.0f} images/s on one, {every:.0f} on all, scaling "
        f"{found['scaling']:.0%}"
    )


def weights_fault(found: dict) -> str:
    """Weights of several devices that are not those of one, or that never moved."""
    if not found["moved"] > WEIGHTS:
        return "The training changed no weight, so that the comparison says nothing"
    fits = found["difference"] <= WEIGHTS
    return "" if fits else f"The weights may differ by {WEIGHTS:g}"


def mirrored_fault(found: dict) -> str:
    """The same, or a scaling that wastes devices."""
    slow = f"Scaling is below {SCALING:.0%}" if found["scaling"] < SCALING else ""
    return weights_fault(found) or slow


def memory_text(found: dict) -> str:
    """Measured beside planned."""
    return (
        f"{found['measured_bytes'] / 1e6:,.0f} MB measured, {found['planned_bytes'] / 1e6:,.0f} MB "
        f"planned, {found['ratio'] - 1:+.0%}"
    )


def memory_fault(found: dict) -> str:
    """A plan that misses."""
    fits = abs(found["ratio"] - 1) <= MEMORY
    return "" if fits else f"The plan may miss by {MEMORY:.0%}"


def scaling_text(found: dict) -> str:
    """Steps skipped, and the scale that held."""
    return (
        f"{found['skipped']} steps skipped, then a scale of {found['scale']:g} and a loss of "
        f"{found['loss']:.3f}"
    )


def scaling_fault(found: dict) -> str:
    """An overflow that was not seen, was applied, or never ended."""
    if not found["skipped"]:
        return "No step overflowed, though the scale began beyond float16"
    if not found["kept"]:
        return "A skipped step changed weights"
    return "" if found["moved"] else "No step was applied in the end"


def killed_text(found: dict) -> str:
    """Whether it was killed, and ended alike."""
    same = "the same bits" if found["same_bits"] else "other bits"
    return f"{'killed' if found['was_killed'] else 'never killed'} and resumed: {same} in the end"


def killed_fault(found: dict) -> str:
    """A resumed run that ends otherwise."""
    if not found["was_killed"]:
        return "It was faster than the kill"
    return "" if found["same_bits"] else "A resumed run ends with the bits of one never stopped"


def saved_model_text(found: dict) -> str:
    """Difference and speed."""
    return (
        f"logits differ from Keras by {found['difference']:.1e}; {found['images_per_second']:.0f} "
        "images/s in a C++ session"
    )


def saved_model_fault(found: dict) -> str:
    """A SavedModel that says something else."""
    return "" if found["difference"] <= LOGITS else f"They may differ by {LOGITS:g}"
