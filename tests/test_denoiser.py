"""The denoiser as a `PreTrainedModel`, and what its output depends on."""

import pytest
import torch
import torch.nn.functional as F
from conftest import CODE_DIM, HEIGHT, NUM_CODES, WIDTH, tiny_denoiser
from safetensors.torch import load_file

from vq_ihdm import VQIHDMDenoiser


def inputs(batch: int = 3):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, CODE_DIM, HEIGHT, WIDTH, generator=generator)
    known = torch.rand(batch, HEIGHT, WIDTH, generator=generator) < 0.3
    return sample, torch.full((batch,), 3.0), known


@torch.no_grad()
def test_logits_for_every_code_at_every_position():
    for height, width in [(8, 8), (3, 5)]:
        denoiser = tiny_denoiser(height=height, width=width)
        out = denoiser(torch.randn(2, CODE_DIM, height, width), torch.full((2,), 3.0))
        assert out.logits.shape == (2, height, width, NUM_CODES)
        assert torch.isfinite(out.logits).all()


@torch.no_grad()
def test_return_dict_and_default_of_known():
    denoiser, (sample, sigma, _) = tiny_denoiser(), inputs()
    logits = denoiser(sample, sigma).logits
    (as_tuple,) = denoiser(sample, sigma, known=torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool), return_dict=False)
    assert torch.equal(logits, as_tuple)


@torch.no_grad()
@pytest.mark.parametrize("changed", ["known", "sigma", "amplitude", "position"])
def test_output_depends_on(changed):
    denoiser, (sample, sigma, known) = tiny_denoiser(), inputs()
    before = denoiser(sample, sigma, known=known).logits
    if changed == "known":
        after = denoiser(sample, sigma, known=~known).logits
    elif changed == "sigma":
        after = denoiser(sample, sigma * 1.05, known=known).logits
    elif changed == "amplitude":  # BERT's layer norm would make a scaled state the same state
        after = denoiser(1.2 * sample, sigma, known=known).logits
    else:  # the same state elsewhere: without position embeddings the logits would merely move along
        after = denoiser(sample.roll(1, -1), sigma, known=known.roll(1, -1)).logits.roll(-1, -2)
    # A change of the input that matters moves the output by far more than rounding.
    assert (after - before).std() > 1e-4 * before.std()


@torch.no_grad()
def test_every_position_sees_every_other():
    denoiser, (sample, sigma, _) = tiny_denoiser(), inputs(1)
    disturbed = sample.clone()
    disturbed[..., 0, 0] += 1
    changed = (denoiser(sample, sigma).logits != denoiser(disturbed, sigma).logits).any(-1)
    assert changed.all()


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch():
    denoiser, (sample, sigma, known) = tiny_denoiser(), inputs()
    together = denoiser(sample, sigma, known=known).logits
    alone = denoiser(sample[1:2], sigma[1:2], known=known[1:2]).logits
    torch.testing.assert_close(alone, together[1:2])


def test_every_parameter_gets_a_gradient():
    """`DistributedDataParallel` stops at a parameter without one."""
    denoiser, (sample, sigma, known) = tiny_denoiser().train(), inputs()
    codes = torch.randint(NUM_CODES, known.shape)
    F.cross_entropy(denoiser(sample, sigma, known=known).logits.flatten(0, 2), codes.flatten()).backward()
    without = [name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.any()]
    # The attention's softmax is invariant to a constant: the bias of the keys gets a gradient of rounding only.
    assert [name for name in without if not name.endswith("key.bias")] == []
    assert all(p.grad is not None for p in denoiser.parameters())


def test_code_0_is_trained_like_any_other():
    """BERT's `padding_idx=0` would leave it out."""
    denoiser, (sample, sigma, _) = tiny_denoiser(), inputs()
    codes = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.long)
    logits = denoiser(sample, sigma).logits
    F.cross_entropy(logits.flatten(0, 2), codes.flatten()).backward()
    expected = (logits.softmax(-1)[..., 0].mean() - 1).item()
    assert denoiser.head.bias.grad[0].item() == pytest.approx(expected, rel=1e-4)
    assert denoiser.head.weight.grad[0].any()
    assert denoiser.embed_codes(codes).any()


def test_embed_codes_looks_up():
    denoiser = tiny_denoiser()
    codes = torch.randint(NUM_CODES, (2, HEIGHT, WIDTH))
    embeddings = denoiser.embed_codes(codes)
    assert embeddings.shape == (2, CODE_DIM, HEIGHT, WIDTH)
    assert torch.equal(embeddings[1, :, 2, 3], denoiser.code_embeddings[codes[1, 2, 3]])


def test_round_trip_bit_for_bit(tmp_path):
    denoiser = tiny_denoiser(dropout=0.3)
    denoiser.save_pretrained(tmp_path)
    loaded = VQIHDMDenoiser.from_pretrained(tmp_path)
    assert not loaded.training
    assert {k: v for k, v in loaded.config.to_dict().items() if k != "_name_or_path"} == {
        k: v for k, v in denoiser.config.to_dict().items() if k != "_name_or_path"
    }
    assert loaded.state_dict().keys() == denoiser.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in denoiser.state_dict().items())
    sample, sigma, known = inputs()
    with torch.no_grad():
        assert torch.equal(loaded(sample, sigma, known=known).logits, denoiser(sample, sigma, known=known).logits)


def test_the_standardised_codebook_travels_with_the_weights(tmp_path):
    denoiser = tiny_denoiser()
    denoiser.save_pretrained(tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["code_embeddings"], denoiser.code_embeddings)


def test_config_of_the_paper_by_default():
    config = VQIHDMDenoiser.config_class()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (512, 24, 8)
    assert (config.num_codes, config.height, config.width) == (1024, 11, 11)


@torch.no_grad()
def test_the_neighbourhood_shows_positions_what_is_near_and_whether_it_is_known():
    denoiser, (sample, sigma, known) = tiny_denoiser(neighbourhood_size=3), inputs(1)
    seen = denoiser.neighbourhood(torch.cat([sample, known[:, None].float()], 1))
    for change in ("state", "known"):
        disturbed, flipped = sample.clone(), known.clone()
        if change == "state":
            disturbed[..., 4, 3] += 1
        else:
            flipped[..., 4, 3] ^= True
        after = denoiser.neighbourhood(torch.cat([disturbed, flipped[:, None].float()], 1))
        changed = (after != seen).any(1)[0]
        assert changed[2:7, 1:6].all() and changed.sum() == 25  # two convolutions of size 3 reach two positions far
        difference = denoiser(disturbed, sigma, known=flipped).logits - denoiser(sample, sigma, known=known).logits
        assert (difference[0, 4, 4] != 0).any()
    assert not hasattr(tiny_denoiser(), "neighbourhood")
