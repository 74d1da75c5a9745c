"""Files and folders are whole or not there, whenever their writer is killed; and one process at a time writes them."""

import errno
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from killing import child, reap
from safetensors.torch import save_file

from vq_ihdm.errors import InputError
from vq_ihdm.files import check_replaceable, hold, replacing


def write(target: Path, kind: str, text: str) -> None:
    with replacing(target) as temporary:
        if kind == "file":
            temporary.write_text(text)
        else:
            temporary.mkdir()
            for name in ("a", "b"):
                (temporary / name).write_text(text)


def read(target: Path) -> set[str]:
    return {target.read_text()} if target.is_file() else {file.read_text() for file in target.iterdir()}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_appears_half_written(tmp_path, kind):
    target = tmp_path / "deep" / "target"

    def write(path: Path, text: str) -> None:
        if kind == "folder":
            path.mkdir()
            path = path / "content"
        path.write_text(text)

    def read() -> str:
        return (target / "content" if kind == "folder" else target).read_text()

    with replacing(target) as temporary:
        write(temporary, "first")
        assert not target.exists()
    assert read() == "first"
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        write(temporary, "broken")
        raise RuntimeError
    assert read() == "first"
    with replacing(target) as temporary:
        write(temporary, "second")
        assert read() == "first"
    assert read() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_at_any_call_the_old_or_the_new_is_there_and_nothing_else_stays(kind, tmp_path):
    target, call = tmp_path / "target", 0
    seen = set()
    while True:
        write(target, kind, "old")
        call += 1
        killed = reap(child(lambda: write(target, kind, "new"), call))
        hold(tmp_path)  # as the next start does
        (content,) = read(target)
        seen.add(content)
        assert {path.name for path in tmp_path.iterdir()} == {"target", "lock.json"}
        if not killed:
            break
    assert seen == {"old", "new"} and call > 5


def test_what_a_killed_writer_left_does_not_stop_the_next_one(tmp_path):
    """Nor does it matter whether the next one has the same process id, as it often has in a container."""
    target = tmp_path / "target"

    def die():
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / "scan").write_text("of a patient")
            os.kill(os.getpid(), signal.SIGKILL)

    assert reap(child(die))
    assert not target.exists()
    write(target, "folder", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert read(target) == {"whole"}


def test_two_writers_of_one_target_follow_each_other(tmp_path, capfd):
    target, inside = tmp_path / "target", tmp_path / "inside"

    def first():
        with replacing(target) as temporary:
            temporary.mkdir()
            inside.touch()
            time.sleep(0.2)
            (temporary / "a").write_text("first")

    pid = child(first)
    wait_for(inside)
    write(target, "folder", "second")
    assert not reap(pid)
    assert read(target) == {"second"}
    assert "waiting" in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"target", "inside"}


def test_what_a_link_leads_to_is_replaced(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scratch" / "set")  # not there yet
    for text in ("first", "second"):
        write(tmp_path / "link", "folder", text)
        assert read(tmp_path / "scratch" / "set") == {text} and (tmp_path / "link").is_symlink()
    assert sorted(file.name for file in tmp_path.rglob(".*")) == []


def test_a_folder_is_replaced_only_where_the_program_wrote_it(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    check_replaceable(folder, "report.json")
    folder.mkdir()
    check_replaceable(folder, "report.json")
    (folder / "README.md").write_text("# Speed\n")
    with pytest.raises(InputError, match=f"{folder} exists and is no earlier output of this program; name a new"):
        check_replaceable(folder, "report.json")
    with pytest.raises(InputError, match="no earlier output"):
        check_replaceable(folder, "README.md", "# Table 1")
    with pytest.raises(InputError, match="no earlier output"):
        check_replaceable(folder / "README.md", "report.json")
    check_replaceable(folder, "README.md", "# Speed")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="is the current folder, which cannot be replaced; name a new"):
        check_replaceable(".", "README.md")


def test_a_held_folder_is_refused_to_others_until_the_holder_dies(tmp_path):
    held = tmp_path / "run"

    def holder():
        hold(held)
        (tmp_path / "held").touch()
        time.sleep(60)

    pid = child(holder)
    wait_for(tmp_path / "held")
    with pytest.raises(InputError, match=f"in use by process {pid} "):
        hold(held)
    os.kill(pid, signal.SIGKILL)
    reap(pid)
    hold(held)


@pytest.mark.parametrize("library", ["python", "safetensors"])
def test_what_the_system_refuses_names_the_target(library, tmp_path):
    """A limit on the size of files stands for a full disk; safetensors tells of either in its text alone."""
    target, (soft, hard) = tmp_path / "target", resource.getrlimit(resource.RLIMIT_FSIZE)
    target.write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as error, replacing(target) as temporary:
            if library == "python":
                temporary.write_text("new" * 1000)
            else:
                save_file({"weight": torch.zeros(1000)}, temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(target))
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["target"]


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.002)
