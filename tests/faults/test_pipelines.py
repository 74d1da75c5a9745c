"""Damaged pipelines are refused in one sentence that names what is wrong; none gives pictures."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import run_script, tiny_denoiser, tiny_vq_ihdm, tiny_vq_model
from safetensors.torch import load_file, save_file

from vq_ihdm import HeatDissipationScheduler, load_pipeline
from vq_ihdm.errors import InputError
from vq_ihdm.hub.record import read_record
from vq_ihdm.vqgan.model import load_vq_model

NETWORKS = ("vqvae", "denoiser", "prior")
JSON_FILES = ("model_index.json", *(f"{name}/config.json" for name in NETWORKS), "scheduler/scheduler_config.json")
Damage = Callable[[Path], None]  # done to a pipeline's folder


def damages() -> Iterator[tuple[str, str, Damage]]:
    """Every damage with its name and what the sentence must name."""
    for network in NETWORKS:
        for name, change in tensor_damages():
            yield f"{network}: {name}", network, lambda folder, n=network, c=change: edit_tensors(weights(folder, n), c)
        for name, write in byte_damages():
            yield f"{network}: {name}", network, lambda folder, n=network, w=write: w(weights(folder, n))
    for file in JSON_FILES:
        named = file.split("/")[0]
        for name, text in (("truncated", '{"_class_name": '), ("a list", "[1, 2]"), ("empty", "{}"), ("binary", "\0")):
            yield f"{file}: {name}", named, lambda folder, f=file, t=text: (folder / f).write_text(t)
        yield f"{file}: not UTF-8", named, lambda folder, f=file: (folder / f).write_bytes(b"\xff\xfe{}")
        yield f"{file}: gone", named, lambda folder, f=file: (folder / f).unlink()
    for key, value in (("sigma_max", 3.0), ("sigma_max", "wide"), ("delta", float("nan")), ("sigma_min", -1.0)):
        yield f"{key} {value}", "scheduler", lambda folder, k=key, v=value: edit_json(folder / JSON_FILES[-1], {k: v})
    yield "prior of another sigma", "sigma_T", lambda folder: edit_json(folder / "prior/config.json", {"sigma": 1.0})
    for entry in ([], {}, 7, None, ["pipeline_vq_ihdm", ["VQIHDMPipeline"]], "StableDiffusionPipeline"):
        named = "none of" if isinstance(entry, str) else "no class"
        yield f"class {entry}", named, lambda f, e=entry: edit_json(f / "model_index.json", {"_class_name": e})
    yield "another codebook", "number of codes", lambda folder: with_codes(folder, 16)
    yield "another grid", "shape of u_T", lambda folder: tiny_denoiser(height=4).save_pretrained(folder / "denoiser")


def tensor_damages() -> Iterator[tuple[str, Callable[[dict[str, torch.Tensor]], None]]]:
    def first(tensors: dict[str, torch.Tensor]) -> str:
        return next(key for key, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel())

    yield "a tensor missing", lambda tensors: tensors.pop(first(tensors))
    yield "a tensor too many", lambda tensors: tensors.update(other=torch.zeros(2))
    yield "another shape", lambda tensors: tensors.update({first(tensors): torch.zeros(7, 3)})
    yield "NaN", lambda tensors: tensors[first(tensors)].view(-1)[-1:].fill_(torch.nan)
    yield "infinite", lambda tensors: tensors[first(tensors)].view(-1)[:1].fill_(torch.inf)


def byte_damages() -> Iterator[tuple[str, Damage]]:
    yield "truncated", lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    yield "empty", lambda file: file.write_bytes(b"")
    yield "header overwritten", lambda file: file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    yield "gone", lambda file: file.unlink()
    yield "a folder", lambda file: (file.unlink(), file.mkdir())


def weights(folder: Path, network: str) -> Path:
    (file,) = (folder / network).glob("*.safetensors")
    return file


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_json(file: Path, change: dict[str, object]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def with_codes(folder: Path, num_codes: int) -> None:
    shutil.rmtree(folder / "denoiser")
    tiny_denoiser(num_codes=num_codes).save_pretrained(folder / "denoiser")


@pytest.fixture
def folder(pipeline_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline_folder, tmp_path / "pipeline"))


def is_a_sentence(text: str) -> bool:
    return text.count("\n") == 0 and 20 < len(text) < 800 and "Traceback" not in text


@pytest.mark.parametrize(
    ("named", "damage"), [pytest.param(named, damage, id=name) for name, named, damage in damages()]
)
def test_a_damaged_pipeline_is_refused_in_one_sentence(folder: Path, named: str, damage: Damage):
    damage(folder)
    with pytest.raises(InputError) as error:
        load_pipeline(folder)
    assert is_a_sentence(str(error.value)) and named in str(error.value), error.value


def test_generate_tells_it_and_leaves_nothing(folder: Path, tmp_path: Path):
    edit_tensors(weights(folder, "denoiser"), lambda tensors: tensors["head.bias"].fill_(torch.nan))
    with pytest.raises(SystemExit) as exit_:
        run_script("generate.py", "--pipeline", folder, "--num_images", 2, "--output_dir", tmp_path / "images")
    assert is_a_sentence(exit_.value.code) and "denoiser.head.bias" in exit_.value.code
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"data": [], "stages": []}', '{"data": {"source": 1}}'])
def test_a_damaged_record_is_refused_in_one_sentence(folder: Path, text: str):
    (folder / "training.json").write_text(text)
    with pytest.raises(InputError, match=r"training\.json") as error:
        read_record(folder)
    assert is_a_sentence(str(error.value))


# ---- on saving, and when a pipeline is made -----------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_not_finite_is_not_saved(pipeline, network: str, tmp_path: Path):
    tensors = getattr(pipeline, network).state_dict().values()
    next(t for t in tensors if t.is_floating_point() and t.numel()).view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"{network}.* not finite"):
        pipeline.save_pretrained(tmp_path / "pipeline")
    assert not (tmp_path / "pipeline").exists()


def test_components_of_two_pipelines_do_not_make_one(pipeline):
    other = tiny_vq_model()
    other.register_to_config(num_vq_embeddings=64)
    for name, component, what in (
        ("scheduler", HeatDissipationScheduler(sigma_max=3.0), "sigma_T"),
        ("denoiser", tiny_denoiser(code_dim=6), "shape of u_T"),
        ("vqvae", other, "number of codes"),
    ):
        with pytest.raises(ValueError, match=what):
            type(pipeline)(**pipeline.components | {name: component})


# ---- nothing is unpickled -----------------------------------------------------------------------------------------


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_pickle_in_the_place_of_weights_is_not_opened(folder: Path, network: str):
    weights(folder, network).unlink()
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
        (folder / network / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=network):
        load_pipeline(folder)
    if network == "vqvae":
        for path in (folder, folder / "vqvae"):
            with pytest.raises(InputError, match="holds no VQModel"):
                load_vq_model(path)


def test_no_pickle_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match="safetensors"):
        tiny_vq_ihdm().save_pretrained(tmp_path / "pipeline", safe_serialization=False)
    assert not (tmp_path / "pipeline").exists()
