"""A run outlives kill -9, torn and damaged checkpoints and a full disk, and goes on as if nothing
had been."""

import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deit_tf.training.checkpoints import Checkpoints, Position

# A student with everything that has a state: drop path, mixup, clipping, a moving average,
# micro-batches.
CONFIG = """
model:
  {name: deit_test, image_size: 16, patch_size: 4, embed_dim: 24, depth: 2, num_heads: 3,
   drop_path_rate: 0.2}
data: {source: digits, batch_size: 64, crop_ratio: 1.0}
augment: {recipe: light, hflip: 0.0, mixup: 0.8}
optim: {lr: 1.6e-2, warmup_epochs: 1, ema_decay: 0.99, clip_norm: 0.5}
distill: {kind: none}
micro_batches: 2
checkpoint: {every_steps: 4}
"""
PROGRAM = """
import sys, tensorflow as tf
if "mirrored" in sys.argv:  # two logical CPUs stand in for two GPUs
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from deit_tf.cli import main
main(sys.argv[1:])
"""


def start(folder, *options):
    """Start `deit-tf train` in a process of its own."""
    (folder / "config.yaml").write_text(CONFIG)
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "train",
        "--config",
        str(folder / "config.yaml"),
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, status=0):
    text, _ = process.communicate(timeout=300)
    assert process.returncode == status, text
    return text


def final_state(run):
    """Everything that the run ended with: weights, optimizer, moving average."""
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1])


def assert_same_bits(run, other):
    a, b = final_state(run), final_state(other)
    assert a.keys() == b.keys()
    assert {name.split("/")[0] for name in a} == {"network", "optimizer", "ema"}
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def kill_while(process, moment, pause=0.0):
    """Kill the process with signal 9 a pause after `moment()` is true; false if it ended before."""
    while process.poll() is None:
        if moment():
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            return True
        time.sleep(0.002)
    return False


def reached(run, step):
    return lambda: any(
        int(f.stem.split("-")[1]) >= step for f in (run / "checkpoints").glob("step-*")
    )


def after(seconds):
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def writing(run):
    return lambda: any((run / "checkpoints").glob(".step-*.partial.*"))


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    finish(start(tmp_path, "--epochs", "3", "--out", str(tmp_path / "whole")))
    options = ["--epochs", "3", "--out", str(tmp_path / "killed")]
    assert kill_while(
        start(tmp_path, *options), reached(tmp_path / "killed", 12)
    )  # in the middle of an epoch
    assert kill_while(
        start(tmp_path, *options), writing(tmp_path / "killed")
    )  # a checkpoint half written
    text = finish(start(tmp_path, *options))
    assert "Going on from" in text
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").rglob("*.partial.*"))
    whole, killed = (
        [json.loads(x) for x in (tmp_path / n / "metrics.jsonl").open()]
        for n in ("whole", "killed")
    )
    assert [line["epoch"] for line in killed] == [1, 2, 3]
    for a, b in zip(whole, killed, strict=True):
        # Figures of an epoch that was resumed are put together from two means: float32 rounds
        # differently.
        names = [name for name in a if "second" not in name]
        assert {n: b[n] for n in names} == pytest.approx({n: a[n] for n in names}, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_ten_kills_at_random_moments(tmp_path, strategy):
    options, killed = ["--epochs", "8", "--strategy", strategy], tmp_path / "killed"
    finish(start(tmp_path, *options, "--out", str(tmp_path / "whole")))
    options += ["--out", str(killed)]
    draw = random.Random(strategy)
    for number in range(10):
        # within the next 17 of the 176 steps, and a little later; or as a checkpoint is written; or
        # as it starts
        moment = reached(killed, 17 * number + draw.randrange(17))
        if number in (3, 7):
            moment = writing(killed)
        if number == 5:
            moment = after(draw.uniform(2, 6))
        pause = draw.uniform(0, 0.1)
        assert kill_while(start(tmp_path, *options), moment, 0 if number in (3, 7) else pause)
    finish(start(tmp_path, *options))
    assert_same_bits(tmp_path / "whole", killed)


def variables(value=0.0):
    return {
        "network/kernel": keras.Variable(np.full((3, 4), value, "float32")),
        "optimizer/steps": keras.Variable(7),
    }


def test_the_newest_whole_checkpoint_is_taken(tmp_path, caplog):
    kept = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        kept.write(variables(step), Position(step, figures={"loss": 1.0}), step)
    torn, flipped = kept.files()[2], kept.files()[1]
    torn.write_bytes(torn.read_bytes()[:-9])
    content = bytearray(flipped.read_bytes())
    content[-3] ^= 1
    flipped.write_bytes(content)
    read = variables()
    assert kept.restore(read) == Position(1, figures={"loss": 1.0})
    assert (np.array(read["network/kernel"]) == 1).all() and int(read["optimizer/steps"]) == 7
    assert "step-000000003.safetensors is damaged" in caplog.text
    assert "step-000000002.safetensors is damaged (its checksum is wrong)" in caplog.text
    kept.files()[0].write_bytes(b"")
    with pytest.raises(ValueError, match="No checkpoint in .* is whole. Pass --overwrite"):
        kept.restore(variables())


def test_the_last_and_the_best_are_kept(tmp_path):
    kept = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        kept.write(variables(), Position(step, best=0.5, best_step=2), step)
    assert [int(file.stem.split("-")[1]) for file in kept.files()] == [2, 5, 6]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    kept = Checkpoints(tmp_path, keep=2)
    kept.write(variables(), Position(1), 1)
    with pytest.raises(ValueError, match="of another model: network/more"):
        kept.restore(variables() | {"network/more": keras.Variable(0.0)})


def test_a_full_disk_leaves_the_older_checkpoints(tmp_path):
    kept = Checkpoints(tmp_path, keep=2)
    kept.write(variables(1), Position(1), 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(
        signal.SIGXFSZ, signal.SIG_IGN
    )  # a file too large is then an error, as a full disk is
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(
            OSError, match="checkpoint of step 2 .* could not be written .* free some space"
        ):
            kept.write(variables(2), Position(2), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [file.name for file in tmp_path.iterdir()] == ["step-000000001.safetensors"]
    assert kept.restore(variables()) == Position(1)


def flip(file, needle, replacement):
    """Replace bytes of a file by as many others."""
    content = file.read_bytes()
    assert content.count(needle) == 1 and len(needle) == len(replacement)
    file.write_bytes(content.replace(needle, replacement))


def written(folder, *steps, keep=9):
    """Checkpoints of one variable, which holds the number of steps."""
    variables = {"network/0000": keras.Variable(0.0)}
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        variables["network/0000"].assign(step)
        checkpoints.write(variables, Position(epoch=step), step)
    return checkpoints, variables


def test_where_the_run_stands_is_under_the_checksum(tmp_path):
    checkpoints, variables = written(tmp_path, 1, 2)
    flip(checkpoints.files()[-1], rb"{\"epoch\": 2", rb"{\"epoch\": 7")
    assert checkpoints.restore(variables).epoch == 1


def test_a_checkpoint_under_another_name_is_not_taken(tmp_path):
    checkpoints, variables = written(tmp_path, 1, 2)
    checkpoints.files()[-1].rename(tmp_path / "step-000000009.safetensors")
    assert checkpoints.restore(variables).epoch == 1


def test_damaged_ones_are_set_aside_and_do_not_count(tmp_path, caplog):
    checkpoints, variables = written(tmp_path, 1, 2, 3)
    for file in checkpoints.files()[1:]:
        file.write_bytes(b"damaged")

    checkpoints.keep = 1
    assert checkpoints.restore(variables).epoch == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".damaged",
        ".damaged",
        ".safetensors",
    ]
    checkpoints.write(variables, Position(epoch=4), 4)
    assert [file.name for file in checkpoints.files()] == ["step-000000004.safetensors"]


def test_where_none_is_whole_all_stay(tmp_path):
    checkpoints, variables = written(tmp_path, 1, 2)
    for file in checkpoints.files():
        file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="No checkpoint .* is whole"):
        checkpoints.restore(variables)
    assert len(checkpoints.files()) == 2


def test_one_of_the_first_format_is_read(tmp_path):
    state = {"network/0000": np.float32(5)[None]}
    digest = hashlib.blake2b(b"network/0000 float32 (1,) ", digest_size=16)
    digest.update(state["network/0000"].data)
    position = json.dumps({"epoch": 3, "step": 0, "figures": None, "best": 0.5, "best_step": 6})
    metadata = {"position": position, "checksum": digest.hexdigest()}
    save_file(state, tmp_path / "step-000000006.safetensors", metadata)

    variables = {"network/0000": keras.Variable([0.0])}
    restored = Checkpoints(tmp_path, 3).restore(variables)
    assert restored == Position(epoch=3, best=0.5, best_step=6)
    assert float(variables["network/0000"][0]) == 5
