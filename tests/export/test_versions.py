"""Of the versions in a folder the newest that loads is served, whatever the others are."""

import os
import shutil

import pytest
import versions
from toy_models import save_classifier
from versions import Models, NotFoundError

from deit_tf.exporting.warmup import WARMUP_FILE


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A version that loads."""
    path = tmp_path_factory.mktemp("whole") / "1"
    save_classifier(path, "cat")
    return path


@pytest.fixture
def folder(tmp_path, whole):
    """`student` with versions 1 and 2."""
    for version in ("1", "2"):
        shutil.copytree(whole, tmp_path / "student" / version)
    return tmp_path


def refreshed(folder):
    models = Models(folder)
    models.refresh()
    return models


def served(models, name="student"):
    return models.serving(name)[0]


def states(models, name="student"):
    return {version: state.state for version, state in models.states(name).items()}


def dangling_link(version):
    (version / "variables" / "more").symlink_to(version / "nothing")


def link_to_itself(version):
    (version / "assets").rmdir()
    (version / "assets").symlink_to(version / "assets")


def link_to_the_folder_above(version):
    (version / "assets" / "above").symlink_to(version.parent, target_is_directory=True)


@pytest.mark.parametrize("add", [dangling_link, link_to_itself, link_to_the_folder_above])
def test_odd_links_in_a_version_that_loads(folder, whole, add):
    """They are none of its own files, so it serves."""
    shutil.copytree(whole, folder / "student" / "3")
    add(folder / "student" / "3")
    assert served(refreshed(folder)) == 3


def broken_graph(version):
    (version / "saved_model.pb").write_bytes(b"broken")


def no_weights(version):
    shutil.rmtree(version / "variables")


def weights_that_lead_nowhere(version):
    no_weights(version)
    (version / "variables").symlink_to(version / "nothing")


def no_warm_up(version):
    (version / WARMUP_FILE).parent.mkdir()
    (version / WARMUP_FILE).write_bytes(b"no record of warm-up requests")


def a_loop_of_links(version):
    shutil.rmtree(version)
    version.symlink_to(version)


BROKEN = [broken_graph, no_weights, weights_that_lead_nowhere, no_warm_up, a_loop_of_links]


@pytest.mark.parametrize("spoil", BROKEN)
@pytest.mark.parametrize("dangling", [False, True], ids=["", "with a dangling link"])
def test_one_bad_version_is_one_bad_version(folder, whole, spoil, dangling):
    newest = folder / "student" / "3"
    shutil.copytree(whole, newest)
    spoil(newest)
    if dangling and newest.is_dir():
        (newest / "link").symlink_to(newest / "nothing")

    models = refreshed(folder)
    assert served(models) == 2 and states(models) == {3: "END", 2: "AVAILABLE"}
    assert models.states("student")[3].error
    models.refresh()
    assert served(models) == 2


def nothing(version):
    shutil.rmtree(version)
    version.symlink_to(version.parent / "nowhere")


def a_file(version):
    shutil.rmtree(version)
    version.write_text("3")


def no_graph_yet(version):
    (version / "saved_model.pb").unlink()


def a_graph_that_leads_nowhere(version):
    no_graph_yet(version)
    (version / "saved_model.pb").symlink_to(version / "nothing")


@pytest.mark.parametrize("spoil", [nothing, a_file, no_graph_yet, a_graph_that_leads_nowhere])
def test_what_is_no_version_yet_is_passed_over(folder, whole, spoil):
    newest = folder / "student" / "3"
    shutil.copytree(whole, newest)
    spoil(newest)
    models = refreshed(folder)
    assert served(models) == 2 and states(models) == {2: "AVAILABLE"}


def test_a_version_that_nobody_may_read(folder, whole, monkeypatch):
    newest = folder / "student" / "3"
    shutil.copytree(whole, newest)
    look = os.stat

    def refuse(path, *args, **options):
        if str(path).startswith(str(newest)):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, *args, **options)

    monkeypatch.setattr(os, "stat", refuse)
    shutil.rmtree(newest / "variables")
    assert served(refreshed(folder)) == 2


def test_files_that_vanish_while_they_are_looked_at(folder, whole, monkeypatch):
    newest = folder / "student" / "3"
    shutil.copytree(whole, newest)
    broken_graph(newest)
    walk = os.walk

    def walk_and_lose(top, *args, **options):
        for path, folders, files in walk(top, *args, **options):
            yield path, folders, [*files, "gone"]

    monkeypatch.setattr(os, "walk", walk_and_lose)
    models = refreshed(folder)
    assert served(models) == 2 and states(models)[3] == "END"


def test_a_version_that_failed_is_tried_again_when_its_files_change(tmp_path, whole):
    version = tmp_path / "student" / "1"
    shutil.copytree(whole, version, ignore=shutil.ignore_patterns("variables"))  # half copied
    models = refreshed(tmp_path)
    assert states(models) == {1: "END"} and models.states("student")[1].error
    with pytest.raises(NotFoundError, match="these do: none"):
        models.serving("student")

    shutil.copytree(whole / "variables", version / "variables")
    models.refresh()
    assert served(models) == 1


def test_a_file_of_the_same_age_put_in_place_of_a_broken_one_is_seen(tmp_path, whole):
    """`cp -p` and `rsync` keep the times of what they copy."""
    version = tmp_path / "student" / "1"
    shutil.copytree(whole, version)
    graph = version / "saved_model.pb"
    before = graph.stat()
    graph.write_bytes(b"broken")
    os.utime(graph, ns=(before.st_atime_ns, before.st_mtime_ns))
    models = refreshed(tmp_path)
    assert states(models) == {1: "END"}

    shutil.copy2(whole / "saved_model.pb", graph)
    models.refresh()
    assert served(models) == 1


def test_a_version_that_failed_is_not_loaded_again_and_again(folder, monkeypatch):
    broken_graph(folder / "student" / "2")
    (folder / "student" / "2" / "link").symlink_to(folder / "nothing")
    models = refreshed(folder)
    loaded = []
    monkeypatch.setattr(versions, "LoadedModel", loaded.append)
    models.refresh()
    assert loaded == []


def test_the_one_before_serves_again_when_a_version_is_removed(folder):
    models = refreshed(folder)
    assert served(models) == 2
    shutil.rmtree(folder / "student" / "2")
    models.refresh()
    assert served(models) == 1 and states(models) == {2: "END", 1: "AVAILABLE"}

    shutil.rmtree(folder / "student")
    models.refresh()
    models.refresh()
    for look in (models.serving, models.states):
        with pytest.raises(NotFoundError, match="student"):
            look("student")


def test_folders_that_hold_no_versions(folder):
    for name in (".export-a1", "lost+found", "\udcff"):
        (folder / name).mkdir()
    (folder / "labels.txt").write_text("cat\n")
    (folder / "link").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder / "loop")
    models = refreshed(folder)
    assert models.names() == ["student"] and served(models) == 2
    for name in (".export-a1", "lost+found", "labels.txt", "link", "loop"):
        with pytest.raises(NotFoundError, match="no model"):
            models.states(name)


def test_a_folder_that_cannot_be_read_is_named_once(folder, monkeypatch, caplog):
    (folder / "lost+found").mkdir()
    look = os.listdir

    def refuse(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "listdir", refuse)
    models = refreshed(folder)
    models.refresh()
    assert served(models) == 2 and caplog.text.count("lost+found:") == 1


def test_numbers_of_versions(folder, whole):
    """As TensorFlow Serving reads them; what is no int64 is no version."""
    for name in ("00000007", "x8", "-9", "²", "9" * 30):
        shutil.copytree(whole, folder / "student" / name)
    assert served(refreshed(folder)) == 7


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        Models(tmp_path / "nothing")
