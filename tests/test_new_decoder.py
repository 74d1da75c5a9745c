"""A decoder that was trained further, in the pipeline whose codes it draws."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import NUM_CODES, run_script
from hub_fixtures import DATA, STAGE, evaluate, record

from vq_ihdm import VQIHDMPipeline, load_pipeline
from vq_ihdm.errors import InputError
from vq_ihdm.hub.checks import failed_checks
from vq_ihdm.hub.record import read_record, write_record
from vq_ihdm.new_decoder import exchange_decoder
from vq_ihdm.vqgan.model import create_vq_model


@pytest.fixture
def model(pipeline_folder: Path, tmp_path: Path) -> Path:
    return evaluate(record(Path(shutil.copytree(pipeline_folder, tmp_path / "model"))))


def trained_further(model: Path, folder: Path, part: str) -> Path:
    """The VQModel of a pipeline, one part of it changed, with the record of two trainings."""
    vqvae = VQIHDMPipeline.from_pretrained(model).vqvae
    with torch.no_grad():
        next(getattr(vqvae, part).parameters()).add_(0.5)
    vqvae.save_pretrained(folder)
    tokenizer = STAGE | {"script": "train_vqgan.py", "settings": {"num_vq_embeddings": 16}}
    write_record(folder, DATA, [tokenizer, tokenizer | {"step": 77}])
    return folder


def test_the_same_codes_are_drawn_and_decoded_otherwise(model: Path, tmp_path: Path):
    decoder, sharper = trained_further(model, tmp_path / "decoder", "decoder"), tmp_path / "sharper"
    command = ("decoder", "--pipeline", model, "--vqvae", decoder, "--output_dir", sharper)
    run_script("src/vq_ihdm/__main__.py", *command)
    codes, images = [], []
    for folder in (model, sharper):
        pipe = load_pipeline(folder)
        pipe.set_progress_bar_config(disable=True)
        for output_type, found in (("latent", codes), ("pt", images)):
            found.append(pipe(3, generator=torch.Generator().manual_seed(0), output_type=output_type).images)
    assert torch.equal(*codes) and not torch.equal(*images)

    stages = read_record(sharper)["stages"]
    assert [stage["step"] for stage in stages] == [STAGE["step"], 77, STAGE["step"]]  # of its decoder, of its denoiser
    assert list(failed_checks(sharper)) == ["unevaluated"]  # and nothing else speaks against it
    assert "Not evaluated yet" in (sharper / "README.md").read_text()
    run_script("src/vq_ihdm/__main__.py", *command)  # its own earlier output may be replaced


def test_latents_keep_their_scale(model: Path, tmp_path: Path):
    """That of latent diffusion stands in the config of the VQModel, where a decoder's training leaves 1."""
    decoder = trained_further(model, tmp_path / "decoder", "decoder")
    vqvae = VQIHDMPipeline.from_pretrained(model).vqvae
    vqvae.register_to_config(scaling_factor=0.25)
    vqvae.save_pretrained(model / "vqvae")
    exchange_decoder(str(model), str(decoder), tmp_path / "out")
    assert load_pipeline(tmp_path / "out").vqvae.config.scaling_factor == 0.25


@pytest.mark.parametrize("part", ["encoder", "quantize", "quant_conv"])
def test_other_codes_are_refused(model: Path, tmp_path: Path, part: str):
    other = trained_further(model, tmp_path / "other", part)
    with pytest.raises(InputError, match="other has other codes than .*model, whose denoiser would be lost"):
        exchange_decoder(str(model), str(other), tmp_path / "out")
    create_vq_model(32, [8, 8, 8], 1, 4, 4, 2 * NUM_CODES, 4).save_pretrained(tmp_path / "larger")
    with pytest.raises(InputError, match="larger has other codes"):
        exchange_decoder(str(model), str(tmp_path / "larger"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_it_would_replace_is_asked_first(model: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="is no earlier output of this program"):
        exchange_decoder(str(model), str(model / "vqvae"), tmp_path / "out")
    assert json.loads((model / "training.json").read_text()) == read_record(model)
