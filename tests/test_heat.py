"""Heat dissipation as mathematics."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from vq_ihdm.heat import blur, dct, dct_basis, heat_kernel, idct, sigma_schedule, surviving_modes

GRIDS = [(11, 11), (8, 8), (5, 9), (7, 1)]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


def field(grid: tuple[int, int], dtype: torch.dtype = torch.float64, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 4, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sigma", [0.5, 3.0, 24.0])
def test_blur_is_the_snippet_of_the_paper(grid, dtype, sigma):
    """dctn, times exp(-lambda t), idctn: the paper's listing in scipy's own terms, in float64."""
    u = field(grid, dtype)
    height, width = grid
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    frequencies_squared = (np.pi * rows / height) ** 2 + (np.pi * columns / width) ** 2
    coefficients = dctn(u.double().numpy(), axes=(-2, -1), norm="ortho")
    expected = idctn(coefficients * np.exp(-frequencies_squared * sigma**2 / 2), axes=(-2, -1), norm="ortho")
    blurred = blur(u, sigma)
    assert blurred.dtype == dtype
    torch.testing.assert_close(blurred.double(), torch.from_numpy(expected), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("grid", GRIDS)
def test_dct_is_scipys_and_orthonormal(grid):
    u = field(grid)
    torch.testing.assert_close(dct(u), torch.from_numpy(dctn(u.numpy(), axes=(-2, -1), norm="ortho")))
    torch.testing.assert_close(idct(dct(u)), u)
    for size in grid:
        basis = dct_basis(size, torch.float64)
        torch.testing.assert_close(basis @ basis.T, torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("grid", GRIDS)
def test_heat_is_conserved_and_evens_out(grid):
    u = field(grid)
    mean = u.mean((-2, -1))
    for sigma in (0.7, 4.0):
        torch.testing.assert_close(blur(u, sigma).mean((-2, -1)), mean)
    deviations = [blur(u, sigma).var((-2, -1), unbiased=False) for sigma in (0, 0.5, 1, 2, 4, 8)]
    assert all((later <= earlier).all() for earlier, later in zip(deviations, deviations[1:], strict=False))
    torch.testing.assert_close(blur(u, 1e3), mean[..., None, None].expand_as(u))


def test_blurs_add_up_in_time():
    u = field((6, 10))
    for a, b in [(0.5, 0.5), (1.2, 3.0), (0.0, 2.0)]:
        torch.testing.assert_close(blur(blur(u, a), b), blur(u, math.hypot(a, b)))


def test_no_blur_is_the_identity():
    u = field((6, 10))
    torch.testing.assert_close(blur(u, 0.0), u)


def test_each_field_has_its_own_sigma():
    u, sigmas = field((6, 10)), torch.tensor([0.0, 1.5, 9.0])
    torch.testing.assert_close(blur(u, sigmas), torch.cat([blur(u[i : i + 1], sigmas[i]) for i in range(3)]))


def test_gradients_of_field_and_sigma():
    u = field((3, 4), batch=2).requires_grad_()
    sigma = torch.tensor([0.8, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(blur, (u, sigma))


def test_blur_stays_on_the_device_of_its_input():
    """A constant left on the CPU would fail to combine with a tensor of another device."""
    u = torch.empty(2, 4, 6, 10, device="meta")
    assert blur(u, 2.0).device.type == "meta"
    assert blur(u, torch.empty(2, device="meta")).shape == u.shape


def test_kernel_is_a_gaussian_blur():
    """Far from the borders an impulse spreads as a Gaussian of standard deviation sigma, in grid cells."""
    u = torch.zeros(1, 1, 65, 33, dtype=torch.float64)
    u[0, 0, 32, 16] = 1
    rows, columns = torch.arange(65) - 32.0, torch.arange(33) - 16.0
    sigma = 3.0
    gaussian = torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    torch.testing.assert_close(blur(u, sigma)[0, 0], gaussian.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("sigma", "modes", "first_gain"), [(8.25, 3, 0.06), (5.5, 4, 0.29), (4.0, 6, 0.52), (3.0, 9, 0.69), (2.0, 20, 0.85)]
)
def test_surviving_modes_on_the_grid_of_the_paper(sigma, modes, first_gain):
    assert surviving_modes(sigma, 11, 11).sum() == modes
    assert heat_kernel(torch.tensor(sigma), 11, 11)[0, 1].item() == pytest.approx(first_gain, abs=0.006)


def test_only_the_mean_survives_the_sigma_of_the_paper():
    kernel = heat_kernel(torch.tensor(24.0, dtype=torch.float64), 11, 11)
    assert surviving_modes(24.0, 11, 11).nonzero().tolist() == [[0, 0]]
    assert kernel[0, 1].item() == pytest.approx(6e-11, rel=0.1)


def test_sigma_schedule_is_evenly_spaced_in_log():
    sigmas = sigma_schedule(0.5, 24.0, 200)
    assert len(sigmas) == 200
    torch.testing.assert_close(sigmas[[0, -1]], torch.tensor([0.5, 24.0], dtype=torch.float64))
    ratios = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 48 ** (1 / 199)))
    torch.testing.assert_close(sigma_schedule(0.5, 24.0, 1), torch.tensor([24.0], dtype=torch.float64))  # sigma_T
