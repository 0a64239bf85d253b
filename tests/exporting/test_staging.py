"""A killed export leaves nothing for ever: the next one removes it, and nothing of a living one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from deit_tf.exporting.staging import DAY, remove_leftovers, staging

# Of the package this needs no TensorFlow, so that the process is there at once.
WAITS = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("staging", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.staging(pathlib.Path(sys.argv[2])) as folder:
    (folder / "version").mkdir()
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def exporting(tmp_path):
    """Another process in the midst of an export to `served`; its folder."""
    file = sys.modules["deit_tf.exporting.staging"].__file__
    command = [sys.executable, "-c", WAITS, file, str(tmp_path / "served")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process, tmp_path / "served", process.stdout.readline().strip()
        process.kill()


def test_a_folder_is_there_during_the_block_alone(tmp_path):
    with staging(tmp_path) as folder:
        (folder / "version").mkdir()
        assert folder.parent == tmp_path and folder.name.startswith(".export-")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_takes_the_folders_that_it_made(tmp_path):
    with pytest.raises(RuntimeError), staging(tmp_path / "new" / "base") as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError), staging(tmp_path / "mine"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_a_killed_export_left_goes_with_the_next_and_a_living_one_stays(exporting):
    process, served, folder = exporting
    with staging(served):
        assert os.path.isdir(folder)  # of a process that lives

    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.path.isdir(folder)
    with staging(served) as own:
        assert [path.name for path in served.iterdir()] == [own.name]


def test_partial_files_of_yesterday_go_and_todays_and_others_stay(tmp_path):
    for name in (".m.json.partial", ".m.partial.7.json", "m.partial", ".hidden"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4

    before = time.time() - DAY - 60
    for path in tmp_path.iterdir():
        os.utime(path, (before, before))
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "m.partial"]
