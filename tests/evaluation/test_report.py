"""The report: every section, untrusted names escaped, a text for each picture, nothing fetched; in
Chromium as well."""

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from page_checks import CHROMIUM, Tags, check_nothing_is_fetched, requested_hosts, widths
from PIL import Image

import deit_tf
from deit_tf.cli import main
from deit_tf.config import (
    DataConfig,
    DistillConfig,
    MaskConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from deit_tf.evaluation.charts import line_chart, ticks, tint
from deit_tf.evaluation.findings import Decisions, Findings
from deit_tf.evaluation.report import write_report
from deit_tf.evaluation.scores import wilson
from deit_tf.files import write_json
from deit_tf.models.resnet import create_resnet
from deit_tf.runs import load_run, write_config

CLASSES = ("<img src=x onerror=alert(1)>", 'quote" & {{ 7 * 7 }}', "plain")
EPOCH = {
    "loss": 1.0,
    "val_loss": 1.2,
    "base_loss": 1.0,
    "val_base_loss": 1.1,
    "distillation_loss": 0.9,
    "val_distillation_loss": 1.0,
    "accuracy": 0.4,
    "val_accuracy": 0.5,
    "val_accuracy_cls": 0.5,
    "val_accuracy_dist": 0.4,
    "teacher_agreement": 0.3,
    "val_teacher_agreement": 0.2,
    "learning_rate": 1e-3,
    "gradient_norm": 2.0,
    "images_per_second": 90.0,
}


def write_run(folder, config, model, file, kind, epochs):
    folder.mkdir()
    write_config(replace(config, out=str(folder)), folder / "config.yaml")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"epoch": e + 1, **EPOCH}) + "\n" for e in range(epochs))
    )
    model.save(folder / file)
    figures = {"loss": 1.2} if kind == "masked" else {"accuracy": 0.5, "loss": 1.2}
    summary = {
        "model": model.name,
        "parameters": model.count_params(),
        "kind": kind,
        "epochs": epochs,
        "evaluation": figures,
        "training_seconds": 3.0,
        "training_images": 24,
        "evaluation_images": 9,
    }
    write_json(summary, folder / "summary.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 3)):
        for name in CLASSES:
            (root / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(root / "images" / split / name / f"{i}.png")
    tiny = dict(image_size=16, patch_size=4, depth=1)
    config = TrainConfig(
        model=StudentConfig("deit_test", **tiny, drop_path_rate=0.0),
        data=DataConfig(str(root / "images"), batch_size=2, verify=False),
        distill=DistillConfig(teacher=str(root / "teacher")),
        mask=MaskConfig(unit=8),
    )
    teacher = create_resnet("resnet8", num_classes=3, image_size=16)
    student = deit_tf.create_model("deit_test", num_classes=3, **tiny)
    write_run(root / "teacher", config, teacher, "teacher.keras", "teacher", 1)
    write_run(root / "student", config, student, "student.keras", "hard", 3)
    student.save(root / "student" / "student_ema.keras")
    run = load_run(root / "student")
    deit_tf.export_saved_model(
        run.model, root / "exports", processor=run.processor, labels=None, images=run.samples
    )
    (root / "exports" / "broken.tflite").write_text("no model")
    masked = deit_tf.create_masked_model("deit_test", **tiny)
    write_run(root / "masked", replace(config, task="masked"), masked, "masked.keras", "masked", 2)
    return root


@pytest.fixture(scope="module")
def page(runs):
    main(["report", str(runs / "student"), "--exports", str(runs / "exports")])
    return runs / "student" / "report.html"


def headings(path):
    return re.findall(r"<h2>(.*?)</h2>", path.read_text())


def test_sections_of_a_student(page):
    assert headings(page) == [
        "Who is right, and who agrees",
        "Curves",
        "Classes",
        "Confusion",
        "Most confident mistakes",
        "Where class head, distillation head, teacher disagree",
        "Where the attention comes from",
        "Exported artifacts",
        "Config",
    ]
    text = page.read_text()
    for chart in (
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Images per second",
        "Accuracy of each head, held out",
    ):
        assert f"<figcaption>{chart}</figcaption>" in text
    words = " ".join(Tags(text).words)
    for row in ("class head", "distillation head", "moving average", "teacher", "broken.tflite"):
        assert row in words


def test_the_accuracy_comes_with_its_interval(page):
    words = [word.strip() for word in Tags(page.read_text()).words]
    place = words.index("top-1, held out")
    low, high = (100 * end for end in wilson(0.5, 9))
    assert words[place + 1] == f"95 %: {low:.1f} to {high:.1f} %"


def test_attention_is_captioned_by_classes_and_by_its_range(runs, page):
    findings = Findings(runs / "student")
    labels = [CLASSES[int(each.label)] for each in findings.rollouts]
    assert {*labels} == {*CLASSES}  # from all over the data
    words = [word.strip() for word in Tags(page.read_text()).words]
    assert sum(word.endswith("times an even share") for word in words) == len(labels)
    assert not any(re.search(r"row \d", word) for word in words)
    start = words.index("Where the attention comes from")
    for each, label in zip(findings.rollouts, labels, strict=True):
        start = words.index(f"is {label}", start + 1)
        said = CLASSES[each.logits["cls"].argmax()]
        assert f"class head: {said}" in words[start : start + 8]


def test_loss_and_accuracy_are_the_large_charts(page):
    large, small = page.read_text().split('<div class="charts lesser">')
    large = large.split('<div class="charts">')[1]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", large) == ["Loss", "Accuracy"]
    assert small.count("<figcaption>Parts of the loss</figcaption>") == 1
    assert small.count('<polyline class="s3" points="0,4') == 1  # its fourth line has a legend


def test_sections_of_a_teacher_and_of_a_masked_run(runs):
    teacher = headings(write_report(runs / "teacher", runs / "teacher.html"))
    assert "Confusion" in teacher and "Where the attention comes from" not in teacher
    masked = write_report(runs / "masked", runs / "masked.html")
    assert headings(masked) == ["Curves", "Reconstructions", "Config"]
    assert (
        len(Tags(masked.read_text()).named("img")) == 3 * 9
    )  # nine held-out images, each in three states


def test_a_teacher_tells_its_own_weights_and_its_moving_average(runs, tmp_path):
    folder = shutil.copytree(runs / "teacher", tmp_path / "teacher")
    config = load_run(folder).config
    model, teacher = replace(config.model, weights="students"), TeacherConfig(weights="teachers")
    write_config(replace(config, model=model, teacher=teacher), folder / "config.yaml")
    shutil.copy(folder / "teacher.keras", folder / "teacher_ema.keras")
    words = [word.strip() for word in Tags(write_report(folder).read_text()).words if word.strip()]
    assert words[words.index("Trunk from") + 1] == "teachers"
    decisions = Findings(folder).decisions
    np.testing.assert_array_equal(decisions.top["ema"], decisions.top["model"])  # the same file


def test_names_are_escaped(page):
    tags = Tags(page.read_text())
    assert all(image["src"].startswith("data:image/png;base64,") for image in tags.named("img"))
    assert not any(name.startswith("on") for _, attributes in tags.tags for name in attributes)
    words = [word.strip() for word in tags.words]
    assert (
        CLASSES[0] in words and CLASSES[1] in words
    )  # and "49" would stand where a name were a template


def test_every_picture_has_an_alternative_text(page):
    tags = Tags(page.read_text())
    assert len(tags.named("img")) > 9
    assert all(len(image["alt"]) > 8 for image in tags.named("img"))
    assert all(svg.get("aria-hidden") or len(svg["aria-label"]) > 8 for svg in tags.named("svg"))


def test_nothing_is_fetched(page):
    check_nothing_is_fetched(page)


def test_figures_are_those_of_the_model(runs, page):
    findings = Findings(runs / "student", runs / "exports")
    decisions = findings.decisions
    matrix = decisions.confusion(3)
    assert matrix.sum() == 9 and np.trace(matrix) / 9 == pytest.approx(
        decisions.accuracy()["model"]
    )
    np.testing.assert_array_equal(decisions.top["ema"], decisions.top["model"])  # the same file
    saved, broken = sorted(findings.artifacts, key=lambda each: bool(each.error))
    assert saved.deviation["max_difference"] < 1e-4  # the limit under which it was exported
    assert broken.error and broken.size == len("no model")


def test_mistakes_and_disagreements_come_in_order():
    top = {
        "model": np.array([0, 1, 1, 0]),
        "cls": np.array([0, 1, 1, 0]),
        "dist": np.array([0, 0, 2, 0]),
    }
    decisions = Decisions(
        np.zeros(4, int), {**top, "teacher": np.array([0, 0, 0, 0])}, np.array([0.9, 0.6, 0.8, 0.7])
    )
    assert decisions.mistakes().tolist() == [2, 1]
    assert decisions.disagreements().tolist() == [2, 1]  # three opinions before two
    assert decisions.voices == ["cls", "dist", "teacher"]
    plain = Decisions(
        np.zeros(2, int),
        {"model": np.array([0, 1]), "teacher": np.array([0, 0])},
        np.array([0.9, 0.6]),
    )
    assert plain.voices == ["model", "teacher"] and plain.disagreements().tolist() == [1]
    assert decisions.agreement() == {"model": 0.5, "cls": 0.5, "dist": 0.75}


def test_a_run_without_its_data_or_teacher_says_so(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "student", tmp_path / "moved")
    config = load_run(runs / "student").config
    file = tmp_path / "moved" / "config.yaml"
    write_config(replace(config, distill=replace(config.distill, teacher="nowhere")), file)
    assert "opinions are missing" in write_report(tmp_path / "moved").read_text()
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    write_config(replace(config, distill=replace(config.distill, teacher="keras-hub:resnet")), file)
    assert "pip install keras-hub" in write_report(tmp_path / "moved").read_text()
    write_config(replace(config, data=replace(config.data, source="nowhere")), file)
    page = write_report(tmp_path / "moved")
    assert "not at hand" in page.read_text() and headings(page) == ["Curves", "Config"]


def test_a_folder_of_exports_that_is_not_there_is_named(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        write_report(runs / "student", exports=tmp_path / "nowhere", out=tmp_path / "page.html")


def test_an_unfinished_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "is no finished run" in capsys.readouterr().err


def test_line_chart():
    chart = line_chart("Loss", {"a": [2.0, 1.0, float("nan")], "b": []})
    assert [line["label"] for line in chart["lines"]] == ["a"]
    (x0, y0), (x1, y1) = (
        map(float, point.split(",")) for point in chart["lines"][0]["points"].split()
    )
    assert x1 > x0 and y1 > y0  # SVG counts downwards
    assert chart["summary"] == "a 2 at first, 1 at last"
    assert line_chart("Nothing", {"a": [float("inf")]}) is None
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_tint_is_strongest_where_the_weight_is():
    tinted = tint(np.zeros((4, 8, 3), np.uint8), np.array([[0.0, 0.5], [0.0, 1.0]]))
    assert tinted[0, 0].tolist() == [0, 0, 0] and tinted[3, 7].tolist() == [127, 70, 0]


@pytest.mark.skipif(not CHROMIUM, reason="no chromium installed")
def test_chromium_renders_it_without_errors_or_requests(page, tmp_path):
    hosts, messages = requested_hosts(tmp_path, page)
    assert hosts == set()
    assert "CONSOLE" not in messages, messages
    colors = Image.open(tmp_path / "page.png").convert("RGB").getcolors(1 << 20)
    assert len(colors) > 100  # text, lines and pictures, and not one blank sheet
    (tmp_path / "guilty.html").write_text(
        "<img src='http://outside.invalid/'><script>undefined_function()</script>"
    )
    hosts, messages = requested_hosts(tmp_path, tmp_path / "guilty.html")
    assert (
        hosts == {"outside.invalid"} and "CONSOLE" in messages
    )  # so the two checks above can fail


@pytest.mark.skipif(not CHROMIUM, reason="no chromium installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_chromium_needs_no_sideways_scrolling(page, tmp_path, width):
    needed, given = widths(tmp_path, page, width)
    assert needed <= given
