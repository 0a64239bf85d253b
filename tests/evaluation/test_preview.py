"""The contact sheet shows the first batch of a run, with its labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_tf.config import MaskConfig
from deit_tf.data import ImageProcessor, masked_dataset, open_sources, train_dataset
from deit_tf.evaluation.preview import _caption, preview
from deit_tf.runs import read_config

CONFIG = read_config(Path(__file__).parents[2] / "configs" / "demo_digits.yaml")
PROCESSOR = ImageProcessor.from_config(CONFIG.data, 16)


def test_the_sheet_shows_what_the_student_is_fed(tmp_path):
    config = replace(
        CONFIG, augment=replace(CONFIG.augment, recipe="none", scale=None, label_smoothing=0.0)
    )
    sheet = np.asarray(
        Image.open(preview(config, str(tmp_path / "sheet.png"), images=5, columns=3))
    )
    batch, _ = next(
        train_dataset(
            open_sources(config.data)[0], config.data, config.augment, PROCESSOR, epochs=1
        ).as_numpy_iterator()
    )
    first = np.round((batch[0] * config.data.std + config.data.mean) * 255).astype(np.uint8)
    shown = sheet[
        8 : 8 + 96 : 6, 8 : 8 + 96 : 6
    ]  # 16 pixels enlarged six times, after a margin of 8
    assert np.abs(shown.astype(int) - first).max() <= 1  # normalizing and back, in float32
    assert sheet.shape[1] == 3 * (96 + 8) + 8
    assert (sheet[8 + 96 :, :] < 128).any(), "captions"


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
    shown = sheet[8 : 8 + 96 : 6, 8 : 8 + 96 : 6].astype(
        int
    )  # enlarged six times, after a margin of 8
    assert hidden.sum() == 3 * 8 * 8 and (shown[hidden] == 128).all()
    assert np.abs(shown - pixels)[~hidden].max() <= 1  # normalizing and back, in float32
    assert (sheet[8 + 96 :, :] == 255).all()  # no labels


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
