"""What the tests share: a tiny data set, tiny networks, and the scripts run inside this process."""

import atexit
import csv
import os
import runpy
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Before anything of Hugging Face is imported: the user's caches are neither read nor written.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="vq_ihdm_tests_")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # servers of the tests are asked directly
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # nobody is told
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: more threads only get in each other's way
sys.path.insert(0, str(ROOT))  # the scripts are modules at the top of the repository

import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torchvision.models import alexnet  # noqa: E402

from vq_ihdm import HeatDissipationScheduler, VQIHDMDenoiser, VQIHDMDenoiserConfig, VQIHDMPipeline  # noqa: E402
from vq_ihdm.covariates import Covariate  # noqa: E402
from vq_ihdm.fit_prior import fit_prior  # noqa: E402
from vq_ihdm.vqgan.model import create_vq_model  # noqa: E402
from vq_ihdm.vqgan.perceptual import PerceptualLoss  # noqa: E402

torch.set_num_threads(1)
NUM_CODES, CODE_DIM, HEIGHT, WIDTH = 32, 4, 8, 8  # of the tiny VQModel at 32x32

# Everything that has a state takes part within a few steps; five steps of the VQGAN are an epoch of 32 slices.
TINY_PRESET = """
vqgan:
  block_out_channels: [8, 8, 8]
  layers_per_block: 1
  latent_channels: 4
  vq_embed_dim: 4
  num_vq_embeddings: 32
  norm_num_groups: 4
  l2_normalized_codes: true
  dead_code_steps: 3
  perceptual: alex
  perceptual_crop_size: 31
  disc_channels: 8
  disc_start: 2
  disc_warmup_steps: 2
  train_batch_size: 3
  gradient_accumulation_steps: 2
  learning_rate: 1e-3
  lr_warmup_steps: 2
  max_train_steps: 8
  checkpointing_steps: 4
  validation_steps: 4
ihdm:
  hidden_size: 16
  num_hidden_layers: 1
  num_attention_heads: 2
  dropout: 0.1
  neighbourhood_size: 3
  sigma_max: 2.0
  delta: 0.1
  prior_rank: 8
  train_batch_size: 3
  gradient_accumulation_steps: 2
  learning_rate: 1e-3
  lr_warmup_steps: 2
  max_train_steps: 8
  checkpointing_steps: 4
  validation_steps: 4
"""


def run_script(script: str, *arguments: object, folder: Path = ROOT) -> None:
    """Run a script in `folder` as `python <script> <arguments>` would, but in this process: imports are dear.

    A user's mistake therefore ends in SystemExit with the one line that goes to stderr.
    """
    argv, handlers = sys.argv, {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    before = os.getcwd()
    os.chdir(folder)
    sys.argv = [script, *map(str, arguments)]
    try:
        runpy.run_path(str(folder / script), run_name="__main__")
    finally:
        sys.argv = argv
        os.chdir(before)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        forget_accelerator()


def refusal(run: Callable[..., object], *arguments: object, **keywords: object) -> str:
    """The one line by which a script refuses to run."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments, **keywords)
    assert isinstance(stop.value.code, str)  # goes to stderr; the exit code is 1
    assert stop.value.code.startswith("error: ") and "\n" not in stop.value.code
    return stop.value.code


def tiny_vq_model(seed: int = 0):
    """A `VQModel` for 32x32 slices, 8x8 codes, that has learned nothing; its codes lie where its latents do."""
    torch.manual_seed(seed)
    model = create_vq_model(32, [8, 8, 8], 1, CODE_DIM, CODE_DIM, NUM_CODES, 4).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight, std=0.5)
    return model


def tiny_denoiser(seed: int = 0, **config: object) -> VQIHDMDenoiser:
    """A denoiser of two layers for the codes of `tiny_vq_model`."""
    torch.manual_seed(seed)
    settings = {
        "num_codes": NUM_CODES,
        "code_dim": CODE_DIM,
        "height": HEIGHT,
        "width": WIDTH,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    denoiser = VQIHDMDenoiser(VQIHDMDenoiserConfig(**settings | config)).eval()
    denoiser.code_embeddings.normal_()
    denoiser.head.weight.data.normal_()  # far from uniform predictions, as after training
    return denoiser


def tiny_vq_ihdm(seed: int = 0) -> VQIHDMPipeline:
    """A whole pipeline from tiny components that have learned nothing."""
    denoiser = tiny_denoiser(seed)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(NUM_CODES, (240, HEIGHT, WIDTH), generator=generator)
    prior = fit_prior(denoiser.embed_codes(codes), sigma=2.0, rank=6, num_components=2)
    scheduler = HeatDissipationScheduler(num_train_timesteps=20, sigma_max=2.0, delta=0.1)
    pipeline = VQIHDMPipeline(tiny_vq_model(seed), denoiser, prior, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


KNOWN_COVARIATES = [
    Covariate("age", "continuous", low=20, high=80, mean=50, std=17),
    Covariate("sex", "category", categories=("F", "M")),
]
EVERY_KIND = [*KNOWN_COVARIATES, Covariate("slice_level", "level")]


def tiny_conditional(known: list[Covariate] = KNOWN_COVARIATES) -> VQIHDMPipeline:
    """As `tiny_vq_ihdm`, but it knows age and sex, or `EVERY_KIND` of covariate."""
    denoiser = tiny_denoiser(covariates=[asdict(covariate) for covariate in known])
    for parameter in denoiser.covariate_embedding.parameters():
        torch.nn.init.normal_(parameter)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(NUM_CODES, (240, HEIGHT, WIDTH), generator=generator)
    age, sex = 20 + 60 * torch.rand(240, generator=generator), (torch.arange(240) % 2).float()
    table = torch.stack([age, sex, torch.rand(240, generator=generator)], 1)[:, : len(known)]
    prior = fit_prior(
        codes, 2.0, rank=6, num_components=2, embed=denoiser.embed_codes, known_covariates=known, covariates=table,
    )  # fmt: skip
    scheduler = HeatDissipationScheduler(num_train_timesteps=20, sigma_max=2.0, delta=0.1)
    pipeline = VQIHDMPipeline(tiny_vq_model(), denoiser, prior, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_template_set(folder: Path, num_subjects: int) -> Path:
    """A data set of template-derived subjects with four 32x32 slices each."""
    run_script(
        "dataset_scripts/template.py", "--image_size", 32, "--num_subjects", num_subjects, "--slices_per_subject", 4,
        "--output_dir", folder,
    )  # fmt: skip
    return folder


def left_out(folder: Path) -> list[dict[str, str]]:
    """The report beside a built set: input, kind and reason of what was left out."""
    with folder.with_name(folder.name + ".left_out.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def same_draws():
    """A test draws the same numbers whatever ran before it, so that one which fails fails again."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_accelerator_from_before():
    """Whatever precision or device a test asks for, an accelerator of an earlier one has no say in it."""
    yield
    forget_accelerator()


def forget_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def template_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built data set: 12 template-derived subjects, four 32x32 slices each; 8 subjects to train on."""
    return build_template_set(tmp_path_factory.mktemp("data") / "template32", num_subjects=12)


@pytest.fixture
def pipeline() -> VQIHDMPipeline:
    return tiny_vq_ihdm()


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny pipeline; not to be written to."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    tiny_vq_ihdm().save_pretrained(folder)
    return folder


ONNX_SETTINGS = {"temperature": 0.7, "top_p": 0.9}


def export(pipeline_folder: Path, folder: Path) -> Path:
    """What export.py writes of a pipeline with `ONNX_SETTINGS`."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    flags = [part for name, value in ONNX_SETTINGS.items() for part in (f"--{name}", value)]
    run_script("export.py", "--pipeline", pipeline_folder, "--output_dir", folder, *flags)
    return folder


@pytest.fixture(scope="session")
def onnx_folder(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Path:
    """The export of `pipeline_folder`; not to be written to."""
    return export(pipeline_folder, tmp_path_factory.mktemp("exported") / "onnx")


@pytest.fixture(scope="session")
def asked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny pipeline that knows age and sex; not to be written to."""
    folder = tmp_path_factory.mktemp("pipelines") / "asked"
    tiny_conditional().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def every_kind_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny pipeline that knows `EVERY_KIND` of covariate; not to be written to."""
    folder = tmp_path_factory.mktemp("pipelines") / "every_kind"
    tiny_conditional(EVERY_KIND).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def every_kind_onnx_folder(tmp_path_factory: pytest.TempPathFactory, every_kind_folder: Path) -> Path:
    """The export of `every_kind_folder`; not to be written to."""
    return export(every_kind_folder, tmp_path_factory.mktemp("exported") / "every_kind")


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for --config that trains each stage for eight steps."""
    file = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    file.write_text(TINY_PRESET)
    return file


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for --perceptual_weights: AlexNet's convolutions with random weights."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    save_file({f"features.{name}": weight for name, weight in alexnet().features.state_dict().items()}, file)
    return file


@pytest.fixture(scope="session")
def perceptual(trunk: Path) -> PerceptualLoss:
    """LPIPS on `trunk`."""
    return PerceptualLoss("alex", str(trunk))


@pytest.fixture(scope="session")
def vqgan_run(tmp_path_factory: pytest.TempPathFactory, tiny_preset: Path, template_set: Path, trunk: Path) -> Path:
    """What train_vqgan.py leaves of the tiny preset; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "vqgan"
    run_script(
        "train_vqgan.py", "--config", tiny_preset, "--dataset_name", template_set, "--perceptual_weights", trunk,
        "--output_dir", folder,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def ihdm_run(tmp_path_factory: pytest.TempPathFactory, tiny_preset: Path, template_set: Path, vqgan_run: Path) -> Path:
    """What train_ihdm.py leaves of the tiny preset, a pipeline among it; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "ihdm"
    run_script(
        "train_ihdm.py", "--config", tiny_preset, "--dataset_name", template_set, "--vqvae", vqgan_run / "best",
        "--output_dir", folder,
    )  # fmt: skip
    return folder


@pytest.fixture
def vqgan(tiny_preset: Path, template_set: Path, trunk: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run train_vqgan.py with the tiny preset and more flags; later flags win."""

    def run(*arguments: object, output_dir: Path = tmp_path / "run") -> Path:
        run_script(
            "train_vqgan.py", "--config", tiny_preset, "--dataset_name", template_set, "--perceptual_weights", trunk,
            "--output_dir", output_dir, "--report_to", "none", *arguments,
        )  # fmt: skip
        return output_dir

    return run


@pytest.fixture
def ihdm(tiny_preset: Path, template_set: Path, vqgan_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run train_ihdm.py with the tiny preset and more flags; later flags win."""

    def run(*arguments: object, output_dir: Path = tmp_path / "run") -> Path:
        run_script(
            "train_ihdm.py", "--config", tiny_preset, "--dataset_name", template_set, "--vqvae", vqgan_run / "best",
            "--output_dir", output_dir, "--report_to", "none", *arguments,
        )  # fmt: skip
        return output_dir

    return run


GENERATE_FLAGS = (
    "--num_images", 7, "--batch_size", 2, "--format", "both", "--spacing_mm", 1.5, 2, "--num_inference_steps", 2,
)  # fmt: skip
SHARD_FLAGS = ("--num_images", 10, "--format", "parquet", "--images_per_shard", 4, "--batch_size", 2)


@pytest.fixture(scope="session")
def generated(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What generate.py writes with `GENERATE_FLAGS`; not to be written to."""
    folder = tmp_path_factory.mktemp("generated") / "images"
    run_script("generate.py", "--pipeline", pipeline_folder, "--output_dir", folder, *GENERATE_FLAGS)
    return folder


@pytest.fixture
def generate(pipeline_folder, tmp_path):
    def run(*arguments, output_dir=tmp_path / "images", pipeline=pipeline_folder) -> Path:
        run_script("generate.py", "--pipeline", pipeline, "--output_dir", output_dir, *arguments)
        return output_dir

    return run
