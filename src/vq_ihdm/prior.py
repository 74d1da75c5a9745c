"""The blurry prior: where u_T comes from, without the training data."""

import functools
import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from .covariates import covariate_features, nearest_covariates, vocabulary
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

    A `mixture` may be one over s and the features f of covariates together, means_k and factors_k then having F more
    rows. What is given of f conditions the draw, exactly and in closed form: component k has the weight
    weights_k N(f_given; k), and its Gaussian becomes the conditional one.

    The draws are free of noise; the delta of the forward process is added by whoever samples.

    Args:
        kind: `mixture`, `slice` or `images`.
        code_dim, height, width: D and the grid of codes.
        sigma: blur width in grid cells to which u_T belongs.
        num_modes: M, retained DCT modes.
        rank: R, dimension of the PCA space.
        num_components, factor_rank: mixture components, and the columns of their covariance factors.
        variance_kept: share of the variance of the training u_T inside the PCA space.
        covariates: the vocabulary (`Covariate` as dicts); None of a prior without.
        ranks: for each covariate pairs of a number as the mixture draws it and the training value of the same rank,
            between which draws are interpolated: a few Gaussians have a training set's mean age, and not its
            distribution. None of a category.
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
        covariates: list[dict] | None = None,
        ranks: list[list[list[float]]] | None = None,
    ):
        super().__init__()
        self.allow_saving_images = False
        self.known_covariates = vocabulary(covariates)
        dimension = rank + sum(covariate.num_features for covariate in self.known_covariates)
        self.register_buffer("modes", torch.zeros(num_modes, dtype=torch.long))  # flat index into the H x W modes
        self.register_buffer("mean", torch.zeros(code_dim * num_modes))
        self.register_buffer("basis", torch.zeros(rank, code_dim * num_modes))
        self.register_buffer("weights", torch.full((num_components,), 1 / num_components))
        self.register_buffer("means", torch.zeros(num_components, dimension))
        self.register_buffer("factors", torch.zeros(num_components, dimension, factor_rank))

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
        return self.draw(torch.full((num_samples, len(self.known_covariates)), math.nan), generator)[0]

    def draw(
        self, covariates: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw u_T together with the covariates that are not given, as both occur in the training set.

        Args:
            covariates: (N, C) table of `vq_ihdm.covariates`, NaN where not given; of any C, and of no effect, for a
                prior without covariates.
            generator: one for all draws, or a list with one for each.

        Returns:
            u_T (N, D, H, W) in units of the standardised embeddings, and the completed table.
        """
        generators = generator if isinstance(generator, list) else [generator] * len(covariates)
        columns = self.factors.shape[-1]
        uniform, noise = [], []
        for g in generators:  # a draw must not depend on how many are drawn with it
            device = g.device if g is not None else self.device
            uniform.append(torch.rand((), device=device, generator=g, dtype=finest_dtype(device)))
            noise.append(torch.randn(columns, device=device, generator=g))
        uniform = torch.stack(uniform).to(finest_dtype(self.device)).to(self.device)
        noise, covariates = torch.stack(noise).to(self.device, self.dtype), covariates.to(self.device)
        if not self.known_covariates:
            return self(uniform, noise)[0], covariates
        return self._draw_given(covariates, uniform, noise)

    def forward(self, uniform: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `draw`, nothing given, of the random numbers: u_T (B, D, H, W) and the table of covariates (B, C).

        Args:
            uniform: (B,) in [0, 1): which component.
            noise: (B, factor_rank) standard normal: eps.
        """
        component = self._component(self.weights.to(uniform.dtype)[None], uniform)
        scores, features = self._joint(component, noise).tensor_split([self.config.rank], dim=1)
        if not self.known_covariates:
            return self._state(scores), features  # of no dimension, as the table is of no columns
        table = nearest_covariates(self.known_covariates, features.to(uniform.dtype), self.config.ranks).to(noise)
        return self._state(scores), table

    def _draw_given(
        self, covariates: torch.Tensor, uniform: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `draw`, of the numbers that `forward` takes."""
        rank, dtype = self.config.rank, uniform.dtype
        wanted = covariate_features(self.known_covariates, covariates.to(dtype))
        factors = self.factors.to(dtype)
        covariance = factors @ factors[:, rank:].mT  # of scores and features with the features, (K, R + F, F)
        evidence = given_log_likelihood(wanted[:, None], self.means[:, rank:].to(dtype), covariance[:, rank:])
        component = self._component((self.weights.to(dtype).log() + evidence).softmax(1), uniform)
        draws = condition(self._joint(component, noise).to(dtype), wanted, covariance[component])
        drawn = nearest_covariates(self.known_covariates, draws[:, rank:], self.config.ranks).to(covariates)
        return self._state(draws[:, :rank].to(self.dtype)), torch.where(covariates.isnan(), drawn, covariates)

    def _component(self, weights: torch.Tensor, uniform: torch.Tensor) -> torch.LongTensor:
        """(B or 1, K) weights, (B,) uniform numbers -> (B,) which component."""
        return (weights.cumsum(1) < uniform[:, None]).sum(-1).clamp_max(weights.shape[1] - 1)

    def _joint(self, component: torch.LongTensor, noise: torch.Tensor) -> torch.Tensor:
        """Scores and features side by side, (B, R + F)."""
        return self.means[component] + (self.factors[component] @ noise[..., None])[..., 0]

    def _state(self, scores: torch.Tensor) -> torch.Tensor:
        """PCA scores (B, R) -> u_T (B, D, H, W)."""
        coefficients = (self.mean + scores @ self.basis).unflatten(-1, (self.config.code_dim, -1))
        height, width = self.config.height, self.config.width
        grid = coefficients.new_zeros(*coefficients.shape[:2], height * width)
        grid[..., self.modes] = coefficients
        return idct(grid.unflatten(-1, (height, width)))

    @functools.wraps(ModelMixin.save_pretrained)  # whose keywords a pipeline looks up before it passes them on
    def save_pretrained(self, save_directory, *args, **kwargs):
        """As `ModelMixin.save_pretrained`.

        Raises:
            ValueError: the prior is made of training images and `allow_saving_images` was not set.
        """
        if self.config.kind == "images" and not self.allow_saving_images:
            raise ValueError(
                "a prior of kind 'images' holds blurred scans of the training subjects and is not saved; fit one of "
                "kind 'mixture', or set prior.allow_saving_images = True if the data may be passed on"
            )
        super().save_pretrained(save_directory, *args, **kwargs)


def given_log_likelihood(wanted: torch.Tensor, means: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """log N of those dimensions that are given, up to a constant that depends only on which they are.

    Args:
        wanted: (..., F), NaN where not given.
        means, covariance: (..., F) and (..., F, F), float64; all three are broadcast.

    Returns:
        (...).
    """
    given = ~wanted.isnan()
    factor, whitened = whiten(torch.where(given, wanted - means, 0), covariance, given)
    return -0.5 * (whitened**2).sum((-2, -1)) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def condition(draws: torch.Tensor, wanted: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Turn draws of a Gaussian into draws of it given some of its last F dimensions (Matheron's rule).

        x + cov(x, f) cov(f)^-1 (wanted - f)  for f those of x that are given

    Args:
        draws: (N, S + F) of the joint Gaussian.
        wanted: (N, F), NaN where not given.
        covariance: (N, S + F, F) or (S + F, F), of all dimensions with the last F.
    """
    given = ~wanted.isnan()
    num_features = wanted.shape[-1]
    residual = torch.where(given, wanted - draws[:, -num_features:], 0)
    factor, whitened = whiten(residual, covariance[..., -num_features:, :], given)
    # Not torch.cholesky_solve, which is new on Apple's devices.
    solved = torch.linalg.solve_triangular(factor.mT, whitened, upper=True) * given[..., None]
    return draws + (covariance @ solved)[..., 0]


def whiten(
    residual: torch.Tensor, covariance: torch.Tensor, given: torch.BoolTensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The Cholesky factor L (..., F, F) of the covariance of what is given, and L^-1 residual, a column (..., F, 1)."""
    factor = torch.linalg.cholesky(restrict(covariance, given))
    return factor, torch.linalg.solve_triangular(factor, residual[..., None], upper=False)


def restrict(covariance: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """(..., F, F) with rows and columns of what is not given as in the identity: they then take no part."""
    both = given[..., :, None] & given[..., None, :]
    return torch.where(both, covariance, torch.eye(given.shape[-1]).to(covariance))
