"""The ablation: its plan's order, its statistics, what its page says; and every arm on digits,
killed once."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import ablation
from evidence import figures, measures, records, reference, tables, training
from evidence.charts import draw_all
from evidence.plan import read_plan

from deit_tf import create_model
from deit_tf.data import ImageProcessor
from deit_tf.runs import RunFolder

ROOT = Path(__file__).parents[2]
PLAN = read_plan(ablation.PLAN)
MACHINE = {"processor": "a processor", "instructions": ["avx2"], "cpus": 2, "load": [0.0]}
CIRCUMSTANCES = records.circumstances(PLAN.checksum, MACHINE)


def run(arm, seed, library=figures.OURS, **accuracy):
    """A record of a run of one or two heads."""
    figure = {"accuracy": accuracy, "images": 10_000, "curve": [0.1, max(accuracy.values())]}
    key = {"what": "run", "library": library, "arm": arm, "seed": seed}
    return key | figure | {"training_seconds": 12.0} | CIRCUMSTANCES


def failed(arm, seed):
    key = {"what": "run", "library": figures.OURS, "arm": arm, "seed": seed}
    return key | {"failed": "The loss is no longer finite"} | CIRCUMSTANCES


def records_of(seeds, gain):
    """Runs without teacher and with the token, which is better by `gain` on average."""
    found = []
    for seed in range(seeds):
        none = 0.5 + 0.01 * seed
        both = none + gain + 0.002 * (seed - (seeds - 1) / 2)
        found += [
            run("none", seed, cls=none),
            run("token", seed, cls=both - 0.01, dist=both - 0.005, both=both),
        ]
    return found


# The plan


def test_all_arms_of_the_first_seed_come_first():
    order = [(seed, arm.name) for seed, arm in PLAN.runs()]
    names = ["none", "soft", "hard", "token", "two-class-tokens"]
    assert order[:5] == [(0, name) for name in names]
    assert order[5:10] == [(1, name) for name in names]
    assert order[-1] == (0, "transformer-teacher")


def test_shards_share_the_seeds_out():
    whole = sorted((seed, arm.name) for seed, arm in PLAN.runs())
    parts = [(seed, arm.name) for part in (1, 2) for seed, arm in PLAN.runs((part, 2))]
    assert sorted(parts) == whole
    assert {seed for seed, _ in PLAN.runs((2, 2))} == {1}


def test_arms_differ_in_nothing_but_what_makes_them():
    settings = ("model", "data", "augment", "optim", "epochs", "precision")
    configs = {arm.name: PLAN.config(arm.settings) for arm in PLAN.arms}
    for config in configs.values():
        for name in settings[1:]:
            assert getattr(config, name) == getattr(configs["none"], name)
        assert config.model.overrides() == configs["none"].model.overrides()


def test_the_learning_rate_is_chosen_without_a_teacher_on_a_seed_of_its_own():
    configs = PLAN.search_configs()
    assert set(configs) == set(PLAN.learning_rate["candidates"])
    for lr, config in configs.items():
        assert config.optim.lr == lr and config.distill.kind == "none"
        assert config.seed not in PLAN.seeds


def test_a_plan_with_an_unknown_part_is_refused(tmp_path):
    content = yaml.safe_load(ablation.PLAN.read_text())
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(content | {"sedes": [1]}))
    with pytest.raises(ValueError, match="sedes"):
        read_plan(file)
    content["common"]["optim"]["learning_rate"] = 1.0
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="learning_rate"):
        read_plan(file)


# Training


def test_what_another_shard_trains_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "PATIENCE", 0)
    config = replace(PLAN.config(), out=str(tmp_path))
    turns = []

    def other_then_own(config):
        turns.append(config.out)
        if len(turns) == 1:
            raise BlockingIOError("Another process trains into it")
        (tmp_path / "summary.json").write_text("{}")

    assert training.finish(config, other_then_own) is None and len(turns) == 2
    assert training.finish(config, other_then_own) is None and len(turns) == 2


def test_a_run_that_diverges_says_why(tmp_path):
    def diverge(config):
        raise FloatingPointError("The loss is no longer finite")

    assert "no longer" in training.finish(replace(PLAN.config(), out=str(tmp_path)), diverge)


def test_the_first_images_of_each_class_are_trained_on(tmp_path):
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "all" / place).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "all" / place / f"{number}.png").write_bytes(b"")
    found = Path(training.choose_images(str(tmp_path / "all"), 2, tmp_path))
    assert training.choose_images(str(tmp_path / "all"), 2, tmp_path) == str(found)
    names = {path.relative_to(found).as_posix() for path in found.glob("train/*/*")}
    assert names == {"train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png"}
    assert len(list(found.glob("val/*/*"))) == 6
    with pytest.raises(ValueError, match="3 images, not 4"):
        training.choose_images(str(tmp_path / "all"), 4, tmp_path / "other")


# Statistics


def test_the_interval_is_students():
    found = figures.spread([1.0, 2.0, 3.0])
    assert (found.count, found.mean, found.deviation) == (3, 2.0, 1.0)
    assert found.half_width == pytest.approx(4.3027 / 3**0.5, abs=1e-4)  # t of 2 degrees of freedom


def test_no_interval_is_claimed_of_two_seeds():
    assert figures.spread([1.0, 2.0]).bounds is None
    assert figures.spread([1.0]).deviation is None
    assert figures.spread([]) is None


def test_differences_are_paired_by_seed():
    assert figures.paired({0: 3.0, 1: 5.0, 2: 7.0}, {1: 1.0, 0: 1.0}) == [2.0, 4.0]


@pytest.mark.parametrize(
    "seeds, gain, word",
    [
        (3, 0.05, "supported"),
        (3, -0.05, "contradicted"),
        (3, 0.001, "undecided"),
        (2, 0.05, "point for it"),
        (2, -0.05, "point against it"),
        (2, 0.0, "in both directions"),
    ],
)
def test_the_sentence_says_what_the_data_says(seeds, gain, word):
    sentence, *others = figures.verdict(figures.rows(records_of(seeds, gain), PLAN.arms))
    assert word in sentence and f"{seeds} seeds" in sentence
    assert len(others) == 2 and all(other.endswith("not run yet.") for other in others)


def test_a_diverged_run_stays_in_the_table():
    found = [*records_of(2, 0.1), failed("none", 2)]
    table = figures.rows(found, PLAN.arms)
    line = tables.accuracy_table(table).splitlines()[2]
    assert line.split("|")[1:6] == [" no teacher: class head ", " 2 ", " 50.5 ± 0.7 ", " – ", " 1 "]
    assert "no longer finite" in tables.run_table(found)


# Measures


def test_disagreement_counts_different_decisions():
    a, b = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 0])
    assert measures.disagreement([a, b]) == [[0.0, 0.25], [0.25, 0.0]]


def test_cosines_lie_along_the_width():
    a, b = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 2.0], [3.0, 3.0]])
    np.testing.assert_allclose(measures.cosine(a, b), [0.0, 1.0], atol=1e-12)


def test_a_run_is_measured_by_each_head_and_its_tokens(tmp_path):
    plan = read_plan(ablation.TINY)
    config = plan.config(plan.arm("token").settings)
    model = config.model
    student = create_model(model.name, num_classes=10, **model.overrides())
    student.get_layer("head_dist").bias.assign(np.eye(10)[3] * 1e3)  # decides for 3 always
    folder = RunFolder(tmp_path)
    folder.begin(config, {"labels": [str(digit) for digit in range(10)]}, overwrite=False)
    student.save(folder.model("student"))

    keras.backend.clear_session()  # as between runs: names begin anew
    found = measures.measure(tmp_path)
    decisions = np.load(tmp_path / measures.DECISIONS)
    assert found["images"] == 360 and set(decisions["dist"]) == {3} == set(decisions["both"])
    assert found["accuracy"]["dist"] == measures.share(decisions["truth"] == 3)
    assert found["accuracy"]["cls"] == measures.share(decisions["truth"] == decisions["cls"])

    assert len(found["cosine"]["input_and_blocks"]) == 1 + model.depth
    tokens = student.get_layer("tokens")
    cls, dist = (np.asarray(each).ravel() for each in (tokens.cls_token, tokens.dist_token))
    position = np.asarray(tokens.pos_embed)[0, :2]
    placed = measures.cosine(cls + position[0], dist + position[1])
    assert found["cosine"]["learned"] == pytest.approx(measures.cosine(cls, dist), abs=1e-3)
    assert found["cosine"]["input_and_blocks"][0] == pytest.approx(placed, abs=1e-3)


# What the reference is fed


def test_pixels_come_back_from_normalized_images():
    processor = ImageProcessor(8)
    levels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype("uint8")
    images = (levels / np.float32(255) - np.float32(processor.mean)) / np.float32(processor.std)
    assert np.array_equal(reference.pixels(images.astype("float32"), processor), levels)
    with pytest.raises(ValueError, match="gray levels"):
        reference.pixels(images + np.float32(0.01), processor)


def test_mixed_labels_have_no_reference():
    images = np.zeros((2, 8, 8, 3), "float32") - np.float32(ImageProcessor(8).mean)
    images = images / np.float32(ImageProcessor(8).std)
    hard, mixed = np.eye(2, dtype="float32"), np.full((2, 2), 0.5, "float32")
    batch = {"labels": hard, "teacher_logits": hard[::-1]}
    assert reference.plain(images, batch, ImageProcessor(8))["teacher"].tolist() == [1, 0]
    with pytest.raises(ValueError, match="no mixing"):
        reference.plain(images, mixed, ImageProcessor(8))


def test_the_reference_gets_a_run_as_it_trains_here(tmp_path):
    plan = read_plan(ablation.TINY)
    config = replace(plan.config(plan.arm("none").settings), epochs=1)
    reference.prepare(config, tmp_path / "run")

    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert spec["model"]["num_classes"] == 10 and not spec["distilled"]
    assert [len(rates) for rates in spec["rates"]] == [22]
    assert spec["rates"][0][0] == pytest.approx(config.optim.warmup_lr)
    epoch = np.load(tmp_path / "run" / "epoch-0.npz")
    assert epoch["images"].shape == (22 * 64, 16, 16, 3) and "teacher" not in epoch
    assert len(np.load(tmp_path / "run" / "held_out.npz")["labels"]) == 360
    weights = np.load(tmp_path / "run" / "weights.npz")
    assert weights["patch_embed.proj.weight"].shape == (24, 3, 8, 8)


# Records and page


def test_lines_of_two_machines_join_and_those_of_two_plans_do_not(tmp_path):
    file = tmp_path / "evidence" / "lines.jsonl"
    first, second = run("none", 0, cls=0.5), run("none", 1, cls=0.6)
    records.write_lines([first], file)
    assert records.write_lines([second, first], file) == [first, second]
    assert records.read_lines(file) == [first, second]
    with pytest.raises(ValueError, match="another plan"):
        records.write_lines([first | {"plan": "another"}], file)


def test_a_record_names_no_place_of_its_machine():
    settings = records.plain_config(PLAN.config(PLAN.arm("token").settings))
    assert "out" not in settings and "source" not in settings["data"]
    assert not {"teacher", "labels"} & settings["distill"].keys()
    assert settings["optim"]["weight_decay"] == 0.05


def test_the_page_says_how_much_was_run(tmp_path):
    text = ablation.publish(records_of(2, 0.1), PLAN, tmp_path).read_text()
    assert "**4 of the 16 runs of the plan were run.**" in text
    assert "10,000 held-out photographs" in text and "Not run yet." in text
    assert "$" not in text


def test_the_pictures_differ_in_their_colors_alone(tmp_path):
    found = records_of(3, 0.1)
    files = draw_all(found, figures.rows(found, PLAN.arms), tmp_path, "test")
    for light, dark in files.values():
        assert light.read_text() != dark.read_text()
        # A marker's name is a checksum of its form and colors.
        bare = [re.sub(r"#?m?[0-9a-f]{6,}", "", file.read_text()) for file in (light, dark)]
        assert bare[0] == bare[1]


def test_the_published_page_is_what_its_lines_give(tmp_path):
    docs = ROOT / "docs"
    lines = docs / "evidence" / f"{PLAN.name}.jsonl"
    published = records.read_lines(lines)
    assert {record["plan"] for record in published} == {PLAN.checksum}
    written = ablation.publish(published, PLAN, tmp_path)
    plan_link = "](../benchmarks/"
    assert plan_link in written.read_text()
    assert written.read_text() == (docs / "evidence.md").read_text()


# The whole command


def start(out):
    command = [sys.executable, ablation.__file__, "--tiny", "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    text, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, text


@pytest.mark.slow
def test_every_arm_on_digits_killed_once_gives_the_same_table(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole))

    process = start(killed)
    reached = killed / "runs" / "token-0" / "checkpoints" / "step-000000010.safetensors"
    while not reached.is_file():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finish(start(killed))

    pages = [(out / "docs" / "evidence.md").read_text() for out in (whole, killed)]
    results = [text.split("## What the data says")[1].split("## All runs")[0] for text in pages]
    assert results[0] == results[1]
    plan = read_plan(ablation.TINY)
    lines = whole / "docs" / "evidence" / f"{plan.name}.jsonl"
    arms = {json.loads(line).get("arm") for line in lines.read_text().splitlines()}
    assert {arm.name for arm in plan.arms} <= arms
