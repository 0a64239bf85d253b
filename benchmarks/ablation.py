"""The paper's central tables in small, on photographs: does a student learn most from hard labels
through a distillation token?

Trains every arm of a plan with every seed, measures accuracy by head, who agrees with whom, and how
alike the two tokens are, and writes the page and its pictures from that. Killed, it goes on at the
run and the step where it was; with more seeds in the plan, it adds those.

    python benchmarks/ablation.py CIFAR10 --out runs/ablation
    python benchmarks/ablation.py CIFAR10 --out runs/ablation --reference TORCH/bin/python
    python benchmarks/ablation.py --out runs/ablation --page-only --docs docs
    python benchmarks/ablation.py --tiny

CIFAR10 is a folder with train/ and test/ of class folders. The plan is benchmarks/ablation.yaml.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import machine
import numpy as np
from evidence.charts import draw_all
from evidence.figures import OURS, REFERENCE, rows
from evidence.measures import BOTH, DECISIONS, disagreement, measure
from evidence.page import write_page
from evidence.plan import NO_TEACHER, TOKEN, Arm, Plan, read_plan
from evidence.records import Notebook, Record, circumstances, plain_config, write_lines
from evidence.reference import train_reference
from evidence.training import Workshop, choose_images, curve

log = logging.getLogger("ablation")

HERE = Path(__file__).parent
PLAN, TINY = HERE / "ablation.yaml", HERE / "ablation_tiny.yaml"


class Ablation:
    """A plan on its way: what is run, measured and recorded.

    Args:
        shop: The plan, and where it is carried out.
        reference: The interpreter that has torch and timm, where they are to train as well.
    """

    def __init__(self, shop: Workshop, reference: str | None = None):
        self.shop, self.reference = shop, reference
        self.records = Notebook(shop.out / "records")

    def run(self, shard: tuple[int, int] = (1, 1), arms: Sequence[str] = ()) -> None:
        """Everything that is not done yet, in the order of the plan; of `arms` alone if given."""
        runs = [each for each in self.shop.plan.runs(shard) if not arms or each[1].name in arms]
        self.choose_rate()
        for seed, arm in runs:
            if arm.teacher is not None:
                self.train_teacher(arm.teacher)
            self.train(seed, arm)
            self.compare_decisions(seed)

        for seed, arm in runs:
            if self.reference and self.shop.plan.is_referenced(seed, arm):
                self.train_reference(seed, arm)

    def choose_rate(self) -> None:
        """The one learning rate of all runs."""
        key = {"what": "learning-rate", "seed": self.shop.plan.learning_rate["seed"]}
        if not self.records.has(key):
            self._record(key | self.shop.choose_rate())

    def train_teacher(self, name: str) -> None:
        """A teacher of the plan."""
        key = {"what": "teacher", "arm": name}
        if self.records.has(key):
            return
        folder = self.shop.train_teacher(name)
        self._record(key | measure(folder) | curve(folder))

    def train(self, seed: int, arm: Arm) -> None:
        """A run; one that diverges is recorded as such."""
        key = {"what": "run", "library": OURS, "arm": arm.name, "seed": seed}
        if self.records.has(key):
            return
        config = self.shop.run_config(seed, arm)
        failure = self.shop.train(seed, arm)

        folder = Path(config.out)
        figures = {"failed": failure} if failure else measure(folder) | curve(folder)
        self._record(key | figures | {"config": plain_config(config)})

    def compare_decisions(self, seed: int) -> None:
        """Who agrees with whom, of the classifiers of table 4, once all of a seed are there."""
        key = {"what": "disagreement", "seed": seed}
        plan = self.shop.plan
        folders = {arm: self.shop.run_folder(seed, plan.arm(arm)) for arm in (NO_TEACHER, TOKEN)}
        files = [folder / DECISIONS for folder in folders.values()]
        if self.records.has(key) or not all(file.is_file() for file in files):
            return

        teacher = self.shop.teacher_folder(plan.arm(TOKEN).teacher)
        convnet = np.load(teacher / DECISIONS)
        without, token = (np.load(file) for file in files)
        decisions = {
            "truth": convnet["truth"],
            "teacher": convnet["cls"],
            "student without": without["cls"],
            "class head": token["cls"],
            "distillation head": token["dist"],
            "both heads": token[BOTH],
        }
        shares = disagreement(list(decisions.values()))
        self._record(key | {"classifiers": list(decisions), "shares": shares})

    def train_reference(self, seed: int, arm: Arm) -> None:
        """The same run by timm and torch."""
        key = {"what": "run", "library": REFERENCE, "arm": arm.name, "seed": seed}
        if self.records.has(key):
            return
        folder = self.shop.out / "reference" / f"{arm.name}-{seed}"
        self._record(key | train_reference(self.shop.run_config(seed, arm), folder, self.reference))

    def _record(self, record: Record) -> None:
        self.records.write(record | circumstances(self.shop.plan.checksum, machine.describe()))
        log.info("Recorded: %s", {k: record[k] for k in record if k not in ("config", "curve")})


def publish(records: list[Record], plan: Plan, docs: Path) -> Path:
    """Write the JSON lines, the pictures and the page; returns the page.

    Records of the same plan that are there already, as from another machine, stay.
    """
    lines = docs / "evidence" / f"{plan.name}.jsonl"
    everything = write_lines(records, lines)
    table = rows(everything, plan.arms)
    pictures = draw_all(everything, table, docs / "images", plan.name)
    return write_page(everything, plan, docs, lines, pictures)


def main() -> None:
    """Carry out the plan, and write what came out."""
    options = parser()
    args = options.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    plan = read_plan(TINY if args.tiny else args.plan)
    docs = args.docs or args.out / "docs"

    if args.page_only:
        records = Notebook(args.out / "records").read()
        print(publish(records, plan, docs))
        return

    if not args.tiny and not (args.data and Path(args.data).is_dir()):
        options.error(
            f"DATA is a folder with train/ and test/ of class folders. Received: {args.data}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    source = "digits" if args.tiny else args.data
    images = choose_images(source, plan.photographs_per_class, args.out)
    ablation = Ablation(Workshop(plan, images, args.out), args.reference)

    if unknown := set(args.arms) - {arm.name for arm in plan.arms}:
        options.error(f"the plan has no arms {', '.join(sorted(unknown))}")
    if args.choose_lr:
        ablation.choose_rate()
        return
    ablation.run(args.shard, args.arms)
    print(publish(ablation.records.read(), plan, docs))


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("data", nargs="?", help="folder with train/ and test/ of class folders")
    made.add_argument("--out", type=Path, default=Path("runs/ablation"))
    made.add_argument("--plan", type=Path, default=PLAN)
    made.add_argument("--tiny", action="store_true", help="digits, in about two minutes")
    made.add_argument("--choose-lr", action="store_true", help="choose the learning rate and stop")
    made.add_argument("--arms", nargs="+", default=(), metavar="ARM", help="these alone")
    made.add_argument("--reference", metavar="PYTHON", help="has torch and timm, to train as well")
    made.add_argument("--docs", type=Path, help="where the page goes; by default OUT/docs")
    made.add_argument("--page-only", action="store_true", help="write the page of what is there")
    made.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="of the seeds")
    return made


def _shard(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"is I/N with 1 <= I <= N. Received: {text}")
    return part, parts


if __name__ == "__main__":
    main()
