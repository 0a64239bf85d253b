"""Export a trained model as a SavedModel for TensorFlow Serving, checked against Keras before it
appears.

python export/to_saved_model.py runs/deit --out served --version 1
"""

import argparse
import sys
from pathlib import Path

from pictures import held_out, read_labels

from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.saved_model import export_saved_model, read_report
from deit_tf.runs import load_run


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", metavar="RUN_OR_KERAS_FILE", help="run directory, or .keras file")
    parser.add_argument("--out", required=True, metavar="DIR", help="writes DIR/<model>/<version>/")
    parser.add_argument(
        "--version", type=int, default=1, help="from 1; an existing one is refused (default: 1)"
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="class names, one a line (default: the run's)"
    )
    parser.add_argument(
        "--source", help="pictures, as `data.source` of a config (default: the run's held-out ones)"
    )
    parser.add_argument(
        "--pictures", type=int, default=32, help="how many to verify on (default: 32)"
    )
    parser.add_argument(
        "--rollout",
        action="store_true",
        help="adds a signature for the attention rollout, of a DeiT",
    )
    parser.add_argument(
        "--xla", action="store_true", help="the server compiles the network, once per batch size"
    )
    return parser.parse_args()


def export(args: argparse.Namespace) -> Path:
    """Load, export and verify; returns the folder of the version."""
    run = load_run(args.run)
    labels = run.labels if args.labels is None else read_labels(args.labels)
    found = held_out(run, args.pictures, args.source)
    images = None if found is None else found.images
    what = dict(
        processor=run.processor, labels=labels, version=args.version, name=run.name, images=images
    )
    return export_saved_model(run.model, args.out, **what, rollout=args.rollout, xla=args.xla)


def main() -> None:
    """Export, and print what the verification measured."""
    try:
        path = export(parse())
    except (ExportError, OSError, ValueError) as error:
        sys.exit(f"Not exported: {error}")
    report = read_report(path)
    compared_on = (
        "noise"
        if report["compared_on"] == "noise"
        else f"{report['images_compared']} held-out images"
    )
    print(f"{path} ({report['weights_bytes'] / 1e6:.2f} MB of weights)")
    print(f"largest difference of a logit from Keras, in a C++ session, on {compared_on}:")
    for signature in ("serving_default", "images", "heads", "rollout"):
        if signature in report:
            print(f"  {signature:16} {report[signature]['max_difference']:.1e}")
    print(
        f"{report['warmup_records']} warm-up records replayed"
        + (", compiled by XLA" if report["xla"] else "")
    )


if __name__ == "__main__":
    main()
