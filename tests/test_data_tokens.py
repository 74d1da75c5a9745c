"""A data set as code indices: those of each slice, cached by content."""

from itertools import product

import pytest
import torch
from conftest import CODE_DIM, HEIGHT, NUM_CODES, WIDTH, tiny_vq_model
from datasets import load_dataset

import vq_ihdm.data.tokens
from vq_ihdm.code_indices import encode_images
from vq_ihdm.data.images import SliceTensors
from vq_ihdm.data.tokens import MAX_SHIFT, encode_split
from vq_ihdm.vqgan.model import create_vq_model, load_vq_model


@pytest.fixture
def split(template_set, tmp_path, monkeypatch):
    monkeypatch.setattr(vq_ihdm.data.tokens, "CACHE", tmp_path / "tokens")
    return load_dataset(str(template_set))["train"]


def test_tokens_are_the_codes_of_each_slice_and_its_mirror_image(split):
    vqvae, images = tiny_vq_model(), SliceTensors(split)
    codes = encode_split(vqvae, split, mirrored=True)
    assert codes.shape == (32, 2, HEIGHT, WIDTH) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < NUM_CODES
    with torch.no_grad():
        for index in (0, 7, 31):
            for view, image in enumerate([images[index], images[index].flip(-1)]):
                nearest = vqvae.quantize(vqvae.encode(image[None]).latents)[2][2]
                assert torch.equal(codes[index, view].flatten(), nearest)
    assert torch.equal(encode_split(vqvae, split, mirrored=False), codes[:, :1])


def test_shifted_views_are_the_codes_of_slices_that_stand_elsewhere(split):
    vqvae, images = tiny_vq_model(), SliceTensors(split)
    codes = encode_split(vqvae, split, mirrored=True, shifted_views=2)
    assert codes.shape == (32, 6, HEIGHT, WIDTH)
    assert torch.equal(codes[:, :2], encode_split(vqvae, split, mirrored=True))
    places = set()
    for index in (0, 7, 31):
        for view in range(2, 6):
            image = images[index].flip(-1) if view % 2 else images[index]
            padded = torch.nn.functional.pad(image[None], [MAX_SHIFT] * 4, mode="replicate")
            found = [
                (y, x)
                for y, x in product(range(2 * MAX_SHIFT + 1), repeat=2)
                if torch.equal(encode_images(vqvae, padded[..., y : y + 32, x : x + 32])[0], codes[index, view])
            ]
            assert found
            places.update(found)
    assert len(places) > 6


def test_half_precision_finds_the_codes_of_its_latents(split):
    """Among many codes the distances of bfloat16 have ties that are none."""
    torch.manual_seed(0)
    vqvae = create_vq_model(32, [8, 8, 8], 1, CODE_DIM, CODE_DIM, 4096, 4).eval().to(torch.bfloat16)
    torch.nn.init.normal_(vqvae.quantize.embedding.weight, std=0.5)
    images = torch.stack([SliceTensors(split)[index] for index in range(8)]).to(torch.bfloat16)
    with torch.no_grad():
        latents = vqvae.encode(images).latents.movedim(1, -1).flatten(0, 2).double()
    codebook = vqvae.quantize.embedding.weight.double()
    distances = (latents[:, None] - codebook).square().sum(-1)
    found = encode_images(vqvae, images).flatten()
    torch.testing.assert_close(distances.gather(1, found[:, None])[:, 0], distances.amin(1), rtol=1e-3, atol=1e-5)
    coarse = vqvae.quantize(vqvae.encode(images).latents)[2][2]
    assert (distances.gather(1, coarse[:, None])[:, 0] > 1.01 * distances.amin(1)).any()


def test_tokens_are_cached_by_content(split, tmp_path):
    vqvae = tiny_vq_model()
    codes = encode_split(vqvae, split, mirrored=False)
    (cached,) = (tmp_path / "tokens").iterdir()
    written = cached.stat().st_mtime_ns

    for place in ("here", "there"):  # the same weights, wherever they lie
        vqvae.save_pretrained(tmp_path / place)
        assert torch.equal(encode_split(load_vq_model(tmp_path / place), split, mirrored=False), codes)
    assert list((tmp_path / "tokens").iterdir()) == [cached] and cached.stat().st_mtime_ns == written

    encode_split(vqvae, split, mirrored=True)
    encode_split(vqvae, split, mirrored=False, shifted_views=1)  # of still slices, too, which are cached
    encode_split(vqvae, split.select(range(31)), mirrored=False)
    vqvae.encoder.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    encode_split(vqvae, split, mirrored=False)
    assert len(list((tmp_path / "tokens").iterdir())) == 5


def flipped(data: bytes) -> bytes:
    """A bit of the last code."""
    return data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: flipped(data)])
def test_a_damaged_cache_is_encoded_again(split, tmp_path, damage):
    codes = encode_split(tiny_vq_model(), split, mirrored=False)
    (cached,) = (tmp_path / "tokens").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    assert torch.equal(encode_split(tiny_vq_model(), split, mirrored=False), codes)
    assert cached.read_bytes() == whole
