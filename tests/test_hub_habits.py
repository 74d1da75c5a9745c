"""What people do with a diffusers pipeline, and expect to work with ours."""

import ast
import inspect
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
import yaml
from conftest import ROOT, tiny_vq_ihdm
from hub_fixtures import record
from huggingface_hub import SpaceCard
from notebook import run_notebook

import vq_ihdm
from vq_ihdm import BlurryPrior, GANPipeline, HeatDissipationScheduler, VQIHDMPipeline


def draw(pipe, **arguments) -> torch.Tensor:
    return pipe(3, generator=torch.Generator().manual_seed(0), output_type="pt", **arguments).images


def test_offloading_goes_through_every_component_and_changes_nothing(pipeline):
    expected = draw(pipeline)
    pipeline.enable_model_cpu_offload(device="cpu")  # the hooks are the same whatever the device
    assert torch.equal(draw(pipeline), expected)
    assert torch.equal(draw(pipeline), expected)  # and once more, after the hooks were set anew
    pipeline.encode_images(expected)


def test_a_pipeline_with_weights_elsewhere_is_taken_apart_and_put_together(pipeline):
    pipeline.enable_sequential_cpu_offload(device="cpu")
    assert next(pipeline.denoiser.parameters()).is_meta
    type(pipeline).from_pipe(pipeline)


def test_a_compiled_network_is_saved_as_it_was_before(pipeline, tmp_path: Path):
    expected = draw(pipeline)
    for name in ("denoiser", "vqvae"):
        setattr(pipeline, name, torch.compile(getattr(pipeline, name)))  # compiled when it is called, which it is not
    pipeline.save_pretrained(tmp_path)
    loaded = VQIHDMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded), expected)


def test_remote_code_may_be_trusted_where_none_is_run(pipeline_folder: Path, pipeline):
    trusting = VQIHDMPipeline.from_pretrained(pipeline_folder, trust_remote_code=True)
    trusting.set_progress_bar_config(disable=True)
    assert torch.equal(draw(trusting), draw(pipeline))


def test_saving_leaves_alone_what_else_lies_in_the_folder(pipeline, tmp_path: Path):
    others = {
        "notes.json": "[1, 2]",
        "other model/config.json": '{"_name_or_path": "elsewhere"}',
        "lines.json": "{}\n{}",
    }
    (tmp_path / "other model").mkdir()
    for name, text in others.items():
        (tmp_path / name).write_text(text)
    pipeline.save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_text() for name in others} == others


def test_the_card_follows_wherever_the_current_folder_is(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record(Path(shutil.copytree(pipeline_folder, tmp_path / "model")))
    monkeypatch.chdir(tmp_path)
    loaded = VQIHDMPipeline.from_pretrained("model")
    monkeypatch.chdir("/")
    for pipe, name in ((loaded, "saved"), (VQIHDMPipeline.from_pipe(loaded), "saved again")):
        pipe.save_pretrained(tmp_path / name)
        assert (tmp_path / name / "training.json").read_text() == (tmp_path / "model" / "training.json").read_text()


def test_to_moves_and_casts_every_network(pipeline):
    assert pipeline.to("cpu") is pipeline
    pipeline.to(torch.float64)
    networks = (pipeline.vqvae, pipeline.denoiser, pipeline.prior)
    assert {network.dtype for network in networks} == {torch.float64}
    torch.testing.assert_close(draw(pipeline), draw(tiny_vq_ihdm()), atol=1e-3, rtol=0)


def test_the_progress_bar_can_be_configured(pipeline, capsys: pytest.CaptureFixture):
    pipeline.set_progress_bar_config(disable=False, desc="drawing")
    draw(pipeline)
    assert "drawing" in capsys.readouterr().err
    pipeline.set_progress_bar_config(disable=True)
    draw(pipeline)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_type_of_the_weights_by_either_name(pipeline_folder: Path, name: str):
    pipe = VQIHDMPipeline.from_pretrained(pipeline_folder, **{name: torch.float64})
    assert pipe.denoiser.dtype == pipe.vqvae.dtype == torch.float64


def test_the_types_of_the_weights_by_component(pipeline_folder: Path):
    given = {"denoiser": torch.bfloat16, "default": torch.float64}
    pipe = VQIHDMPipeline.from_pretrained(pipeline_folder, torch_dtype=given)
    assert (pipe.denoiser.dtype, pipe.vqvae.dtype, pipe.prior.dtype) == (torch.bfloat16, torch.float64, torch.float64)
    pipe = VQIHDMPipeline.from_pretrained(pipeline_folder, dtype={"vqvae": torch.float16})
    assert (pipe.denoiser.dtype, pipe.vqvae.dtype, pipe.prior.dtype) == (torch.float32, torch.float16, torch.float32)
    assert VQIHDMPipeline.from_pretrained(pipeline_folder, torch_dtype=None).dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("float16", "takes types such as torch.float16, not 'float16'"),
        ({"denoiser": "float16"}, "takes types such as torch.float16, not 'float16'"),
        ({"unet": torch.float16}, "names unet, which is none of vqvae, denoiser, prior, scheduler"),
    ],
)
def test_a_type_that_would_be_ignored_or_half_applied_is_refused(pipeline_folder: Path, given: object, said: str):
    with pytest.raises(ValueError, match=said):
        VQIHDMPipeline.from_pretrained(pipeline_folder, torch_dtype=given)


def test_a_variant_of_the_weights(pipeline, tmp_path: Path):
    half = tiny_vq_ihdm().to(torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    files = [file.name for file in tmp_path.rglob("*.safetensors")]
    assert len(files) == 3 and all(".fp16." in name for name in files)
    pipe = VQIHDMPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16, use_safetensors=True)
    for name in ("vqvae", "denoiser", "prior"):
        tensors, expected = (getattr(p, name).state_dict() for p in (pipe, half))
        assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())
    with pytest.raises(ValueError, match="no weights of the variant bf16"):
        VQIHDMPipeline.from_pretrained(tmp_path, variant="bf16")


def test_a_pipeline_from_another_one(pipeline, pipeline_folder: Path):
    made = VQIHDMPipeline.from_pipe(pipeline)
    made.set_progress_bar_config(disable=True)
    assert made.components == pipeline.components and torch.equal(draw(made), draw(pipeline))
    other = BlurryPrior.from_pretrained(pipeline_folder, subfolder="prior")
    assert VQIHDMPipeline.from_pipe(pipeline, prior=other).prior is other
    with pytest.raises(ValueError, match="is made of decoder"):
        GANPipeline.from_pipe(pipeline)
    with pytest.raises(ValueError, match="is made of vqvae, denoiser, prior, scheduler"):
        VQIHDMPipeline.from_pipe(pipeline, unet=None)


@pytest.mark.parametrize(
    ("keyword", "value"), [("local_files_only", True), ("revision", "main"), ("use_safetensors", True), ("token", None)]
)
def test_keywords_of_a_repository_are_taken_for_a_folder_too(pipeline_folder: Path, keyword: str, value: object):
    assert VQIHDMPipeline.from_pretrained(pipeline_folder, **{keyword: value})


def test_keywords_that_do_not_exist_are_refused(pipeline, pipeline_folder: Path, tmp_path: Path):
    with pytest.raises(TypeError, match="from_pretrained takes no varient"):
        VQIHDMPipeline.from_pretrained(pipeline_folder, varient="fp16")
    with pytest.raises(ValueError, match="safetensors alone"):
        VQIHDMPipeline.from_pretrained(pipeline_folder, use_safetensors=False)
    with pytest.raises(TypeError, match="varient"):
        pipeline.save_pretrained(tmp_path / "pipeline", varient="fp16")
    with pytest.raises(TypeError, match="prompt"):
        pipeline(prompt="a brain")


def test_components_load_one_by_one(pipeline, pipeline_folder: Path):
    vqvae = diffusers.AutoModel.from_pretrained(str(pipeline_folder), subfolder="vqvae")
    rebuilt = VQIHDMPipeline(
        vqvae=vqvae,
        denoiser=transformers.AutoModel.from_pretrained(pipeline_folder, subfolder="denoiser").eval(),
        prior=BlurryPrior.from_pretrained(pipeline_folder, subfolder="prior"),
        scheduler=HeatDissipationScheduler.from_pretrained(pipeline_folder, subfolder="scheduler"),
    )
    rebuilt.set_progress_bar_config(disable=True)
    assert torch.equal(draw(rebuilt), draw(pipeline))
    assert torch.equal(draw(VQIHDMPipeline(**pipeline.components)), draw(pipeline))


def test_exported_code_defines_every_name_once(pipeline_folder: Path):
    """Modules become one file when they are exported: names they share would shadow each other."""
    for file in pipeline_folder.rglob("*.py"):
        body = ast.parse(file.read_text()).body
        names = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        names += [target.id for node in body if isinstance(node, ast.Assign) for target in node.targets]
        assert len(names) == len(set(names)), file
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in body), file


def test_everything_public_is_typed_and_the_package_says_so():
    assert (Path(vq_ihdm.__file__).parent / "py.typed").is_file()
    for name in set(vq_ihdm.__all__) - {"__version__"}:
        public = getattr(vq_ihdm, name)
        parameters = inspect.signature(public.__init__ if inspect.isclass(public) else public).parameters.values()
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        untyped = [p.name for p in parameters if p.annotation is p.empty and p.kind not in kinds and p.name != "self"]
        assert not untyped, name


def test_the_version_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "argv", ["vq_ihdm", "--version"])
    with pytest.raises(SystemExit):
        runpy.run_module("vq_ihdm", run_name="__main__")
    printed = capsys.readouterr().out.strip()
    assert printed == vq_ihdm.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == printed
    released = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)  # past "Unreleased"
    assert released[1] == printed


@pytest.mark.slow
def test_the_quickstart_notebook_runs_from_anywhere_and_shows_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = ROOT / "examples" / "quickstart.ipynb"
    monkeypatch.chdir(tmp_path)

    def shown(notebook: dict) -> list[list[str]]:
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return [[output["output_type"] for output in cell["outputs"]] for cell in cells]

    assert "%pip install" in "".join(json.loads(file.read_text())["cells"][1]["source"])
    stored = shown(json.loads(file.read_text()))
    assert stored == shown(run_notebook(file)) and sum(map(len, stored)) == 6


def test_the_space_card_and_its_requirements_fit_the_page():
    card = SpaceCard.load(ROOT / "space" / "README.md")
    assert card.data.sdk == "gradio" and card.data.app_file == "app.py"
    required = {line.split(">=")[0] for line in (ROOT / "space" / "requirements.txt").read_text().split()}
    tree = ast.parse((ROOT / "app.py").read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported = {module.split(".")[0] for module in modules}
    # Pillow and numpy come with diffusers, gradio and its starlette with the Space's SDK; a Space does without vq_ihdm.
    assert imported - set(sys.stdlib_module_names) <= required | {"PIL", "numpy", "gradio", "starlette", "vq_ihdm"}
