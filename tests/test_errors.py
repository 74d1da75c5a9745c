"""What is not the program's fault becomes one line; a fault of ours keeps its traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vq_ihdm.errors import run
from vq_ihdm.files import hold


def test_a_mistake_is_one_line_and_exit_code_1():
    code = "from vq_ihdm.errors import InputError, run\ndef main(): raise InputError('wrong; do this')\nrun(main)"
    # The module itself, not the package: this needs no torch.
    code = code.replace("vq_ihdm.errors", "errors")
    folder = Path(sys.modules["vq_ihdm.errors"].__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(folder)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: wrong; do this\n")


def ended(main) -> object:
    with pytest.raises(SystemExit) as stop:
        run(main)
    return stop.value.code


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_the_system_refuses_is_one_line(number):
    def main():
        raise OSError(number, os.strerror(number), "runs/best")

    assert ended(main).startswith(f"error: runs/best: {os.strerror(number)}; ")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "run").touch()
    for main in (lambda: hold(tmp_path / "run"), lambda: hold(tmp_path / "run" / "deeper")):
        assert str(tmp_path / "run") in ended(main) and "choose another folder" in ended(main)


def test_ctrl_c_is_no_fault(capsys):
    def main():
        raise KeyboardInterrupt

    assert ended(main) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_fault_of_ours_keeps_its_traceback():
    def main():
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        run(main)
