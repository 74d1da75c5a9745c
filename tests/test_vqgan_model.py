"""The tokenizer: encode, quantise, decode; its loss; what loads."""

import pytest
import torch
from conftest import CODE_DIM, NUM_CODES, tiny_vq_model
from diffusers import VQModel

from vq_ihdm.errors import InputError
from vq_ihdm.vqgan.codebook import (
    code_vectors,
    normalize_codebook,
)
from vq_ihdm.vqgan.model import TrainableVQModel, create_vq_model, downsampling_factor, load_vq_model


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_downsampling_factor(levels):
    model = create_vq_model(32, [8] * levels, 1, CODE_DIM, CODE_DIM, NUM_CODES, 4)
    factor = downsampling_factor(model)
    assert model.encode(torch.randn(1, 1, 32, 48)).latents.shape == (1, CODE_DIM, 32 // factor, 48 // factor)


def test_latent_channels_may_differ_from_the_dimension_of_a_code():
    model = TrainableVQModel(create_vq_model(32, [8, 8], 1, 16, 4, NUM_CODES, 4), l2_normalized_codes=False)
    reconstructions, _, codes, latents = model(torch.randn(2, 1, 32, 32))
    assert (reconstructions.shape, codes.shape, latents.shape) == ((2, 1, 32, 32), (2, 16, 16), (2, 4, 16, 16))


def test_forward_is_encode_quantise_decode():
    model, images = tiny_vq_model(), torch.randn(2, 1, 32, 32)
    reconstructions, loss, codes, latents = TrainableVQModel(model, l2_normalized_codes=False)(images)
    assert torch.equal(latents, model.encode(images).latents)
    assert torch.equal(codes.flatten(), torch.cdist(code_vectors(latents), model.quantize.embedding.weight).argmin(1))
    torch.testing.assert_close(reconstructions, model.decode(latents).sample)
    error = (latents - model.quantize.embedding(codes).permute(0, 3, 1, 2)).square().mean()
    torch.testing.assert_close(loss, 1.25 * error)


def test_beta_is_on_the_commitment_term_after_a_load_too(tmp_path):
    """Eq. 4: codes follow latents with weight 1, latents follow codes with weight 0.25."""
    tiny_vq_model().save_pretrained(tmp_path)
    for model in (tiny_vq_model(), load_vq_model(tmp_path)):
        latents = torch.randn(2, CODE_DIM, 4, 4, requires_grad=True)
        _, loss, (_, _, codes) = model.quantize(latents)
        on_latents, on_codebook = torch.autograd.grad(loss, (latents, model.quantize.embedding.weight))
        error = code_vectors(latents) - model.quantize.embedding(codes)
        torch.testing.assert_close(code_vectors(on_latents), 0.25 * 2 * error / error.numel())
        expected = torch.zeros_like(on_codebook).index_add_(0, codes, -2 * error / error.numel())
        torch.testing.assert_close(on_codebook, expected)


def test_gradients_reach_encoder_codebook_and_decoder():
    """With the loss of training every parameter is used: `DistributedDataParallel` asks for no less."""
    for l2_normalized_codes in (False, True):
        model = TrainableVQModel(tiny_vq_model(), l2_normalized_codes).train()
        images = torch.randn(2, 1, 32, 32)
        reconstructions, loss, _, _ = model(images)
        ((reconstructions - images).abs().mean() + loss).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_unit_norm_codes_need_no_normalised_latents():
    """What training picks from normalised latents a stock `VQModel` picks from the raw ones."""
    model = tiny_vq_model()
    normalize_codebook(model.quantize.embedding)
    torch.testing.assert_close(model.quantize.embedding.weight.norm(dim=1), torch.ones(NUM_CODES))
    images = torch.randn(4, 1, 32, 32)
    training = TrainableVQModel(model, l2_normalized_codes=True)
    _, _, codes, latents = training(images)
    torch.testing.assert_close(latents.norm(dim=1), torch.ones(4, 8, 8))
    raw = model.encode(images).latents
    assert (raw.norm(dim=1) - 1).abs().mean() > 0.05  # else nothing is tested
    assert torch.equal(model.quantize(raw)[2][2], codes.flatten())
    assert len(codes.unique()) > 3


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="holds no VQModel"):
        load_vq_model(tmp_path / "missing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no VQModel"):
        load_vq_model(tmp_path)


def test_a_loaded_model_is_the_saved_one_in_eval_mode(tmp_path):
    model = tiny_vq_model().train()
    model.save_pretrained(tmp_path)
    loaded = load_vq_model(tmp_path)
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_of_colours_is_refused_in_a_sentence(tmp_path):
    VQModel(in_channels=3, out_channels=3, block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a VQModel of 3 channels, not of grey images"):
        load_vq_model(tmp_path)
