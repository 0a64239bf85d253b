"""The whole of deit_tf on handwritten digits, by the commands that you would type.

    python examples/demo.py              # what `make demo` runs
    python examples/demo.py --seed 1

One process runs them all, since the import of TensorFlow takes longer than some of them.
"""

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

RUNS = Path("runs/demo")
DEMO = "--config configs/demo_digits.yaml --overwrite"
COMMANDS = (
    # A teacher, a student that learns from the labels alone, the same student with the teacher
    f"train-teacher {DEMO} --out {RUNS}/teacher",
    f"train {DEMO} --out {RUNS}/undistilled --distill.kind none",
    f"train {DEMO} --out {RUNS}/distilled",
    # For TensorFlow Serving and for phones, each run and compared with Keras
    f"export saved-model {RUNS}/distilled --out {RUNS}/export",
    f"export tflite {RUNS}/distilled --out {RUNS}/export/student.tflite",
    # What came of it
    f"report {RUNS}/distilled --exports {RUNS}/export",
    f"compare {RUNS}/teacher {RUNS}/undistilled {RUNS}/distilled",
)


def main() -> None:
    """Run the commands."""
    parser = argparse.ArgumentParser(prog="demo.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed

    sys.argv[0] = "deit-tf"  # whose first command loads TensorFlow, without the page that it logs
    from deit_tf.cli import main as deit_tf

    started = time.perf_counter()
    shutil.rmtree(RUNS / "export", ignore_errors=True)
    for command in COMMANDS:
        if "--config" in command:
            command += f" --seed {seed}"
        print(f"\n$ deit-tf {command}", flush=True)
        deit_tf(shlex.split(command))

    print(
        f"\n{time.perf_counter() - started:.0f} seconds. Open {RUNS}/distilled/report.html for "
        f"the curves, the mistakes and the exports; the student is {RUNS}/distilled/student.keras."
    )


if __name__ == "__main__":
    main()
