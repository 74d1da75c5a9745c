# Made by `save_pretrained` from vq_ihdm.covariates, vq_ihdm.heat, vq_ihdm.prior.
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin


"""What a model can be asked for: its covariates with their ranges and categories, and how they become numbers.

A table of covariates is a tensor (N, C) with a column for each: numbers as they are, categories by their index, NaN
where nothing is given. The vocabulary, a list of `Covariate`, travels as plain dicts in the configs of the components.
"""


MARGIN = 0.1  # how far a number may lie outside of the training range, as a share of that range
LEVEL_FEATURES = 3  # cosines of a level: anatomy does not change linearly along the head
LEVEL_GRID = 1001  # levels a draw is rounded to


@dataclass(frozen=True)
class Covariate:
    """One covariate of the training set.

    Args:
        name: as the column of the set.
        kind: `continuous`, `category`, or `level`: a position in [0, 1] on which the image depends in no linear way.
        low, high: range of the training values, rounded outwards; of a category meaningless.
        mean, std: of the training values of a continuous one.
        categories: names of a category, in the order of their indices.
        degree: of the polynomial by which an image depends on a continuous one: ventricles widen late in life. (Models
            of earlier versions have 1.)
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    categories: Sequence[str] = ()
    degree: int = 1

    @property
    def num_features(self) -> int:
        """Dimensions of `features`."""
        return {"continuous": self.degree, "level": LEVEL_FEATURES, "category": len(self.categories)}[self.kind]

    def encode(self, value: Any) -> float:
        """A value as a user writes it -> the number in a table; None, not given, becomes NaN.

        Raises:
            ValueError: no number, a category that the training set did not have, or a number outside of its range by
                more than `MARGIN` of that range, of a level at all.
        """
        value = value.item() if hasattr(value, "item") else value
        if value is None:
            return math.nan
        if self.kind == "category":
            name = f"{value:g}" if isinstance(value, (int, float)) else str(value)
            if name not in self.categories:
                raise ValueError(f"{self.name} is one of {', '.join(self.categories)}, not {name}")
            return float(self.categories.index(name))
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.name} is a number, not {value!r}") from None
        margin = 0 if self.kind == "level" else MARGIN * (self.high - self.low)  # beyond a level there is nothing
        if not self.low - margin <= number <= self.high + margin:
            raise ValueError(
                f"{self.name} was {self.low:g} to {self.high:g} in the training set; {number:g} is outside of that"
                + f" by more than {margin:g}" * (margin > 0)
            )
        return number

    def decode(self, number: float) -> str | float | None:
        """Inverse of `encode`, to the six digits that a table in float32 has."""
        if math.isnan(number):
            return None
        return self.categories[int(number)] if self.kind == "category" else float(f"{number:.6g}")

    def features(self, values: torch.Tensor) -> torch.Tensor:
        """(N,) numbers -> (N, num_features): Hermite polynomials of the standardised number, uncorrelated and of unit
        variance where it is normal; cosines of a level; or one-hot. NaN stays NaN."""
        if self.kind == "continuous":
            return hermite_polynomials((values - self.mean) / self.std, self.degree)
        if self.kind == "level":
            return torch.cos(math.pi * values.clamp(0, 1)[:, None] * _counting(1, LEVEL_FEATURES, values))
        one_hot = (values[:, None] == _counting(0, len(self.categories) - 1, values)).to(values.dtype)
        return torch.where(values.isnan()[:, None], values[:, None], one_hot)

    def nearest_values(self, features: torch.Tensor, ranks: Sequence[Sequence[float]] = ()) -> torch.Tensor:
        """(N, num_features) -> (N,) values inside the training range that have the nearest features.

        Args:
            ranks: pairs (x, y), both rising, by which the number x of such features stands for the value y.
        """
        if self.kind == "category":
            return features.argmax(1).to(features.dtype)
        return interpolate(self.nearest_numbers(features), ranks).clamp(self.low, self.high)

    def nearest_numbers(self, features: torch.Tensor) -> torch.Tensor:
        """As `nearest_values` of no category; those of a continuous one may lie outside of the training range."""
        if self.kind == "continuous":
            return features[:, 0] * self.std + self.mean
        levels = torch.linspace(self.low, self.high, LEVEL_GRID, dtype=features.dtype, device=features.device)
        return levels[torch.cdist(features, self.features(levels)).argmin(1)]


def hermite_polynomials(values: torch.Tensor, degree: int) -> torch.Tensor:
    """He_1 ... He_degree, each over the root of its factorial: (N,) -> (N, degree)."""
    polynomials = [torch.ones_like(values), values]
    for k in range(1, degree):
        polynomials.append(values * polynomials[k] - k * polynomials[k - 1])
    return torch.stack([polynomials[k] / math.sqrt(math.factorial(k)) for k in range(1, degree + 1)], dim=1)


def interpolate(numbers: torch.Tensor, pairs: Sequence[Sequence[float]]) -> torch.Tensor:
    """The piecewise linear function through `pairs`, rising in x, flat beyond them; without any, the numbers."""
    if not pairs:
        return numbers
    steps = ((d - b) * ((numbers - a) / (c - a)).clamp(0, 1) for (a, b), (c, d) in itertools.pairwise(pairs))
    return pairs[0][1] + sum(steps)


def vocabulary(entries: Sequence[Mapping[str, Any]] | None) -> tuple[Covariate, ...]:
    """The covariates in a component's config; none of an unconditional model."""
    return tuple(Covariate(**{**entry, "categories": tuple(entry["categories"])}) for entry in entries or ())


def encode_covariates(known: Sequence[Covariate], given: Mapping[str, Any] | None, num_images: int) -> torch.Tensor:
    """What a user asks for as a table (num_images, C), float32.

    Args:
        known: the model's vocabulary.
        given: any subset of it, by name: a value for all images, or a list, array or tensor with one for each; None is
            not given.

    Raises:
        ValueError: no mapping, a covariate that is not known, a list of another length, or see `Covariate.encode`.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"covariates are given by name, as {{'age': 70}}, not as {given!r}")
    given = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in (given or {}).items()}
    names = [covariate.name for covariate in known]
    for name, value in given.items():
        if name not in names:
            knows = f"it knows {', '.join(names)}" if names else "it was trained without covariates"
            raise ValueError(f"this model does not know the covariate {name}; {knows}")
        if isinstance(value, (list, tuple)) and len(value) != num_images:
            raise ValueError(f"{num_images} images need as many values of {name}, not {len(value)}")
    table = torch.full((num_images, len(known)), math.nan)
    for column, covariate in enumerate(known):
        value = given.get(covariate.name)
        values = value if isinstance(value, (list, tuple)) else [value] * num_images
        table[:, column] = torch.tensor([covariate.encode(value) for value in values])
    return table


def decode_covariates(known: Sequence[Covariate], table: torch.Tensor) -> dict[str, list]:
    """A table (N, C) as a list of N values for each name, None where nothing is given."""
    return {
        covariate.name: [covariate.decode(number) for number in table[:, column].tolist()]
        for column, covariate in enumerate(known)
    }


def covariate_features(known: Sequence[Covariate], table: torch.Tensor) -> torch.Tensor:
    """A table (N, C) -> the features of all its columns side by side, (N, F), NaN where nothing is given."""
    return torch.cat([covariate.features(table[:, column]) for column, covariate in enumerate(known)], dim=1)


def nearest_covariates(
    known: Sequence[Covariate], features: torch.Tensor, ranks: Sequence[Sequence[Sequence[float]]] | None = None
) -> torch.Tensor:
    """Features (N, F) -> the table (N, C) whose features are nearest, column by column; `ranks` of each if given."""
    parts = features.split([covariate.num_features for covariate in known], dim=1)
    columns = zip(known, parts, ranks or [()] * len(known), strict=True)
    columns = [covariate.nearest_values(part, pairs) for covariate, part, pairs in columns]
    return torch.stack(columns, dim=1)


def _counting(first: int, last: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(first, last + 1, dtype=like.dtype, device=like.device)


"""Heat dissipation on a grid: the mathematics of the forward process, as pure functions.

With reflecting borders the cosine modes are eigenfunctions of the heat equation du/dt = laplace u. Mode (n, m) of an
H x W grid decays as exp(-lambda_nm t) with lambda_nm = (pi n / H)^2 + (pi m / W)^2, and running the equation for
t = sigma^2 / 2 equals a Gaussian blur of standard deviation sigma, in units of grid cells (Rissanen et al., 2023). The
snippet in VQ-IHDM has this lambda; the formula in its text, pi (n^2 / W^2 + m^2 / H^2), has pi for pi squared.

Every function keeps dtype and device of its input and can be differentiated.
"""


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


"""The blurry prior: where u_T comes from, without the training data."""


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
