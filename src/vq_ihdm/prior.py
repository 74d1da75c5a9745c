"""The blurry prior: where u_T comes from, without the training data."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from .heat import finest_dtype, idct


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
