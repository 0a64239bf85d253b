"""The contact sheet shows the first batch of a run, with its labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_tf.config import AugmentConfig, MaskConfig
from deit_tf.data import ImageProcessor, masked_dataset, open_sources, train_dataset
from deit_tf.evaluation.preview import _caption, preview
from deit_tf.runs import read_config

CONFIG = read_config(Path(__file__).parents[2] / "configs" / "demo_digits.yaml")
PROCESSOR = ImageProcessor.from_config(CONFIG.data, 16)


def shown(sheet, place, side=96):
    """The two pictures of a pair, each pixel once: the sheet enlarges 16 pixels six times."""
    left, top = place
    row = sheet[top : top + side : 6].astype(int)
    return row[:, left : left + side : 6], row[:, left + side + 2 : left + 2 * side + 2 : 6]


def top_of(sheet):
    """Where the first pair begins: the last pictures are the sheet's only rows of other colors than
    white and the gray of letters from the margin on."""
    colored = (sheet[:, 8 : 8 + 96].astype(int) != 255).any(-1).all(1)
    return int(np.argmax(colored))


def first_batch(augment):
    batches = train_dataset(
        open_sources(CONFIG.data)[0], CONFIG.data, augment, PROCESSOR, epochs=1, seed=CONFIG.seed
    )
    batch, _ = next(batches.as_numpy_iterator())
    return np.clip(np.round((batch * CONFIG.data.std + CONFIG.data.mean) * 255), 0, 255)


def test_the_sheet_shows_what_the_student_is_fed_beside_the_originals(tmp_path):
    config = replace(CONFIG, augment=AugmentConfig("light", mixup=0.8))
    file = preview(config, str(tmp_path / "sheet.png"), images=5, columns=3)
    sheet = np.asarray(Image.open(file))
    drawn, original = first_batch(config.augment), first_batch(AugmentConfig("none"))
    assert sheet.shape[1] == 3 * (2 * 96 + 2 + 16)
    top = top_of(sheet)
    assert top > 60  # a title and two lines of legend
    for i, left in ((0, 8), (1, 8 + 210)):
        as_it_is, as_fed = shown(sheet, (left, top))
        assert np.abs(as_it_is - original[i]).max() <= 1  # normalizing and back, in float32
        assert np.abs(as_fed - drawn[i]).max() <= 1
    assert np.abs(original[:2] - drawn[:2]).max() > 50
    assert (sheet[top + 96 + 2 : top + 96 + 40] < 128).any(), "captions"


def test_a_narrow_sheet_folds_its_legend(tmp_path):
    file = preview(CONFIG, str(tmp_path / "sheet.png"), images=1, columns=1)
    sheet = np.asarray(Image.open(file))
    assert sheet.shape[1] == 2 * 96 + 2 + 16
    assert (sheet[:, -8:] == 255).all()  # nothing runs over the edge


def test_a_masked_run_shows_what_is_hidden(tmp_path):
    config = replace(CONFIG, task="masked", mask=MaskConfig(unit=8, ratio=0.6))
    sheet = np.asarray(Image.open(preview(config, str(tmp_path / "sheet.png"), images=1)))
    source, patch = open_sources(config.data)[0], config.model.patch_size
    batches = masked_dataset(
        source,
        config.data,
        config.augment,
        config.mask,
        PROCESSOR,
        patch,
        epochs=1,
        seed=config.seed,
    ).as_numpy_iterator()
    first = {name: array[0] for name, array in next(batches).items()}
    hidden = np.kron(first["mask"].reshape(16 // patch, 16 // patch), np.ones((patch, patch))) > 0
    pixels = np.clip(np.round((first["image"] * config.data.std + config.data.mean) * 255), 0, 255)

    top = top_of(sheet)
    _, masked = shown(sheet, (8, top))
    assert hidden.sum() == 3 * 8 * 8 and (masked[hidden] == 128).all()
    assert np.abs(masked - pixels)[~hidden].max() <= 1  # normalizing and back, in float32
    assert (sheet[top + 96 :] == 255).all()  # no labels


def test_captions_leave_out_what_smoothing_spreads():
    label = np.full(10, 0.01)
    label[[3, 7]] = [0.61, 0.31]
    assert _caption(label, 0.01, tuple("abcdefghij")) == ["0.61 d", "0.31 h"]
    assert _caption(np.array([0.4, 0.6]), 0.05, ("a", "b")) == ["0.60 b", "0.40 a"]


@pytest.mark.parametrize(
    "arguments, message", [(("sheet.jpg",), "ends in .png"), (("sheet.png", 0), "images=0")]
)
def test_refusals(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        preview(CONFIG, str(tmp_path / arguments[0]), *arguments[1:])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [None, 16])
def test_an_unknown_model_gives_the_nearest(tmp_path, size):
    config = replace(
        CONFIG, model=replace(CONFIG.model, name="deit_tinny_patch16_224", image_size=size)
    )
    with pytest.raises(ValueError, match="Did you mean 'deit_tiny_patch16_224'"):
        preview(config, str(tmp_path / "sheet.png"))
