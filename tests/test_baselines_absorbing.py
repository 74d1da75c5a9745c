"""Absorbing diffusion: loss and sampler by hand, the pipeline's promises, training from the command line."""

import json
import math
import sys

import pytest
import torch
from conftest import HEIGHT, NUM_CODES, ROOT, WIDTH, run_script, tiny_vq_model
from diffusers import DiffusionPipeline

import train_baseline
from vq_ihdm import AbsorbingDiffusionPipeline, load_pipeline
from vq_ihdm.baselines.absorbing import (
    AbsorbingDenoiser,
    AbsorbingDenoiserConfig,
    draw_mask,
    reweighted_elbo,
)
from vq_ihdm.code_sampling import code_probabilities, draw_codes, rand_each
from vq_ihdm.pipelines.pipeline_absorbing_diffusion import most_confident, to_reveal
from vq_ihdm.training.config import parse_args


def tiny_denoiser(**config) -> AbsorbingDenoiser:
    torch.manual_seed(0)
    settings = {"num_codes": NUM_CODES, "height": HEIGHT, "width": WIDTH, "num_train_timesteps": 64}
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AbsorbingDenoiser(AbsorbingDenoiserConfig(**settings | size | config)).eval()


@pytest.fixture
def absorbing() -> AbsorbingDiffusionPipeline:
    denoiser = tiny_denoiser()
    denoiser.head.weight.data.normal_()  # far from uniform predictions, as after training
    pipeline = AbsorbingDiffusionPipeline(tiny_vq_model(), denoiser)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, **arguments) -> torch.LongTensor:
    arguments = {"num_images": 5, "num_inference_steps": 4, "output_type": "latent"} | arguments
    return pipeline(generator=torch.Generator().manual_seed(0), **arguments).images


def test_every_code_is_masked_at_T_and_a_share_of_t_over_T_before():
    uniform = torch.rand(1, 100, 100, generator=torch.Generator().manual_seed(0))
    masked = [draw_mask(torch.tensor([t]), 8, uniform) for t in range(1, 9)]
    assert masked[-1].all()
    for t, mask in enumerate(masked, start=1):
        assert mask.float().mean() == pytest.approx(t / 8, abs=0.02)


def test_loss_by_hand():
    T, codes = 4, torch.tensor([[[0, 1], [2, 0]], [[1, 1], [0, 2]]])
    masked = torch.tensor([[[True, False], [False, False]], [[True, True], [True, True]]])
    logits = torch.zeros(2, 2, 2, 3)
    logits[0, 0, 0, 0] = math.log(2)  # p(true code) = 1/2; 1/3 everywhere else
    loss = reweighted_elbo(logits, codes, masked, torch.tensor([1, 4]), T)
    first = (4 - 1 + 1) / 4 * math.log(2) / 4
    second = (4 - 4 + 1) / 4 * 4 * math.log(3) / 4
    assert loss.item() == pytest.approx((first + second) / 2)


def test_revealing_by_hand():
    mask = 9
    codes = torch.tensor([[[9, 1], [9, 9]]])
    uniform = torch.tensor([[[0.1, 0.1], [0.4, 0.6]]])
    assert to_reveal(codes, uniform, 2, mask).tolist() == [[[True, False], [True, False]]]
    assert to_reveal(codes, uniform, 4, mask).tolist() == [[[True, False], [False, False]]]
    assert to_reveal(codes, uniform, 1, mask).tolist() == [[[True, False], [True, True]]]


def test_skipped_evaluations_change_no_code(absorbing):
    """The plain chain, the network evaluated for every image at every step, gives the same codes."""
    num_steps, seeds = 64, [3, 4]
    mask_index = absorbing.denoiser.config.mask_index
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    codes = torch.full((2, HEIGHT, WIDTH), mask_index)
    for steps_left in range(num_steps, 0, -1):
        uniform = rand_each((2, HEIGHT, WIDTH), 2, generators, torch.device("cpu"))
        with torch.no_grad():
            drawn = draw_codes(code_probabilities(absorbing.denoiser(codes).logits, 0.9, 1.0), uniform[:, 0])
        codes = torch.where(to_reveal(codes, uniform[:, 1], steps_left, mask_index), drawn, codes)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = absorbing(2, generator=generators, num_inference_steps=num_steps, temperature=0.9, output_type="latent")
    assert torch.equal(drawn.images, codes)


def test_the_most_confident_are_revealed_by_hand():
    masked = torch.tensor([[[True, True], [True, False]]])
    confidence = torch.tensor([[[-1.0, -3.0], [-2.0, -9.0]]])
    # Half way .7 of the four positions stay masked, rounded down, at the end none.
    assert most_confident(masked, confidence, 1 / 2).tolist() == [[[True, False], [False, False]]]
    assert most_confident(masked, confidence, 0).tolist() == masked.tolist()


def test_maskgit_keeps_the_likely_codes_of_each_step(absorbing):
    """Without choice noise a step reveals what the network is most sure of among what it drew."""
    states = []

    def keep(pipe, step, timestep, tensors):
        states.append(tensors["code_indices"])
        return tensors

    sampling = {"num_inference_steps": 6, "reveal_order": "confidence", "choice_temperature": 0.0}
    final = draw(absorbing, temperature=0.0, callback_on_step_end=keep, **sampling)
    mask = absorbing.denoiser.config.mask_index
    open_counts = [(state == mask).flatten(1).sum(1).unique().tolist() for state in states]
    assert open_counts == [[int(math.sin(math.pi / 2 * left / 6) * 64)] for left in range(5, -1, -1)]
    assert torch.equal(states[-1], final)
    with torch.no_grad():
        probabilities = absorbing.denoiser(torch.full_like(final, mask)).logits.softmax(-1).amax(-1)
    known = states[0] != mask
    assert probabilities[known].min() > probabilities[~known].max()
    noisy = draw(absorbing, temperature=0.0, **sampling | {"choice_temperature": 4.5})
    assert not torch.equal(noisy, final)
    assert torch.equal(noisy, draw(absorbing, temperature=0.0, chunk_size=2, **sampling | {"choice_temperature": 4.5}))
    with pytest.raises(ValueError, match="reveal_order is random or confidence, not halton"):
        draw(absorbing, reveal_order="halton")


@pytest.mark.parametrize("num_steps", [1, 5, 64])
def test_revealed_codes_never_change_and_all_are_revealed_at_the_end(absorbing, num_steps):
    states = []

    def keep(pipe, step, timestep, tensors):
        states.append(tensors["code_indices"])
        return tensors

    final = draw(absorbing, num_images=3, num_inference_steps=num_steps, callback_on_step_end=keep)
    mask = absorbing.denoiser.config.mask_index
    assert len(states) == num_steps
    for before, after in zip(states, states[1:] + [final], strict=True):
        assert (after[before != mask] == before[before != mask]).all()
    assert final.max() < NUM_CODES and final.min() >= 0
    if num_steps == 64:  # about one position in 64 a step
        assert abs((states[31] == mask).float().mean() - 0.5) < 0.15


def test_one_step_samples_the_networks_marginals(absorbing):
    codes = draw(absorbing, num_images=400, num_inference_steps=1, temperature=2.0)
    masks = torch.full((1, HEIGHT, WIDTH), absorbing.denoiser.config.mask_index)
    with torch.no_grad():
        expected = (absorbing.denoiser(masks).logits / 2.0).softmax(-1)[0]
    frequency = torch.nn.functional.one_hot(codes, NUM_CODES).double().mean(0)
    assert (frequency - expected).abs().max() < 5 * 0.5 / math.sqrt(400)


def test_temperature_zero_takes_the_most_likely_code(absorbing):
    masks = torch.full((1, HEIGHT, WIDTH), absorbing.denoiser.config.mask_index)
    with torch.no_grad():
        expected = absorbing.denoiser(masks).logits.argmax(-1)
    assert (draw(absorbing, num_inference_steps=1, temperature=0.0) == expected).all()


def test_an_image_does_not_depend_on_its_batch(absorbing):
    codes = draw(absorbing)
    assert len(codes.flatten(1).unique(dim=0)) == 5
    assert torch.equal(codes, draw(absorbing, chunk_size=2))
    assert torch.equal(codes, draw(absorbing, chunk_size=1))


@pytest.mark.parametrize("num_steps", [0, 65])
def test_a_number_of_steps_the_chain_does_not_have(absorbing, num_steps):
    with pytest.raises(ValueError, match=r"1\.\.64"):
        draw(absorbing, num_inference_steps=num_steps)


def test_saved_and_loaded_with_and_without_the_package(absorbing, tmp_path, monkeypatch):
    absorbing.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    for (name, saved), again in zip(
        absorbing.denoiser.state_dict().items(), loaded.denoiser.state_dict().values(), strict=True
    ):
        assert torch.equal(saved, again), name
    images = draw(absorbing, output_type="np")
    assert (draw(loaded, output_type="np") == images).all()

    monkeypatch.setitem(sys.modules, "vq_ihdm", None)  # importing it fails from here on
    remote = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert not isinstance(remote, AbsorbingDiffusionPipeline)
    assert (draw(remote, output_type="np") == images).all()


def test_dropout_is_on_hidden_states_alone_as_in_the_released_code():
    widths = {}
    denoiser = tiny_denoiser(dropout=0.5).train()
    for name, module in denoiser.named_modules():
        if isinstance(module, torch.nn.Dropout) and module.p:
            module.register_forward_hook(lambda _, __, output, name=name: widths.update({name: output.shape[-1]}))
    denoiser(torch.zeros(1, HEIGHT, WIDTH, dtype=torch.long))
    assert len(widths) == 1 + 2 * 2 and set(widths.values()) == {denoiser.config.hidden_size}


@pytest.mark.parametrize("neighbourhood_size", [1, 3])
def test_training_lowers_the_loss_on_a_toy_set(neighbourhood_size: int):
    size = {"height": 3, "width": 3, "neighbourhood_size": neighbourhood_size}
    denoiser = tiny_denoiser(dropout=0.0, **size).train()
    codes = torch.tensor([[[1] * 3] * 3, [[2] * 3] * 3]).repeat(8, 1, 1)  # all ones or all twos
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    T, losses = 64, []
    for _ in range(150):
        timesteps = torch.randint(1, T + 1, (len(codes),))
        masked = draw_mask(timesteps, T, torch.rand(codes.shape))
        logits = denoiser(codes.masked_fill(masked, denoiser.config.mask_index)).logits
        loss = reweighted_elbo(logits, codes, masked, timesteps, T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
    # The joint distribution is learned, not only the marginals: code by code, an image is of one kind.
    pipeline = AbsorbingDiffusionPipeline(tiny_vq_model(), denoiser.eval())
    pipeline.set_progress_bar_config(disable=True)
    drawn = draw(pipeline, num_images=32, num_inference_steps=64).flatten(1)
    assert (drawn == drawn[:, :1]).all(1).float().mean() > 0.8
    assert set(drawn[:, 0].tolist()) == {1, 2}


@pytest.mark.parametrize("preset", sorted(file.stem for file in (ROOT / "configs").glob("*.yaml")))
@pytest.mark.parametrize("model", train_baseline.MODELS)
def test_presets_fit_the_script(preset, model, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train_baseline.py")])
    argv = ["--model", model, "--config", preset, "--output_dir", "out"]
    argv += ["--vqvae", "x"] if model in ("absorbing", "ldm") else []
    args = parse_args(train_baseline.build_parser(model), f"baseline_{model}", argv)
    assert args.max_train_steps > 0 and args.train_batch_size > 0


@pytest.mark.slow
def test_command_line_and_exact_resume(template_set, tmp_path):
    tiny_vq_model().save_pretrained(tmp_path / "vqvae")
    flags = [
        "--model", "absorbing", "--dataset_name", template_set, "--vqvae", tmp_path / "vqvae",
        "--hidden_size", 16, "--num_hidden_layers", 1, "--num_attention_heads", 2, "--num_train_timesteps", 8,
        "--neighbourhood_size", 3,
        "--max_train_steps", 4, "--train_batch_size", 4, "--lr_warmup_steps", 0, "--checkpointing_steps", 2,
        "--validation_steps", 2, "--report_to", "none",
    ]  # fmt: skip
    run_script("train_baseline.py", *flags, "--output_dir", tmp_path / "whole")
    run_script(
        "train_baseline.py", *flags, "--output_dir", tmp_path / "resumed",
        "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2",
    )  # fmt: skip
    files = ["checkpoint-4/state.safetensors", "pipeline/denoiser/model.safetensors", "samples.png"]
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes(), file
    metrics = json.loads((tmp_path / "whole" / "best" / "metrics.json").read_text())
    assert 0 < metrics["reweighted_elbo"] < math.log(NUM_CODES)
    pipeline = load_pipeline(tmp_path / "whole" / "pipeline")
    assert isinstance(pipeline, AbsorbingDiffusionPipeline)
    assert pipeline.denoiser.neighbourhood[0].kernel_size == (3, 3)
    assert pipeline(1, num_inference_steps=2).images[0].size == (32, 32)
