"""Export a trained model as .tflite files, each run by LiteRT and compared with Keras before it gets its name.

python export/to_tflite.py runs/deit --out phone --variants float32,float16,dynamic_int8
"""

import argparse
import sys
from pathlib import Path

from deit_tf.runs import load_run
from deit_tf.tflite import SUFFIX, VARIANTS, ExportError, check_variant, export_tflite

ROW = "{:14}{:>8}{:>17}{:>13}{:>14}{:>16}  {}"
HEAD = ROW.format("variant", "MB", "max difference", "mean", "relative RMS", "top-1 agreement", "file")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", metavar="RUN_OR_KERAS_FILE", help="run directory, or .keras file")
    parser.add_argument("--out", required=True, metavar="FILE_OR_DIR", help="one .tflite file, or a folder for several")
    parser.add_argument("--variants", default="float32", help=f"of {','.join(VARIANTS)} (default: float32)")
    return parser.parse_args()


def main() -> None:
    """Export, and print a row per variant; a rejected one makes the command fail."""
    args = parse()
    variants, out, failed = args.variants.split(","), Path(args.out), False
    try:
        for variant in variants:
            check_variant(variant)
        if out.suffix == SUFFIX and len(variants) > 1:
            raise ValueError(f"`--out` must be a folder for {len(variants)} variants. Received: {out}")
        run = load_run(args.source)
    except (OSError, ValueError) as error:
        sys.exit(f"Not exported: {error}")
    print(
        f"compared with Keras on {'noise' if run.samples is None else f'{len(run.samples)} held-out images'}:\n{HEAD}"
    )
    for variant in variants:
        file = out if out.suffix == SUFFIX else out / f"{run.name}_{variant}{SUFFIX}"
        try:
            r = export_tflite(run.model, file, variant=variant, images=run.samples)
        except (ExportError, OSError, ValueError) as error:
            print(f"{variant:14}Not exported: {error}")
            failed = True
            continue
        numbers = [f"{r[key]:.1e}" for key in ("max_difference", "mean_difference", "relative_rms")]
        print(ROW.format(variant, f"{r['bytes'] / 1e6:.2f}", *numbers, f"{r['top1_agreement']:.3f}", r["file"]))
    sys.exit(failed)


if __name__ == "__main__":
    main()
