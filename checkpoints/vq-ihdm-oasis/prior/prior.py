# Made by `save_pretrained` from vq_ihdm.heat, vq_ihdm.prior.
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
    """`num_sigmas` blur widths from sigma_min to sigma_max, ascending and evenly spaced in log sigma, float64."""
    return torch.logspace(math.log10(sigma_min), math.log10(sigma_max), num_sigmas, dtype=torch.float64)


def surviving_modes(sigma: float, height: int, width: int, min_gain: float = 0.05) -> torch.Tensor:
    """Which modes keep at least `min_gain` of their amplitude under a blur of width sigma: (height, width) bool."""
    return heat_kernel(torch.tensor(sigma, dtype=torch.float64), height, width) >= min_gain


"""The blurry prior: where u_T comes from, without the training data."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin



class BlurryPrior(ModelMixin, ConfigMixin):
    """A Gaussian mixture over the DCT coefficients that survive the blur at sigma.

        k ~ weights,  s = means_k + factors_k eps,  coefficients = mean + s basis,  u_T = idct(coefficients)

    Three kinds share this form (see `vq_ihdm.fit_prior`):

    - `mixture` (the default): PCA basis and a few Gaussians with full covariance. Low-rank and smooth, it holds
      averages over many subjects and is what may be published.
    - `slice`: rank 0, the mean is one blurred training slice: the paper's prior.
    - `images`: one component of zero width for each training slice. It *is* the (blurred) training set, so it refuses
      to be saved unless `allow_saving_images` is set.

    The draws are free of noise; the delta of the forward process is added by whoever samples.

    Args:
        kind: `mixture`, `slice` or `images`.
        code_dim, height, width: D and the grid of codes.
        sigma: blur width in grid cells to which u_T belongs.
        num_modes: M, retained DCT modes.
        rank: R, dimension of the PCA space.
        num_components, factor_rank: mixture components, and the columns of their covariance factors.
        variance_kept: share of the variance of the training u_T inside the PCA space.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        kind: str,
        code_dim: int,
        height: int,
        width: int,
        sigma: float,
        num_modes: int,
        rank: int,
        num_components: int,
        factor_rank: int,
        variance_kept: float,
    ):
        super().__init__()
        self.allow_saving_images = False
        self.register_buffer("modes", torch.zeros(num_modes, dtype=torch.long))  # flat index into the H x W modes
        self.register_buffer("mean", torch.zeros(code_dim * num_modes))
        self.register_buffer("basis", torch.zeros(rank, code_dim * num_modes))
        self.register_buffer("weights", torch.full((num_components,), 1 / num_components))
        self.register_buffer("means", torch.zeros(num_components, rank))
        self.register_buffer("factors", torch.zeros(num_components, rank, factor_rank))

    @property
    def sigma(self) -> float:
        """Blur width of the draws, in grid cells."""
        return self.config.sigma

    def sample(
        self, num_samples: int, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> torch.Tensor:
        """Draw u_T, (num_samples, D, H, W), in units of the standardised embeddings.

        Args:
            generator: one for all draws, or a list with one for each.
        """
        generators = generator if isinstance(generator, list) else [generator] * num_samples
        columns = self.factors.shape[-1]
        uniform, noise = [], []
        for g in generators:  # a draw must not depend on how many are drawn with it
            device = g.device if g is not None else self.device
            uniform.append(torch.rand((), device=device, generator=g, dtype=finest_dtype(device)))
            noise.append(torch.randn(columns, device=device, generator=g))
        uniform = torch.stack(uniform).to(finest_dtype(self.device)).to(self.device)
        return self(uniform, torch.stack(noise).to(self.device, self.dtype))

    def forward(self, uniform: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The u_T (B, D, H, W) that random numbers stand for.

        Args:
            uniform: (B,) in [0, 1): which component.
            noise: (B, factor_rank) standard normal: eps.
        """
        cumulative = self.weights.to(uniform.dtype).cumsum(0)
        component = (cumulative < uniform[:, None]).sum(-1).clamp_max(len(self.weights) - 1)
        scores = self.means[component] + (self.factors[component] @ noise[..., None])[..., 0]
        coefficients = (self.mean + scores @ self.basis).unflatten(-1, (self.config.code_dim, -1))
        height, width = self.config.height, self.config.width
        grid = coefficients.new_zeros(len(uniform), self.config.code_dim, height * width)
        grid[..., self.modes] = coefficients
        return idct(grid.unflatten(-1, (height, width)))

    def save_pretrained(self, save_directory, **kwargs):
        """As `ModelMixin.save_pretrained`.

        Raises:
            ValueError: the prior is made of training images and `allow_saving_images` was not set.
        """
        if self.config.kind == "images" and not self.allow_saving_images:
            raise ValueError(
                "a prior of kind 'images' holds blurred scans of the training subjects and is not saved; fit one of "
                "kind 'mixture', or set prior.allow_saving_images = True if the data may be passed on"
            )
        super().save_pretrained(save_directory, **kwargs)
