"""The paper's central tables in small, on photographs: does a student learn most from hard labels
through a distillation token?

Trains every arm of a plan with every seed, measures accuracy by head, who agrees with whom, and how
alike the two tokens are, and writes the page and its pictures from that. Killed, it goes on at the
run and the step where it was; with more seeds in the plan, it adds those.

    python benchmarks/ablation.py CIFAR10 --out runs/ablation
    python benchmarks/ablation.py CIFAR10 --out runs/ablation --reference TORCH/bin/python
    python benchmarks/ablation.py --tiny

CIFAR10 is a folder with train/ and test/ of class folders. The plan is benchmarks/ablation.yaml.
"""

import argparse
import logging
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import machine
import numpy as np
from evidence.measures import BOTH, DECISIONS, disagreement, measure
from evidence.plan import NO_TEACHER, TOKEN, Arm, Plan, read_plan
from evidence.records import Notebook, Record, circumstances, plain_config, write_lines
from evidence.training import Workshop, choose_images, curve, is_finished

log = logging.getLogger("ablation")

HERE = Path(__file__).parent
PLAN, TINY = HERE / "ablation.yaml", HERE / "ablation_tiny.yaml"
OURS = "deit_tf"


class Ablation:
    """A plan on its way: what is run, measured and recorded.

    Args:
        shop: The plan, and where it is carried out.
    """

    def __init__(self, shop: Workshop):
        self.shop = shop
        self.records = Notebook(shop.out / "records")

    def run(self, shard: tuple[int, int] = (1, 1)) -> None:
        """Everything that is not done yet, in the order of the plan."""
        self.choose_rate()
        for seed, arm in self.shop.plan.runs(shard):
            if arm.teacher is not None:
                self.train_teacher(arm.teacher)
            self.train(seed, arm)
            self.compare_decisions(seed)

    def choose_rate(self) -> None:
        """The one learning rate of all runs."""
        key = {"what": "learning-rate"}
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

    def _record(self, record: Record) -> None:
        self.records.write(record | circumstances(self.shop.plan.checksum, machine.describe()))
        log.info("Recorded: %s", {k: record[k] for k in record if k not in ("config", "curve")})


def main() -> None:
    """Carry out the plan, and write what came out."""
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    plan = read_plan(TINY if args.tiny else args.plan)
    args.out.mkdir(parents=True, exist_ok=True)
    source = "digits" if args.tiny else args.data
    images = choose_images(source, plan.photographs_per_class, args.out)
    ablation = Ablation(Workshop(plan, images, args.out))

    if args.choose_lr:
        ablation.choose_rate()
        return
    ablation.run(args.shard)
    write_lines(ablation.records.read(), args.out / "evidence" / f"{plan.name}.jsonl")


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
    made.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="of the seeds")
    return made


def _shard(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"is I/N with 1 <= I <= N. Received: {text}")
    return part, parts


if __name__ == "__main__":
    main()
