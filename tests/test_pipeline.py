"""The pipeline: what a call promises, and a folder that loads anywhere."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CODE_DIM, HEIGHT, NUM_CODES, WIDTH, tiny_vq_ihdm
from diffusers import VQModel

from vq_ihdm import VQIHDMPipeline, load_pipeline
from vq_ihdm.errors import InputError
from vq_ihdm.fit_prior import fit_prior
from vq_ihdm.scheduling_heat_dissipation import OPEN


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(count: int) -> list[torch.Generator]:
    return [seeded(100 + i) for i in range(count)]


# ---- a call -------------------------------------------------------------------------------------------------------


def test_output_types(pipeline):
    outputs = {kind: pipeline(3, generator=seeded(), output_type=kind).images for kind in ("pil", "np", "pt", "latent")}
    assert [image.mode for image in outputs["pil"]] == ["L"] * 3 and outputs["pil"][0].size == (32, 32)
    assert outputs["np"].shape == (3, 32, 32, 1) and outputs["np"].dtype == np.float32
    assert outputs["pt"].shape == (3, 1, 32, 32)
    assert outputs["pt"].min() >= 0 and outputs["pt"].max() <= 1
    assert outputs["latent"].shape == (3, HEIGHT, WIDTH)
    assert outputs["latent"].min() >= 0 and outputs["latent"].max() < NUM_CODES
    # They are one and the same images.
    np.testing.assert_array_equal(outputs["np"][..., 0], outputs["pt"][:, 0])
    pil = np.stack([np.asarray(image) for image in outputs["pil"]])
    np.testing.assert_array_equal(pil, (outputs["np"][..., 0] * 255).round().astype(np.uint8))
    decoded = (pipeline.decode_codes(outputs["latent"]) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(outputs["pt"], decoded)


def test_images_are_not_all_the_same(pipeline):
    images = pipeline(3, generator=seeded(), output_type="pt").images
    assert images.std() > 0.01 and not torch.equal(images[0], images[1])


def test_return_dict(pipeline):
    (images,) = pipeline(2, generator=seeded(), output_type="pt", return_dict=False)
    assert torch.equal(images, pipeline(2, generator=seeded(), output_type="pt").images)
    (codes,) = pipeline(2, generator=seeded(), output_type="latent", return_dict=False)
    assert codes.shape == (2, HEIGHT, WIDTH)


@pytest.mark.parametrize("steps", [1, 4])
def test_same_seed_same_images_whatever_the_chunk_size(pipeline, steps):
    arguments = {"num_images": 5, "num_inference_steps": steps}
    whole = pipeline(**arguments, generator=seeded(), output_type="latent").images
    for chunk_size in (1, 2, 5):
        again = pipeline(**arguments, generator=seeded(), output_type="latent", chunk_size=chunk_size).images
        assert torch.equal(again, whole)
    assert not torch.equal(pipeline(**arguments, generator=seeded(1), output_type="latent").images, whole)
    pixels = pipeline(**arguments, generator=seeded(), output_type="pt").images
    again = pipeline(**arguments, generator=seeded(), output_type="pt", chunk_size=2).images
    torch.testing.assert_close(again, pixels)


@pytest.mark.parametrize("steps", [1, 4])
def test_one_generator_for_each_image(pipeline, steps):
    together = pipeline(4, steps, generator=generators(4), output_type="latent").images
    backwards = pipeline(4, steps, generator=generators(4)[::-1], output_type="latent").images
    assert torch.equal(together, backwards.flip(0))
    alone = pipeline(1, steps, generator=[seeded(102)], output_type="latent").images
    assert torch.equal(alone, together[2:3])


def test_without_generator_the_global_seed_decides(pipeline):
    torch.manual_seed(0)
    first, second = (pipeline(2, output_type="latent").images for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(pipeline(2, output_type="latent").images, first)
    assert not torch.equal(first, second)


def test_temperature_zero_leaves_the_prior_as_the_only_chance(pipeline):
    """Given u_T the most likely codes are one answer, whatever the generators say."""
    u_T = pipeline.prepare_latents(generators(3))
    first, second = (
        pipeline(3, temperature=0, sample=u_T, generator=seeded(seed), output_type="latent").images for seed in (0, 1)
    )
    assert torch.equal(first, second)
    hot = pipeline(3, sample=u_T, generator=seeded(), output_type="latent").images
    assert not torch.equal(first, hot)


def test_temperature_and_top_p_default_to_the_scheduler(pipeline):
    pipeline.scheduler.register_to_config(temperature=0.0)
    default = pipeline(2, generator=seeded(), output_type="latent").images
    assert torch.equal(default, pipeline(2, generator=seeded(), temperature=0, output_type="latent").images)
    assert not torch.equal(default, pipeline(2, generator=seeded(), temperature=1, output_type="latent").images)
    greedy = pipeline(2, generator=seeded(), temperature=1, top_p=1e-9, output_type="latent").images
    assert torch.equal(default, greedy)


def test_the_scheduler_says_how_many_steps(pipeline):
    told = pipeline(2, num_inference_steps=3, generator=seeded(), output_type="latent").images
    assert not torch.equal(told, pipeline(2, generator=seeded(), output_type="latent").images)
    pipeline.scheduler.register_to_config(num_inference_steps=3)
    assert torch.equal(told, pipeline(2, generator=seeded(), output_type="latent").images)


def test_delta_of_the_scheduler_noises_the_prior():
    clean, noisy = tiny_vq_ihdm(), tiny_vq_ihdm()
    clean.scheduler.register_to_config(delta=0.0)
    noisy.scheduler.register_to_config(delta=2.0)
    first, second = (p(4, temperature=0, generator=seeded(), output_type="latent").images for p in (clean, noisy))
    assert not torch.equal(first, second)


def test_u_T_is_a_draw_of_the_prior_with_noise_of_the_same_generators(pipeline):
    """In one place: given back as `sample` it is what the pipeline draws by itself."""
    delta = pipeline.scheduler.config.delta
    latents, again = (pipeline.prepare_latents(generators(200)) for _ in range(2))
    assert latents.shape == (200, CODE_DIM, HEIGHT, WIDTH) and torch.equal(latents, again)
    noise = latents - pipeline.prior.sample(200, generators(200))
    assert noise.std() == pytest.approx(delta, rel=0.02) and abs(noise.mean()) < 0.02 * delta
    shifted = pipeline.prepare_latents(generators(3), torch.full((3, CODE_DIM, HEIGHT, WIDTH), 5.0))
    assert shifted.mean() == pytest.approx(5, abs=0.02) and shifted.std() == pytest.approx(delta, rel=0.1)

    given = generators(3)
    u_T = pipeline.prepare_latents(given)  # the rest of the generators' numbers goes to the codes
    images = pipeline(3, 2, sample=u_T, generator=given, output_type="latent").images
    assert torch.equal(images, pipeline(3, 2, generator=generators(3), output_type="latent").images)
    given = generators(3)
    u_T = pipeline.prepare_latents(given)
    how = {"num_inference_steps": 2, "chunk_size": 2, "output_type": "latent"}
    again = pipeline(sample=u_T, generator=tuple(given), **how).images
    assert torch.equal(images, again)


def test_callback_sees_and_replaces_the_state(pipeline):
    seen = []

    def watch(pipe, step, timestep, tensors):
        assert pipe is pipeline
        assert tensors["sample"].shape == (len(tensors["code_indices"]), CODE_DIM, HEIGHT, WIDTH)
        seen.append((step, float(timestep), int((tensors["code_indices"] != OPEN).sum())))
        return {}

    pipeline(4, 3, chunk_size=2, generator=seeded(), callback_on_step_end=watch)
    assert [step for step, _, _ in seen] == [0, 1, 2, 0, 1, 2]
    assert seen[0][1] == pipeline.scheduler.config.num_train_timesteps
    revealed = [count for _, _, count in seen[:3]]
    assert revealed == sorted(revealed) and revealed[-1] == 2 * HEIGHT * WIDTH

    codes = torch.full((2, HEIGHT, WIDTH), 5)
    replaced = pipeline(
        2,
        callback_on_step_end=lambda *_: {"code_indices": codes},
        callback_on_step_end_tensor_inputs=["code_indices"],
        output_type="latent",
    ).images
    assert torch.equal(replaced, codes)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"output_type": "foo"}, "output_type is one of pil, np, pt, latent, not foo"),
        ({"sample": torch.zeros(2, HEIGHT, WIDTH)}, r"u_T of the shape \(2, 4, 8, 8\), not \(2, 8, 8\)"),
        ({"num_images": 3, "sample": torch.zeros(2, CODE_DIM, HEIGHT, WIDTH)}, r"the shape \(3, 4, 8, 8\)"),
        ({"guidance_scale": 7}, "knows no covariates to be guided by"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(pipeline, arguments, sentence):
    pipeline.denoiser.register_forward_hook(lambda *_: pytest.fail("something was drawn"))
    with pytest.raises(ValueError, match=sentence):
        pipeline(**arguments)


def test_the_network_is_asked_once_a_step(pipeline):
    calls = []
    pipeline.denoiser.register_forward_hook(lambda *_: calls.append(1))
    for steps in (1, 6):
        calls.clear()
        pipeline(2, steps, generator=seeded())
        assert len(calls) == steps


def test_encode_and_decode_fit_together(pipeline):
    images = pipeline(2, generator=seeded(), output_type="pt").images * 2 - 1
    codes = pipeline.encode_images(images)
    assert codes.shape == (2, HEIGHT, WIDTH)
    latents = pipeline.vqvae.encode(images).latents
    expected = pipeline.vqvae.decode(latents).sample  # quantises on its way, as in training
    torch.testing.assert_close(pipeline.decode_codes(codes), expected, atol=1e-5, rtol=1e-4)


def test_what_is_no_generator_is_told(pipeline):
    with pytest.raises(ValueError, match=r"torch\.Generator\(\)\.manual_seed\(0\), not the number"):
        pipeline(1, generator=0)


def test_a_folder_that_lacks_a_component_asks_no_hub(pipeline_folder, tmp_path, monkeypatch):
    """A relative path to what is missing could be the name of somebody's repository."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pipeline_folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "vqvae")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "model" / "vqvae"))):
        VQIHDMPipeline.from_pretrained("model")
    (tmp_path / "empty").mkdir()
    for name, reason in (
        ("empty", "it has no model_index.json"),
        (str(tmp_path / "typo"), "no folder and no repository"),
    ):
        with pytest.raises(ValueError, match=reason):
            VQIHDMPipeline.from_pretrained(name)


def test_decoded_images_are_encoded_wherever_the_decoder_ended(pipeline):
    images = pipeline.decode_codes(pipeline(2, generator=seeded(), output_type="latent").images)
    beyond = images / images.abs().max() * 1.3  # decoders leave [-1, 1] a little
    assert pipeline.encode_images(beyond).shape == (2, HEIGHT, WIDTH)
    for wrong in (images[0], images.expand(-1, 3, -1, -1), (images * 127.5 + 127.5).byte(), images * 127.5 + 127.5):
        with pytest.raises(ValueError, match="encode_images takes"):
            pipeline.encode_images(wrong)


def test_how_many_images_by_either_name(pipeline):
    expected = pipeline(3, generator=seeded(), output_type="latent").images
    for arguments in ({"batch_size": 3}, {"num_images": 3, "batch_size": 3}):
        assert torch.equal(pipeline(**arguments, generator=seeded(), output_type="latent").images, expected)
    assert len(pipeline(output_type="latent").images) == 1
    with pytest.raises(ValueError, match="chunk_size is how many"):
        pipeline(3, batch_size=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_images": 0},
        {"num_images": "a brain"},
        {"batch_size": -1},
        {"num_images": 2.0},
        {"chunk_size": 0},
        {"num_inference_steps": 2.5},
        {"num_inference_steps": 0},
    ],
)
def test_a_count_without_sense_is_refused(pipeline, arguments):
    with pytest.raises(ValueError, match="must be a positive whole number"):
        pipeline(**arguments)


def test_unknown_callback_tensors_are_refused(pipeline):
    seen = []
    with pytest.raises(ValueError, match="a callback is given sample, code_indices, not latents"):
        pipeline(callback_on_step_end=print, callback_on_step_end_tensor_inputs=["latents"])
    pipeline(callback_on_step_end=lambda *a: seen.append(a[-1]) or {}, callback_on_step_end_tensor_inputs=[])
    assert seen == [{}]


def test_bad_arguments(pipeline):
    with pytest.raises(ValueError, match="as many generators"):
        pipeline(3, generator=generators(2))
    with pytest.raises(ValueError, match="num_inference_steps"):
        pipeline(1, num_inference_steps=0)


# ---- a folder -----------------------------------------------------------------------------------------------------


def test_round_trip_bit_for_bit(pipeline, pipeline_folder):
    for loaded in (VQIHDMPipeline.from_pretrained(pipeline_folder), load_pipeline(pipeline_folder)):
        assert type(loaded) is VQIHDMPipeline
        loaded.set_progress_bar_config(disable=True)
        for component in ("vqvae", "denoiser", "prior"):
            ours, theirs = getattr(pipeline, component), getattr(loaded, component)
            assert not theirs.training
            assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
        expected = pipeline(2, 3, generator=seeded(), output_type="pt").images
        assert torch.equal(loaded(2, 3, generator=seeded(), output_type="pt").images, expected)


def test_components_can_be_replaced_on_loading(pipeline, pipeline_folder):
    scheduler = type(pipeline.scheduler)(num_train_timesteps=3, sigma_max=2.0)
    assert VQIHDMPipeline.from_pretrained(pipeline_folder, scheduler=scheduler).scheduler is scheduler


def test_half_precision_on_loading(pipeline_folder):
    loaded = VQIHDMPipeline.from_pretrained(pipeline_folder, torch_dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert {loaded.vqvae.dtype, loaded.denoiser.dtype, loaded.prior.dtype} == {torch.bfloat16}
    images = loaded(2, 2, generator=seeded(), output_type="pt").images
    assert images.dtype == torch.float32 and torch.isfinite(images).all()


def test_a_folder_holds_no_pickle_and_no_path(pipeline_folder):
    files = [file for file in pipeline_folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".py", ".safetensors"}
    # Saved from a loaded pipeline, which knows where it came from.
    again = pipeline_folder.with_name("again")
    VQIHDMPipeline.from_pretrained(pipeline_folder).save_pretrained(again)
    assert {f.relative_to(pipeline_folder) for f in files} == {f.relative_to(again) for f in again.rglob("*.*")}
    for file in [*files, *again.rglob("*")]:
        if file.suffix in (".json", ".py"):
            assert "_name_or_path" not in file.read_text() or file.suffix == ".py"
            assert str(pipeline_folder.parent) not in file.read_text()


ELSEWHERE = """
import sys
sys.modules["vq_ihdm"] = None  # as on a machine where the package is not installed
import numpy as np, torch
from diffusers import DiffusionPipeline
source, target = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
images = pipe(3, 2, generator=torch.Generator().manual_seed(0), output_type="np").images
pipe.save_pretrained(target)
np.save(target + "/images.npy", images)
assert not any(name.split(".")[0] == "vq_ihdm" for name, module in sys.modules.items() if module)
"""


@pytest.mark.slow
def test_loads_and_saves_again_without_the_package(pipeline, pipeline_folder, tmp_path):
    target = tmp_path / "elsewhere"
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(pipeline_folder), str(target)],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    expected = pipeline(3, 2, generator=seeded(), output_type="np").images
    np.testing.assert_array_equal(np.load(target / "images.npy"), expected)
    for file in pipeline_folder.rglob("*"):
        again = target / file.relative_to(pipeline_folder)
        assert again.exists(), again
        if file.suffix == ".py":
            assert again.read_text() == file.read_text()
    for file in target.rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text())
    loaded = VQIHDMPipeline.from_pretrained(target)
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(loaded(3, 2, generator=seeded(), output_type="np").images, expected)


def test_load_pipeline_says_what_is_wrong(pipeline_folder, tmp_path):
    with pytest.raises(InputError, match="no model_index.json"):
        load_pipeline(tmp_path)
    with pytest.raises(InputError, match="no folder and no repository"):
        load_pipeline(tmp_path / "missing" / "pipeline")
    incomplete = shutil.copytree(pipeline_folder, tmp_path / "incomplete")
    shutil.rmtree(incomplete / "denoiser")
    with pytest.raises(InputError, match="cannot be loaded as a VQIHDMPipeline") as error:
        load_pipeline(incomplete)
    assert "\n" not in str(error.value)
    index = tmp_path / "model_index.json"
    for name in ("StableDiffusionPipeline", ["pipeline", "SomeoneElsesPipeline"]):
        index.write_text(json.dumps({"_class_name": name}))
        with pytest.raises(InputError, match=r"holds a (StableDiffusion|SomeoneElses)Pipeline, .* none of"):
            load_pipeline(tmp_path)


def test_the_images_prior_is_refused_by_the_pipeline_too(pipeline, tmp_path):
    codes = torch.randint(NUM_CODES, (5, HEIGHT, WIDTH))
    pipeline.register_modules(prior=fit_prior(pipeline.denoiser.embed_codes(codes), 2.0, "images"))
    with pytest.raises(ValueError, match="allow_saving_images"):
        pipeline.save_pretrained(tmp_path / "pipeline")
    assert not list(tmp_path.rglob("*prior*/*.safetensors"))


def test_the_vqvae_is_one_that_diffusers_alone_can_load(pipeline_folder):
    assert type(VQModel.from_pretrained(pipeline_folder, subfolder="vqvae")) is VQModel
