"""On a GPU: sampling, compiled decoding, and a step of each train script in bf16. Skipped where there is none."""

import json

import pytest
import torch
from conftest import run_script, tiny_vq_ihdm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
ONE_STEP = ("--max_train_steps", 1, "--mixed_precision", "bf16", "--gradient_accumulation_steps", 1)


def generators(num_images: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(num_images)]


def test_the_gpu_draws_what_the_cpu_draws():
    """Generators of the CPU give the same numbers; a rare code on the edge of two may come out otherwise."""
    pipeline = tiny_vq_ihdm()
    on_cpu = pipeline(4, generator=generators(4), num_inference_steps=2, output_type="latent").images
    on_gpu = pipeline.to("cuda")(4, generator=generators(4), num_inference_steps=2, output_type="latent").images
    assert (on_gpu.cpu() == on_cpu).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_images(dtype):
    images = tiny_vq_ihdm().to("cuda", dtype)(4, output_type="pt").images
    assert images.isfinite().all() and images.std() > 0


def test_compiled_networks_draw_the_same():
    pipeline = tiny_vq_ihdm().to("cuda")
    plain = pipeline(2, generator=generators(2), output_type="pt").images
    pipeline.denoiser.compile()
    pipeline.vqvae.decoder.compile()
    torch.testing.assert_close(pipeline(2, generator=generators(2), output_type="pt").images, plain, atol=0.01, rtol=0)


def test_a_step_of_each_script_in_bf16(tmp_path, template_set, tiny_preset, trunk):
    data = ("--config", tiny_preset, "--dataset_name", template_set, *ONE_STEP)
    run_script("train_vqgan.py", *data, "--perceptual_weights", trunk, "--output_dir", tmp_path / "vqgan")
    vqvae = ("--vqvae", tmp_path / "vqgan" / "best")
    run_script("train_ihdm.py", *data, *vqvae, "--output_dir", tmp_path / "ihdm")
    baseline = ("train_baseline.py", "--model", "absorbing", "--dataset_name", template_set, *ONE_STEP, *vqvae)
    size = ("--hidden_size", 16, "--num_hidden_layers", 1, "--num_attention_heads", 2, "--train_batch_size", 3)
    run_script(*baseline, *size, "--output_dir", tmp_path / "absorbing")
    for run in ("vqgan", "ihdm", "absorbing"):
        metrics = json.loads((tmp_path / run / "best" / "metrics.json").read_text())
        assert metrics["step"] == 1 and all(torch.tensor(list(metrics.values())).isfinite())
