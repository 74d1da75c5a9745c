"""Presets and flags of the train scripts."""

import sys

import pytest
from conftest import ROOT
from huggingface_hub import get_token
from tiny_training import parser

import train_ihdm
import train_vqgan
from vq_ihdm.errors import InputError
from vq_ihdm.training.config import parse_args


@pytest.fixture
def preset(tmp_path):
    def write(text: str) -> list[str]:
        file = tmp_path / "preset.yaml"
        file.write_text(text)
        return ["--config", str(file), "--output_dir", "out"]

    return write


def test_a_preset_gives_defaults_and_flags_override_them(preset):
    argv = preset("part:\n  learning_rate: 1e-4\n  train_batch_size: 8\n  random_flip: false\n  widths: [3, 4]\n")
    args = parse_args(parser(), "part", argv)
    assert (args.learning_rate, args.train_batch_size, args.random_flip) == (1e-4, 8, False)
    assert type(args.learning_rate) is float  # YAML takes 1e-4, without a dot, for text
    assert args.widths == [3, 4]
    assert args.max_train_steps == 100  # said by nobody but the script
    args = parse_args(parser(), "part", [*argv, "--train_batch_size", "9", "--random_flip", "--widths", "5"])
    assert (args.train_batch_size, args.random_flip, args.widths) == (9, True, [5])
    off = preset("part:\n  push_to_hub: false\n  center_crop: false\n")  # which have no --no- form
    assert not parse_args(parser(), "part", off).push_to_hub


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01", b"part:\n  \0", b"\xff\xfep\0a\0r\0t\0", b"part: [", b""])
def test_a_file_that_is_no_preset(tmp_path, content):
    file = tmp_path / "preset.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match="preset.yaml (is no valid YAML|has no section)") as error:
        parse_args(parser(), "part", ["--config", str(file), "--output_dir", "out"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (train_ihdm, ("--vqvae", "x", "--num_attention_heads", "3")),
        (train_vqgan, ("--norm_num_groups", "3")),
        (train_vqgan, ("--block_out_channels", "32", "48")),
    ],
)
def test_widths_that_cannot_be_divided_are_refused_by_name(script, flags):
    with pytest.raises(InputError, match=r"--\w+ \d+ is not divisible by --(num_attention_heads|norm_num_groups)"):
        parse_args(script.build_parser(), "part", ["--output_dir", "out", *flags])


def test_a_token_reaches_the_hub_and_no_file(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "another")
    args = parse_args(parser(), "part", ["--output_dir", "out", "--hub_token", "hf_secret"])
    assert get_token() == "hf_secret"
    assert "hf_secret" not in str(vars(args))


def test_without_preset():
    args = parse_args(parser(), "part", ["--output_dir", "out"])
    assert (args.max_train_steps, args.widths, args.config) == (100, [1], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part:\n  learning_rat: 1\n", "learning_rat under 'part'"),
        ("other:\n  seed: 1\n", "no section 'part'"),
        ("part: 3\n", "no section 'part'"),
        ("part: {seed: [1\n", "no valid YAML"),
        ("", "no section 'part'"),
    ],
)
def test_bad_presets(preset, text, message):
    with pytest.raises(InputError, match=message) as error:
        parse_args(parser(), "part", preset(text))
    assert "\n" not in str(error.value)


def test_a_missing_preset_names_those_there_are(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train_vqgan.py")])
    with pytest.raises(InputError, match="demo, ixi, oasis, oasis96, oasis_fine, paper"):
        parse_args(parser(), "part", ["--config", "papr", "--output_dir", "out"])


@pytest.mark.parametrize("line", ["mixed_precision: fp32", "train_batch_size: 0", "seed: one", "lr_scheduler: cosin"])
def test_values_of_a_preset_are_checked_like_flags(preset, capsys, line):
    with pytest.raises(SystemExit) as stop:
        parse_args(parser(), "part", preset(f"part:\n  {line}\n"))
    assert stop.value.code == 2
    assert f"argument --{line.split(':')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["max_train_steps", "checkpointing_steps", "validation_steps", "train_batch_size"])
def test_counts_are_positive(flag, capsys):
    with pytest.raises(SystemExit):
        parse_args(parser(), "part", ["--output_dir", "out", f"--{flag}", "0"])
    assert "no positive whole number" in capsys.readouterr().err


@pytest.mark.parametrize("preset_name", sorted(file.stem for file in (ROOT / "configs").glob("*.yaml")))
def test_presets_fit_their_scripts_and_are_found_from_any_folder(preset_name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train_vqgan.py")])
    for script, section, argv in [(train_vqgan, "vqgan", []), (train_ihdm, "ihdm", ["--vqvae", "x"])]:
        args = parse_args(script.build_parser(), section, ["--config", preset_name, "--output_dir", "out", *argv])
        assert args.max_train_steps > 0


def test_the_paper_preset_has_the_numbers_of_the_paper(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train_vqgan.py")])
    argv = ["--config", "paper", "--output_dir", "out"]
    vqgan = vars(parse_args(train_vqgan.build_parser(), "vqgan", argv))
    assert vqgan.items() >= {
        "block_out_channels": [128, 128, 256, 256, 512], "num_vq_embeddings": 1024, "train_batch_size": 3,
        "max_train_steps": 575_000, "learning_rate": 1e-4, "lr_warmup_steps": 30_000,
        "l2_normalized_codes": False, "gradient_accumulation_steps": None,
    }.items()  # fmt: skip
    ihdm = vars(parse_args(train_ihdm.build_parser(), "ihdm", [*argv, "--vqvae", "x"]))
    assert ihdm.items() >= {
        "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 24, "train_batch_size": 20,
        "max_train_steps": 75_000, "learning_rate": 1e-4, "lr_warmup_steps": 30_000,
        "sigma_max": 24.0, "delta": 0.0, "prior": "slice",
        "temperature": 1.0, "top_p": 1.0, "gradient_accumulation_steps": None,
    }.items()  # fmt: skip
