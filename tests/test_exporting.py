"""The exported sampler: in ONNX Runtime it draws what the pipeline draws."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    CODE_DIM,
    EVERY_KIND,
    HEIGHT,
    ONNX_SETTINGS,
    WIDTH,
    refusal,
    run_script,
    tiny_conditional,
    tiny_vq_ihdm,
)
from PIL import Image

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow


def generators(num_images: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(num_images)]


def random_numbers(num_images: int, factor_rank: int) -> dict[str, dict[str, np.ndarray]]:
    """Those that the pipeline draws, image by image in the same order."""
    drawn = {"uniform": [], "normal": [], "noise": [], "codes": []}
    for g in generators(num_images):
        drawn["uniform"].append(torch.rand((), dtype=torch.float64, generator=g))
        drawn["normal"].append(torch.randn(factor_rank, generator=g))
        drawn["noise"].append(torch.randn(CODE_DIM, HEIGHT, WIDTH, generator=g))
        drawn["codes"].append(torch.rand(2, HEIGHT * WIDTH, dtype=torch.float64, generator=g)[0].view(HEIGHT, WIDTH))
    stacked = {name: torch.stack(tensors).numpy() for name, tensors in drawn.items()}
    return {"sampler": {"uniform": stacked.pop("codes")}, "prior": stacked}


@pytest.mark.parametrize("num_images", [1, 5])
@pytest.mark.parametrize("exported", ["onnx_folder", "every_kind_onnx_folder"])
def test_images_are_the_pipelines_to_one_grey_level(exported, num_images, request):
    """Also of a model with covariates, whose denoiser is told those that came with u_T."""
    folder = request.getfixturevalue(exported)
    pipeline = tiny_vq_ihdm() if exported == "onnx_folder" else tiny_conditional(EVERY_KIND)
    wanted = pipeline(num_images, generator=generators(num_images), **ONNX_SETTINGS).images
    numbers = random_numbers(num_images, pipeline.prior.config.factor_rank)
    prior, sampler = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("prior", "sampler"))
    start = dict(zip([tensor.name for tensor in prior.get_outputs()], prior.run(None, numbers["prior"]), strict=True))
    assert list(start) == (["u_T", "covariates"] if pipeline.prior.known_covariates else ["u_T"])
    (images,) = sampler.run(None, start | numbers["sampler"])
    assert images.dtype == np.uint8 and images.std() > 1
    assert np.abs(images.astype(int) - np.stack(wanted).astype(int)).max() <= 1


@pytest.mark.parametrize("exported", ["onnx_folder", "every_kind_onnx_folder"])
def test_the_example_draws_as_many_as_asked(exported, request, tmp_path):
    folder = request.getfixturevalue(exported)
    run_script("examples/sample_onnx.py", "--folder", folder, "--num_images", 3, "--output_dir", tmp_path)
    images = [np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("*.png"))]
    assert len(images) == 3 and images[0].shape == (32, 32)
    assert not np.array_equal(images[0], images[1])


def test_a_model_is_not_replaced_by_its_export(pipeline_folder, tmp_path):
    model = Path(shutil.copytree(pipeline_folder, tmp_path / "model"))
    there = sorted(model.rglob("*"))
    assert f"{model} exists" in refusal(run_script, "export.py", "--pipeline", model, "--output_dir", model)
    assert sorted(model.rglob("*")) == there


def test_only_a_vq_ihdm_pipeline_is_exported(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(SystemExit, match="DDPMPipeline"):
        run_script("export.py", "--pipeline", tmp_path, "--output_dir", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
