"""`deit-tf explain`: maps and answers are the model's, the page shows them, broken files cost
nothing."""

import numpy as np
import pytest
from page_checks import CHROMIUM, Tags, check_nothing_is_fetched, widths
from PIL import Image

import deit_tf
from deit_tf.cli import main
from deit_tf.evaluation.charts import span, tint
from deit_tf.evaluation.explain import Explanation, HeadAnswer, _free_name, explain_files
from deit_tf.models.resnet import create_resnet
from deit_tf.runs import load_model

CLASSES = ("<b>cat</b>", "$dog$", "owl", "hen", "elk", "ant")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A DeiT whose heads disagree, in a folder with its class names, and pictures."""
    folder = tmp_path_factory.mktemp("explain")
    model = deit_tf.create_model("deit_test", num_classes=6, image_size=16, patch_size=4, depth=1)
    for i, head in enumerate(("head", "head_dist")):
        model.get_layer(head).bias.assign(np.float32([3 - i, 2 + i, 0, 0, 0, 0]))
    model.save(folder / "student.keras")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))

    for i, name in enumerate(("a/x.png", "b/x.png", "c.png")):
        file = folder / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    (folder / "pictures" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def page(made):
    with pytest.raises(SystemExit) as stop:
        main(["explain", f"{made}/student.keras", f"{made}/pictures", "--out", f"{made}/out"])
    assert stop.value.code == 1  # one file is broken
    return made / "out" / "explain.html"


def test_a_png_file_for_each_picture_and_one_page(page):
    names = {file.name for file in page.parent.iterdir()}
    pictures = {"x-explained.png", "x-explained-2.png", "c-explained.png"}
    assert names == {"explain.html", *pictures}
    for name in pictures:
        assert Image.open(page.parent / name).size[0] > 900  # three columns


def test_broken_files_are_named_at_the_end(made, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        out = str(tmp_path / "out")
        main(["explain", f"{made}/student.keras", f"{made}/pictures/broken.jpg", "--out", out])
    printed = capsys.readouterr()
    assert stop.value.code == 1 and printed.out == ""
    assert printed.err.splitlines()[-2] == "Passed over 1 of 1 files:"
    assert "broken.jpg is no image" in printed.err
    assert not (tmp_path / "out").exists()


def test_the_page_shows_what_each_head_says(made, page):
    words = [word.strip() for word in Tags(page.read_text()).words]
    model = deit_tf.heads(load_model(made / "student.keras"))
    image = deit_tf.ImageProcessor(16).batch([f"{made}/pictures/a/x.png"])
    for head, first in (("cls", 0), ("dist", 1)):
        logits = np.float64(model(image)[head])[0]
        shares = np.exp(logits) / np.exp(logits).sum()
        assert np.argmax(shares) == first
        shown = f"{100 * shares[first]:.1f}\N{NO-BREAK SPACE}%"
        assert words[words.index(CLASSES[first]) :].count(shown) >= 1
    assert any(
        word.startswith(f"The heads disagree: the class head says {CLASSES[0]},") for word in words
    )
    lists = page.read_text().count('<ol class="classes"')
    assert lists == 3 * 2 and words.count(CLASSES[0]) == lists  # markup in a name stays text


def test_pictures_are_described_and_nothing_is_fetched(page):
    check_nothing_is_fetched(page)
    images = Tags(page.read_text()).named("img")
    assert len(images) == 3 * 3 and all(len(image["alt"]) > 8 for image in images)


@pytest.mark.skipif(not CHROMIUM, reason="no chromium installed")
def test_a_phone_needs_no_sideways_scrolling(page, tmp_path):
    needed, given = widths(tmp_path, page, 390)
    assert needed <= given


def test_one_head_alone(made, tmp_path):
    model = deit_tf.create_model(
        "deit_test", num_classes=3, image_size=16, patch_size=8, depth=1, distilled=False
    )
    model.save(tmp_path / "plain.keras")
    files = [f"{made}/pictures/c.png"]
    (answer,) = explain_files(f"{tmp_path}/plain.keras", files, tmp_path / "out")
    text = (tmp_path / "out" / "explain.html").read_text()
    assert "The model says" in text and "class token" in text and "distillation" not in text
    assert Image.open(answer["picture"]).size[0] < 900  # two columns


def refusal(path, tmp_path):
    with pytest.raises(ValueError) as error:
        explain_files(str(path), ["x.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_what_has_no_attention_to_show_is_refused(tmp_path):
    (tmp_path / "student.tflite").write_bytes(b"\0\0\0\0TFL3")
    said = refusal(tmp_path / "student.tflite", tmp_path)
    assert "an export gives nothing out. Pass the run" in said
    create_resnet("resnet8", num_classes=2, image_size=16).save(tmp_path / "teacher.keras")
    assert "shows the attention of a DeiT" in refusal(tmp_path / "teacher.keras", tmp_path)


def answer(head, *labels, probability=0.9):
    classes = [{"class": 0, "label": label, "probability": probability} for label in labels]
    return HeadAnswer(head, classes, np.full((2, 2), 0.25))


def test_heads_agree_by_their_first_class_or_by_all_labels_that_they_find():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pair = (answer("cls", "cat", "dog"), answer("dist", "cat", "owl"))
    assert Explanation("x", pixels, pair).agree
    assert not Explanation("x", pixels, pair, multilabel=True).agree
    turned = (answer("cls", "cat", "dog"), answer("dist", "dog", "cat"))
    assert not Explanation("x", pixels, turned).agree
    assert Explanation("x", pixels, turned, multilabel=True).agree
    unsure = Explanation("x", pixels, (answer("cls", "cat", probability=0.4),), multilabel=True)
    assert unsure.verdict == "The model says none of the labels"


def test_a_uniform_map_is_nowhere_bright_and_its_range_is_said():
    pixels = np.full((8, 8, 3), 100, np.uint8)
    assert (tint(pixels, np.full((2, 2), 0.25)) == 50).all()
    nearly = tint(pixels, np.array([[0.25, 0.25], [0.25, 0.2501]]))
    assert np.abs(nearly.astype(int) - 50).max() <= 1
    assert span(np.full((2, 2), 0.25)) == "1.0 to 1.0 times an even share"
    assert span(np.array([[0.1, 0.2], [0.2, 0.5]])) == "0.4 to 2.0 times an even share"


def test_pictures_of_one_name_get_files_of_their_own():
    taken = set()
    names = [_free_name(image, taken) for image in ("a/x.png", "b/x.jpg", "x-2.png", "c/x.png")]
    assert names == ["x-explained", "x-explained-2", "x-2-explained", "x-explained-3"]
