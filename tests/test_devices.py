"""What runs on every device: here `meta` stands for one that has no float64, as Apple's MPS."""

import pytest
import torch
from conftest import CODE_DIM, HEIGHT, NUM_CODES, WIDTH, tiny_conditional, tiny_vq_ihdm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vq_ihdm import heat
from vq_ihdm.code_sampling import code_probabilities, draw_codes, rand_each

META = torch.device("meta")


class WithoutFloat64(TorchDispatchMode):
    """Fails where an operation leaves float64 on `meta`, or is none of MPS."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if operation.name().startswith(("aten::logspace", "aten::cholesky_solve")) and result.device == META:
            raise TypeError(f"there is no {operation}")
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device == META and tensor.dtype == torch.float64:
                raise TypeError(f"{operation} made float64")
        return result


@pytest.fixture
def without_float64(monkeypatch):
    monkeypatch.setattr(heat, "WITHOUT_FLOAT64", ("meta",))
    with WithoutFloat64():
        yield


def test_the_check_notices_float64(without_float64):
    with pytest.raises(TypeError, match="made float64"):
        torch.zeros(2, device=META).double()


def test_codes_are_drawn_without_float64(without_float64):
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    uniform = rand_each((2, HEIGHT * WIDTH), 2, generators, META)
    logits = torch.empty(2, HEIGHT * WIDTH, NUM_CODES, device=META)
    for temperature, top_p in ((1.0, 1.0), (0.0, 1.0), (0.7, 0.9)):
        codes = draw_codes(code_probabilities(logits, temperature, top_p), uniform[:, 0])
        assert codes.shape == (2, HEIGHT * WIDTH) and codes.device == META


@pytest.mark.parametrize("pipeline", [tiny_vq_ihdm, tiny_conditional])
def test_the_prior_draws_without_float64(without_float64, pipeline):
    prior = pipeline().prior.to(META)
    draws = prior.sample(2, [torch.Generator().manual_seed(seed) for seed in range(2)])
    assert draws.shape == (2, CODE_DIM, HEIGHT, WIDTH) and draws.device == META


def test_the_denoiser_needs_no_float64(without_float64):
    denoiser = tiny_vq_ihdm().denoiser.to(META)
    state, sigma = torch.empty(2, CODE_DIM, HEIGHT, WIDTH, device=META), torch.full((2,), 2.0, device=META)
    assert denoiser(state, sigma).logits.shape == (2, HEIGHT, WIDTH, NUM_CODES)


def test_blur_needs_no_float64(without_float64):
    assert heat.blur(torch.empty(2, CODE_DIM, HEIGHT, WIDTH, device=META), 2.0).dtype == torch.float32
