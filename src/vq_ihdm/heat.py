"""Heat dissipation on a grid: the mathematics of the forward process, as pure functions.

With reflecting borders the cosine modes are eigenfunctions of the heat equation du/dt = laplace u. Mode (n, m) of an
H x W grid decays as exp(-lambda_nm t) with lambda_nm = (pi n / H)^2 + (pi m / W)^2, and running the equation for
t = sigma^2 / 2 equals a Gaussian blur of standard deviation sigma, in units of grid cells (Rissanen et al., 2023). The
snippet in VQ-IHDM has this lambda; the formula in its text, pi (n^2 / W^2 + m^2 / H^2), has pi for pi squared.

Every function keeps dtype and device of its input and can be differentiated.
"""

import math

import torch

WITHOUT_FLOAT64 = ("mps", "npu")  # types of device


def finest_dtype(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    return torch.float32 if torch.device(device).type in WITHOUT_FLOAT64 else torch.float64


def dct_basis(size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> torch.Tensor:
    """The orthonormal DCT-II as a matrix (size, size): row n is mode n, so `basis @ u` transforms a column u."""
    position = torch.arange(size, dtype=torch.float64) + 0.5
    mode = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * torch.outer(mode, position)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(dtype).to(device)  # one after the other: not every device has float64


def dct(u: torch.Tensor) -> torch.Tensor:
    """Orthonormal 2-D DCT-II over the last two axes, (..., H, W) -> (..., H, W); scipy's `dctn(norm="ortho")`."""
    height, width = u.shape[-2:]
    return dct_basis(height, u.dtype, u.device) @ u @ dct_basis(width, u.dtype, u.device).T


def idct(coefficients: torch.Tensor) -> torch.Tensor:
    """Inverse of `dct`."""
    height, width = coefficients.shape[-2:]
    basis_h = dct_basis(height, coefficients.dtype, coefficients.device)
    return basis_h.T @ coefficients @ dct_basis(width, coefficients.dtype, coefficients.device)


def heat_kernel(sigma: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Gain exp(-lambda_nm sigma^2 / 2) of every mode: (...) sigmas in grid cells -> (..., height, width) in [0, 1]."""
    lambda_h = (math.pi * torch.arange(height, dtype=sigma.dtype, device=sigma.device) / height) ** 2
    lambda_w = (math.pi * torch.arange(width, dtype=sigma.dtype, device=sigma.device) / width) ** 2
    t = sigma[..., None, None] ** 2 / 2
    return torch.exp(-(lambda_h[:, None] + lambda_w[None, :]) * t)


def blur(u: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """Run the heat equation on u for t = sigma^2 / 2.

    Args:
        u: (B, D, H, W).
        sigma: blur width in grid cells, one for all or one for each of the B fields; 0 leaves u as it is.

    Returns:
        (B, D, H, W). Conserves every channel's mean; blur(blur(u, a), b) = blur(u, sqrt(a^2 + b^2)).
    """
    sigma = torch.as_tensor(sigma, dtype=u.dtype, device=u.device).expand(u.shape[0])
    return idct(dct(u) * heat_kernel(sigma, *u.shape[-2:])[:, None])


def sigma_schedule(sigma_min: float, sigma_max: float, num_sigmas: int) -> torch.Tensor:
    """`num_sigmas` blur widths from sigma_min to sigma_max, ascending and evenly spaced in log sigma, float64.

    A single one is sigma_max.
    """
    # From the upper end, which is what a single one has to be.
    return torch.logspace(math.log10(sigma_max), math.log10(sigma_min), num_sigmas, dtype=torch.float64).flip(0)


def surviving_modes(sigma: float, height: int, width: int, min_gain: float = 0.05) -> torch.Tensor:
    """Which modes keep at least `min_gain` of their amplitude under a blur of width sigma: (height, width) bool."""
    return heat_kernel(torch.tensor(sigma, dtype=torch.float64), height, width) >= min_gain
