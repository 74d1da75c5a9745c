# Made by `save_pretrained` from vq_ihdm.denoiser, vq_ihdm.covariates, vq_ihdm.heat, vq_ihdm.prior, vq_ihdm.scheduling_heat_dissipation, vq_ihdm.errors, vq_ihdm.weights, vq_ihdm.code_indices, vq_ihdm.pipelines.slice_pipeline, vq_ihdm.pipelines.token_pipeline, vq_ihdm.pipelines.pipeline_vq_ihdm.
"""The denoiser: BERT over the positions of a code grid."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertConfig, BertModel, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class VQIHDMDenoiserConfig(PretrainedConfig):
    """Configuration of a `VQIHDMDenoiser`.

    Args:
        num_codes: K, size of the codebook.
        code_dim: D, dimension of a code.
        height, width: the grid of codes.
        hidden_size, num_hidden_layers, num_attention_heads, dropout: of the `BertModel`; its intermediate size is
            4 x hidden_size. The defaults are the paper's.
    """

    model_type = "vq_ihdm_denoiser"

    def __init__(
        self,
        num_codes: int = 1024,
        code_dim: int = 256,
        height: int = 11,
        width: int = 11,
        hidden_size: int = 512,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 8,
        dropout: float = 0.1,
        **kwargs,
    ):
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.height = height
        self.width = width
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.dropout = dropout
        super().__init__(**kwargs)


@dataclass
class VQIHDMDenoiserOutput(ModelOutput):
    """`logits`: (B, H, W, K), of p(z_0 | u_t, revealed codes)."""

    logits: torch.FloatTensor | None = None


class VQIHDMDenoiser(PreTrainedModel):
    """Predicts the codes of all positions at once from the blurred embeddings, the reverse process of VQ-IHDM.

    BERT's own inputs serve: `inputs_embeds` are the projected state plus an embedding of sigma, `position_embeddings`
    the position on the grid, and `token_type_embeddings` the learned flag for revealed positions (type 1). The
    embedding layer normalises its input, which would lose the amplitude of a D-dimensional state; the projection is
    therefore non-linear and wider than D. Word embeddings and pooler do not exist: they would get no gradient,
    which distributed training does not forgive.

    The standardised codebook travels with the weights as the buffer `code_embeddings` (K, D).
    """

    config_class = VQIHDMDenoiserConfig
    base_model_prefix = "denoiser"
    main_input_name = "sample"

    def __init__(self, config: VQIHDMDenoiserConfig):
        super().__init__(config)
        self.input_projection = nn.Sequential(
            nn.Linear(config.code_dim, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.sigma_embedding = SigmaEmbedding(config.hidden_size)
        self.bert = BertModel(
            BertConfig(
                vocab_size=1,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=4 * config.hidden_size,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=0.0,  # dropout on the hidden states suffices, and fused kernels need this
                max_position_embeddings=config.height * config.width,
            ),
            add_pooling_layer=False,
        )
        self.bert.embeddings.word_embeddings = None
        self.head = nn.Linear(config.hidden_size, config.num_codes)
        self.register_buffer("code_embeddings", torch.zeros(config.num_codes, config.code_dim))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def embed_codes(self, code_indices: torch.LongTensor) -> torch.Tensor:
        """(B, H, W) code indices -> (B, D, H, W) standardised embeddings e_0."""
        return self.code_embeddings[code_indices].permute(0, 3, 1, 2).contiguous()

    def forward(
        self,
        sample: torch.Tensor,
        sigma: torch.Tensor,
        known: torch.BoolTensor | None = None,
        return_dict: bool = True,
    ) -> VQIHDMDenoiserOutput | tuple:
        """
        Args:
            sample: (B, D, H, W) the state: blurred embeddings, sharp ones where codes are known.
            sigma: (B,) blur width of the state in grid cells.
            known: (B, H, W) which positions are revealed; none when left out.
        """
        batch, _, height, width = sample.shape
        tokens = self.input_projection(sample.flatten(2).transpose(1, 2))
        tokens = tokens + self.sigma_embedding(sigma)[:, None]
        if known is None:
            known = torch.zeros(batch, height, width, dtype=torch.bool, device=sample.device)
        hidden = self.bert(inputs_embeds=tokens, token_type_ids=known.flatten(1).long()).last_hidden_state
        logits = self.head(hidden).view(batch, height, width, -1)
        return VQIHDMDenoiserOutput(logits=logits) if return_dict else (logits,)


class SigmaEmbedding(nn.Module):
    """(B,) sigma -> (B, hidden_size): Fourier features of log sigma, then a small network."""

    def __init__(self, hidden_size: int, num_frequencies: int = 32):
        super().__init__()
        # log sigma spans about 4 (0.5 to 24): periods from 16 down to an eighth tell neighbouring sigmas apart.
        self.num_frequencies = num_frequencies
        self.layers = nn.Sequential(
            nn.Linear(2 * num_frequencies, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        frequencies = torch.logspace(math.log10(1 / 16), math.log10(8), self.num_frequencies, device=sigma.device)
        angles = 2 * math.pi * sigma.float().log()[:, None] * frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.layers(features.to(self.layers[0].weight.dtype))


"""What a model can be asked for: its covariates with their ranges and categories, and how they become numbers.

A table of covariates is a tensor (N, C) with a column for each: numbers as they are, categories by their index, NaN
where nothing is given. The vocabulary, a list of `Covariate`, travels as plain dicts in the configs of the components.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

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
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    categories: Sequence[str] = ()

    @property
    def num_features(self) -> int:
        """Dimensions of `features`."""
        return {"continuous": 1, "level": LEVEL_FEATURES, "category": len(self.categories)}[self.kind]

    def encode(self, value: Any) -> float:
        """A value as a user writes it -> the number in a table; None, not given, becomes NaN.

        Raises:
            ValueError: no number, a category that the training set did not have, or a number outside of its range by
                more than `MARGIN` of that range.
        """
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
        margin = MARGIN * (self.high - self.low)
        if not self.low - margin <= number <= self.high + margin:
            raise ValueError(
                f"{self.name} was {self.low:g} to {self.high:g} in the training set; {number:g} is outside of that by "
                f"more than {margin:g}"
            )
        return number

    def decode(self, number: float) -> str | float | None:
        """Inverse of `encode`."""
        if math.isnan(number):
            return None
        return self.categories[int(number)] if self.kind == "category" else number

    def features(self, values: torch.Tensor) -> torch.Tensor:
        """(N,) numbers -> (N, num_features): standardised, cosines of a level, or one-hot; NaN stays NaN."""
        if self.kind == "continuous":
            return ((values - self.mean) / self.std)[:, None]
        if self.kind == "level":
            return torch.cos(math.pi * values.clamp(0, 1)[:, None] * _counting(1, LEVEL_FEATURES, values))
        one_hot = (values[:, None] == _counting(0, len(self.categories) - 1, values)).to(values.dtype)
        return torch.where(values.isnan()[:, None], values[:, None], one_hot)

    def nearest_values(self, features: torch.Tensor) -> torch.Tensor:
        """(N, num_features) -> (N,) numbers inside the training range whose features are nearest."""
        if self.kind == "continuous":
            return (features[:, 0] * self.std + self.mean).clamp(self.low, self.high)
        if self.kind == "category":
            return features.argmax(1).to(features.dtype)
        levels = torch.linspace(self.low, self.high, LEVEL_GRID, dtype=features.dtype, device=features.device)
        return levels[torch.cdist(features, self.features(levels)).argmin(1)]


def vocabulary(entries: Sequence[Mapping[str, Any]] | None) -> list[Covariate]:
    """The covariates in a component's config; none of an unconditional model."""
    return [Covariate(**entry) for entry in entries or ()]


def encode_covariates(
    known: Sequence[Covariate], given: Mapping[str, Any] | None, num_images: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """What a user asks for as a table (num_images, C), float32.

    Args:
        known: the model's vocabulary.
        given: any subset of it, by name: a value for all images, or a list with one for each; None is not given.

    Raises:
        ValueError: a covariate the model does not know, a list of another length, or see `Covariate.encode`.
    """
    given = given or {}
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
    return table.to(device)


def decode_covariates(known: Sequence[Covariate], table: torch.Tensor) -> dict[str, list]:
    """A table (N, C) as a list of N values for each name, None where nothing is given."""
    return {
        covariate.name: [covariate.decode(number) for number in table[:, column].tolist()]
        for column, covariate in enumerate(known)
    }


def covariate_features(known: Sequence[Covariate], table: torch.Tensor) -> torch.Tensor:
    """A table (N, C) -> the features of all its columns side by side, (N, F), NaN where nothing is given."""
    return torch.cat([covariate.features(table[:, column]) for column, covariate in enumerate(known)], dim=1)


def nearest_covariates(known: Sequence[Covariate], features: torch.Tensor) -> torch.Tensor:
    """Features (N, F) -> the table (N, C) whose features are nearest, column by column."""
    parts = features.split([covariate.num_features for covariate in known], dim=1)
    columns = [covariate.nearest_values(part) for covariate, part in zip(known, parts, strict=True)]
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

import math

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
            return self(uniform, noise), covariates
        return self._draw_given(covariates, uniform, noise)

    def forward(self, uniform: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The u_T (B, D, H, W) that random numbers stand for, nothing else given.

        Args:
            uniform: (B,) in [0, 1): which component.
            noise: (B, factor_rank) standard normal: eps.
        """
        component = self._component(self.weights.to(uniform.dtype)[None], uniform)
        return self._state(self._joint(component, noise)[:, : self.config.rank])

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
        drawn = nearest_covariates(self.known_covariates, draws[:, rank:]).to(covariates)
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
        grid = coefficients.new_zeros(len(scores), self.config.code_dim, height * width)
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


def given_log_likelihood(wanted: torch.Tensor, means: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """log N of those dimensions that are given, up to a constant that depends only on which they are.

    Args:
        wanted: (..., F), NaN where not given.
        means, covariance: (..., F) and (..., F, F), float64; all three are broadcast.

    Returns:
        (...).
    """
    given = ~wanted.isnan()
    residual = torch.where(given, wanted - means, 0)
    factor = torch.linalg.cholesky(restrict(covariance, given))
    whitened = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)[..., 0]
    return -0.5 * (whitened**2).sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


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
    factor = torch.linalg.cholesky(restrict(covariance[..., -num_features:, :], given))
    solved = torch.cholesky_solve(residual[..., None], factor) * given[..., None]
    return draws + (covariance @ solved)[..., 0]


def restrict(covariance: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """(..., F, F) with rows and columns of what is not given as in the identity: they then take no part."""
    both = given[..., :, None] & given[..., None, :]
    return torch.where(both, covariance, torch.eye(given.shape[-1]).to(covariance))


"""The forward and reverse process of discrete VQ-IHDM as a diffusers scheduler."""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput


OPEN = -1  # the code index of a position that is not revealed yet


@dataclass
class HeatDissipationSchedulerOutput(BaseOutput):
    """One reverse step.

    Args:
        prev_sample (`torch.Tensor` of shape `(B, D, H, W)`): the less blurred state: u_T where positions are still
            open, the sharp embeddings of the codes where they have been revealed.
        code_indices (`torch.LongTensor` of shape `(B, H, W)`): the codes revealed so far, `OPEN` elsewhere.
        pred_code_indices (`torch.LongTensor` of shape `(B, H, W)`): codes drawn for every position: what the step
            would return were it the last one.
    """

    prev_sample: torch.Tensor
    code_indices: torch.LongTensor
    pred_code_indices: torch.LongTensor


class HeatDissipationScheduler(SchedulerMixin, ConfigMixin):
    """Heat dissipation over code embeddings, and its reversal by revealing codes.

    Time runs from t = 0, sharp, to t = T = `num_train_timesteps`, most blurred. The forward process is

        u_t = blur(e_0, sigma_t) + delta * noise,  sigma_1 = sigma_min ... sigma_T = sigma_max in log steps,

    (VQ-IHDM, eq. 2, with delta = 0 there). The paper lists the sigmas from 24 down, the IHDM code from 0.5 up; here
    index and blur grow together.

    The reverse process starts from a draw of u_T. The denoiser gives p(z_0 | u_T) for every position at once, so
    one step draws all codes independently given u_T: the paper's sampler. With more steps u_T stays fixed as context
    and at each time t a share sin(pi t / 2T) of the positions, drawn at random, is left open; what has been revealed
    is shown to the denoiser as sharp embeddings, so that the remaining codes are drawn in its knowledge. (Blurring
    the drawn codes to a smaller sigma and going on, the obvious alternative, redraws at each step the low frequencies
    that u_T had fixed, and gets worse with more steps.)

    Args:
        num_train_timesteps: T.
        sigma_min, sigma_max: blur widths in grid cells.
        delta: standard deviation of the noise on u_t, in units of the standardised embeddings.
        temperature: divides the logits before a code is drawn; 0 takes the most likely code.
        top_p: draw from the smallest set of codes that holds this much probability.

    Raises:
        ValueError: numbers without sense.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 200,
        sigma_min: float = 0.5,
        sigma_max: float = 24.0,
        delta: float = 0.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        if not (0 < sigma_min <= sigma_max < math.inf and 0 <= delta < math.inf):
            raise ValueError(f"0 < sigma_min <= sigma_max and 0 <= delta, not {sigma_min}, {sigma_max} and {delta}")
        # sigmas[t] belongs to timestep t; t = 0 is the sharp state.
        self.sigmas = torch.cat(
            [torch.zeros(1), sigma_schedule(sigma_min, sigma_max, num_train_timesteps).to(torch.float32)]
        )
        self.set_timesteps(1)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Spread the steps evenly from T down; `timesteps[0]` is always T, the most blurred state."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}")
        T = self.config.num_train_timesteps
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.linspace(T, 0, num_inference_steps + 1, device=device)[:-1]

    def open_share(self, timestep: float) -> float:
        """Share of positions not yet revealed at time t."""
        return open_share(timestep / self.config.num_train_timesteps)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.LongTensor
    ) -> torch.Tensor:
        """The forward process: u_t = blur(e_0, sigma_t) + delta * noise.

        Args:
            original_samples: (B, D, H, W) standardised code embeddings e_0.
            noise: standard normal, of the same shape.
            timesteps: (B,) in 1..T.
        """
        sigmas = self.sigmas.to(original_samples.device)[timesteps]
        return blur(original_samples, sigmas.to(original_samples.dtype)) + self.config.delta * noise

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        code_indices: torch.LongTensor,
        code_embeddings: torch.Tensor,
        temperature: float | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> HeatDissipationSchedulerOutput | tuple:
        """Draw codes for the open positions and reveal as many as the next timestep asks for.

        Args:
            model_output: (B, H, W, K) logits of p(z_0 | u, revealed codes).
            timestep: the current t, one of `timesteps`.
            sample: (B, D, H, W) the current state.
            code_indices: (B, H, W) revealed codes, `OPEN` elsewhere.
            code_embeddings: (K, D) standardised embeddings of the codes.
            temperature, top_p: override the config's.
            generator: one, or a list with one for each image; then an image does not depend on its batch.
        """
        temperature = self.config.temperature if temperature is None else temperature
        top_p = self.config.top_p if top_p is None else top_p
        batch, height, width, _ = model_output.shape
        device = model_output.device

        probabilities = code_probabilities(model_output.flatten(1, 2), temperature, top_p)
        noise = rand_each((2, height * width), batch, generator, device)
        drawn = draw_codes(probabilities, noise[:, 0])
        is_open = code_indices.flatten(1) == OPEN
        drawn = torch.where(is_open, drawn, code_indices.flatten(1))

        # Positions are ranked, revealed ones first; those beyond the count for the next timestep stay open.
        rank = noise[:, 1].masked_fill(~is_open, -math.inf).argsort(dim=1).argsort(dim=1)
        step_index = int((self.timesteps.to(device) - torch.as_tensor(timestep, device=device)).abs().argmin())
        last = step_index + 1 == len(self.timesteps)
        next_timestep = 0.0 if last else float(self.timesteps[step_index + 1])
        num_open = int(self.open_share(next_timestep) * height * width)
        known = rank < height * width - num_open

        pred_code_indices = drawn.view(batch, height, width)
        code_indices = torch.where(known.view(batch, height, width), pred_code_indices, OPEN)
        revealed = code_embeddings[pred_code_indices].permute(0, 3, 1, 2).to(sample.dtype)
        prev_sample = torch.where((code_indices != OPEN)[:, None], revealed, sample)
        if not return_dict:
            return prev_sample, code_indices, pred_code_indices
        return HeatDissipationSchedulerOutput(prev_sample, code_indices, pred_code_indices)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def open_share(time: float) -> float:
    """Share sin(pi time / 2) of positions not yet revealed, of time t / T in [0, 1]: MaskGIT's cosine schedule."""
    return math.sin(math.pi / 2 * time)


def code_probabilities(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """(..., K) logits -> probabilities after temperature and nucleus truncation, not renormalised; `finest_dtype`.

    Raises:
        ValueError: temperature < 0 or top_p outside (0, 1].
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative, but is {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], but is {top_p}")
    dtype = finest_dtype(logits.device)
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(dtype)
    probabilities = (logits.to(dtype) / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of everything more likely
        probabilities = probabilities.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), 0)
    return probabilities


def draw_codes(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.LongTensor:
    """(...,) codes from (..., K) unnormalised probabilities and (...,) uniform numbers.

    Inverse transform sampling: one uniform number a position, whatever the size of the codebook.
    """
    cumulative = probabilities.cumsum(-1)
    return (cumulative <= uniform[..., None] * cumulative[..., -1:]).sum(-1).clamp_max(probabilities.shape[-1] - 1)


def rand_each(
    shape: tuple[int, ...],
    batch: int,
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
) -> torch.Tensor:
    """(batch, *shape) uniform numbers of `finest_dtype`; from a list of generators each image draws its own."""

    def draw(shape: tuple[int, ...], g: torch.Generator | None) -> torch.Tensor:
        source = g.device if g is not None else device
        return torch.rand(shape, dtype=finest_dtype(source), device=source, generator=g)

    if isinstance(generator, list):
        uniform = torch.stack([draw(shape, g) for g in generator])
    else:
        uniform = draw((batch, *shape), generator)
    return uniform.to(finest_dtype(device)).to(device)


"""How a user's mistake is told: one sentence with the remedy, a non-zero exit, no traceback."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Input that cannot be used. The message is one sentence: what is wrong, where, and the remedy."""


@contextmanager
def naming(what: object, remedy: str) -> Iterator[None]:
    """A boundary around one input, such as a file: whatever goes wrong inside becomes an `InputError` that names it.

    An `InputError` from inside is a sentence without its subject ("is empty; ..."), which `what` becomes. Readers and
    the libraries below them raise everything else, from OSError to KeyError, over a damaged file.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{what} {error}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{what} cannot be used ({reason}); {remedy}.") from error


def one_line(message: object) -> str:
    """A message as it can be printed: file names may hold line breaks, or bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(message))


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; an `InputError` becomes one line on stderr and exit code 1."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {one_line(error)}")


"""What is asked of networks before they draw: complete, finite, made for each other.

The libraries fill a tensor that a file lacks with random numbers and go on, and NaN gives pictures, too.
"""

import os
import re
from typing import Any

import torch
from transformers import PreTrainedModel



def load_component(cls: type, path: str | os.PathLike, **kwargs: Any) -> Any:
    """`cls.from_pretrained`; of a network, from safetensors alone and in evaluation mode.

    Args:
        cls: a scheduler, or a model of diffusers or transformers.
        path: folder or Hub id.
        kwargs: of `from_pretrained`.

    Raises:
        InputError: there is nothing that can be read, or the weights lack a tensor, have one too many, or one of
            another shape than their config's.
    """
    is_network = issubclass(cls, torch.nn.Module)
    if is_network:
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
    if issubclass(cls, PreTrainedModel):
        kwargs["ignore_mismatched_sizes"] = True  # they are named below; diffusers names them in an error of its own
    try:
        loaded = cls.from_pretrained(path, **kwargs)
    except Exception as error:  # of diffusers, transformers, safetensors, torch or a config's class
        reason = re.split(r"\n|\.\s", str(error).strip() or type(error).__name__)[0]  # its first sentence
        raise InputError(f"{path} cannot be read as {cls.__name__} ({reason}); save it again") from error
    if not is_network:
        return loaded
    model, info = loaded
    problems = {"lack": info["missing_keys"], "have no place for": info["unexpected_keys"]}
    problems["have another shape of"] = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    for problem, names in problems.items():
        if names:
            raise InputError(f"the weights of {path} {problem} {sorted(names)[0]}; save them again")
    return model.eval()


def check_finite(model: torch.nn.Module, name: str) -> None:
    """
    Raises:
        InputError: a parameter or buffer of `model`, called `name` in the message, is NaN or infinite.
    """
    for key, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name}.{key} holds numbers that are not finite")


def check_equal(what: str, **values: Any) -> None:
    """
    Raises:
        InputError: components, given by name with what each says of `what`, do not belong together.
    """
    if len(set(values.values())) > 1:
        said = ", ".join(f"{name} {value}" for name, value in values.items())
        raise InputError(f"components of one pipeline have one {what}, not {said}")


"""From slices to code indices and back, for training, evaluation and sampling alike."""

import torch
from diffusers import VQModel


@torch.no_grad()
def encode_images(vqvae: VQModel, images: torch.Tensor) -> torch.LongTensor:
    """(B, 1, H, W) in [-1, 1] -> (B, h, w) code indices."""
    latents = vqvae.encode(images).latents
    batch, _, height, width = latents.shape
    return vqvae.quantize(latents)[2][2].view(batch, height, width)


@torch.no_grad()
def decode_codes(vqvae: VQModel, code_indices: torch.LongTensor, device: torch.device) -> torch.Tensor:
    """(B, h, w) code indices -> (B, 1, H, W), about [-1, 1].

    Args:
        device: where the VQGAN decodes. Under `enable_model_cpu_offload` it comes there no earlier than `decode` is
            called, and its codebook is still elsewhere.
    """
    shape = (*code_indices.shape, vqvae.config.vq_embed_dim)
    embeddings = vqvae.quantize.get_codebook_entry(code_indices.flatten().to(vqvae.device), shape)
    return vqvae.decode(embeddings.to(device), force_not_quantize=True).sample


"""What the pipelines of all systems share: the call's conventions, and a folder that loads anywhere."""

import ast
import filecmp
import inspect
import json
import os
import shutil
import sys
from importlib.util import resolve_name
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from huggingface_hub import HfApi, snapshot_download
from PIL import Image


# What a pipeline's folder holds beside what is needed to load it (see `vq_ihdm.hub`).
COMPANIONS = ("README.md", "training.json", "notes.md", "*.png", "audit_index.safetensors", "evaluation/*")
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
PICKLES = ["*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl"]  # never downloaded


class SlicePipeline(DiffusionPipeline):
    """Base of the pipelines that draw grey slices.

    A subclass declares its components as `COMPONENTS`, by name of the constructor's argument, and draws images from a
    list of generators, one for each image: then an image does not depend on the batch it is drawn in.
    """

    COMPONENTS: dict[str, type] = {}

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple]:
        # diffusers warns of components that are not of the annotated type. Loaded by the code beside the weights they
        # never are: each comes from a file of its own, and the annotation from the pipeline's.
        return dict.fromkeys(cls.COMPONENTS, (inspect.Signature.empty,))

    def register_modules(self, **components: Any) -> None:
        """As `DiffusionPipeline.register_modules`, which every constructor calls, and a check of what was given."""
        super().register_modules(**components)
        self.check_components()

    def check_components(self) -> None:
        """Asked when a pipeline is made, so whenever one is loaded, and when it is saved.

        Raises:
            InputError: a weight is not finite, or the components do not belong together.
        """
        for name, component in self.components.items():
            if isinstance(component, torch.nn.Module):
                check_finite(component, name)

    @staticmethod
    def image_generators(
        num_images: int, generator: torch.Generator | list[torch.Generator] | None
    ) -> list[torch.Generator]:
        """One generator for each image: as given, or seeded by draws from a single one.

        Raises:
            ValueError: a list of another length.
        """
        if isinstance(generator, list):
            if len(generator) != num_images:
                raise ValueError(f"{num_images} images need as many generators, not {len(generator)}")
            return generator
        device = generator.device if generator is not None else "cpu"
        seeds = torch.randint(2**63 - 1, (num_images,), generator=generator, device=device)
        return [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    @staticmethod
    def to_output(images: torch.Tensor, output_type: str, return_dict: bool) -> ImagePipelineOutput | tuple:
        """(N, 1, H, W) in [-1, 1] as PIL images of mode L, or as `np` (N, H, W, 1) or `pt` (N, 1, H, W) in [0, 1].

        Raises:
            ValueError: an unknown `output_type`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is pil, np or pt, not {output_type}")
        images = (images.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            output: Any = images
        else:
            output = images.permute(0, 2, 3, 1).cpu().numpy()
            if output_type == "pil":
                output = [Image.fromarray(pixels) for pixels in (output[..., 0] * 255).round().astype(np.uint8)]
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        use_safetensors: bool = True,
        **kwargs,
    ) -> "SlicePipeline":
        """Load from a folder or a Hub repository with the classes of the installed package.

        The code that travels in the repository is not run, hence no trust flag is needed; and no pickle is read.

        Args:
            torch_dtype: of the networks' weights; `dtype`, its newer name, is understood too.
            variant: of the weights' files, such as `fp16`, for every network that was saved as one.
            use_safetensors: only True.
            kwargs: components to be used instead of the stored ones, by name; and `revision`, `token`, `cache_dir`,
                `local_files_only` and `force_download`, where a repository is downloaded.

        Raises:
            InputError: a component cannot be read, is incomplete or not finite, or does not belong to the others.
            ValueError: `use_safetensors` is False, or no network has the `variant`.
            TypeError: another keyword.
        """
        torch_dtype = kwargs.pop("dtype", torch_dtype)
        given = {name: kwargs.pop(name) for name in cls.COMPONENTS if name in kwargs}
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        if kwargs:
            raise TypeError(f"{cls.__name__}.from_pretrained takes no {', '.join(kwargs)}")
        if not use_safetensors:
            raise ValueError("weights are read from safetensors alone; leave out use_safetensors=False")
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), ignore_patterns=PICKLES, **hub))
        has_variant = {name for name in cls.COMPONENTS if any((folder / name).glob(f"*.{variant}*.safetensors"))}
        if variant is not None and not has_variant:
            raise ValueError(f"{pretrained_model_name_or_path} holds no weights of the variant {variant}")
        components = {}
        for name, component in cls.COMPONENTS.items():
            if name in given:
                components[name] = given[name]
                continue
            options = {}
            if issubclass(component, torch.nn.Module):
                options = {"torch_dtype": torch_dtype, "variant": variant if name in has_variant else None}
            components[name] = load_component(component, folder / name, **options)
        pipeline = cls(**components)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """As `DiffusionPipeline.save_pretrained`, with the source code of whatever is not part of a library.

        The folder then loads through `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` where this
        package is not installed. It keeps its code when a pipeline loaded that way is saved again; and its card,
        record, pictures and evaluation, as long as its weights are still those they were written for.

        Args:
            push_to_hub: upload the folder too, in one commit; `repo_id`, `private` (True unless given), `token` and
                `commit_message` say how.
        """
        hub = {name: kwargs.pop(name) for name in ("repo_id", "private", "token", "commit_message") if name in kwargs}
        if not kwargs.get("safe_serialization", True):
            raise ValueError("weights are saved as safetensors alone; leave out safe_serialization=False")
        self.check_components()
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = _export_code(type(self), folder)
        index.pop("_module", None)
        for name in self.COMPONENTS:
            component = type(getattr(self, name))
            if component.__module__.split(".")[0] not in ("diffusers", "transformers"):
                index[name] = _export_code(component, folder / name)
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        for config in folder.rglob("*.json"):  # where a pipeline was loaded from is nobody's business
            content = json.loads(config.read_text())
            if content.pop("_name_or_path", None) is not None:
                config.write_text(json.dumps(content, indent=2) + "\n")
        if "_name_or_path" in self.config:
            _carry_over(self.config["_name_or_path"], folder)
        if push_to_hub:
            _upload(folder, **{"repo_id": folder.name} | hub)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str = "Upload pipeline",
        private: bool = True,
        token: str | None = None,
        **kwargs,
    ) -> None:
        """Save and upload in one commit. `publish.py` does the same with a card and after checks.

        Args:
            private: visibility of a new repository.
            kwargs: of `save_pretrained`.
        """
        hub = {"repo_id": repo_id, "commit_message": commit_message, "private": private, "token": token}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, push_to_hub=True, **hub, **kwargs)


def _export_code(cls: type, folder: Path) -> list[str]:
    """Write the module of `cls`, with all it imports relatively, into `folder`; its entry for model_index.json.

    It becomes one file: of a component diffusers fetches from the Hub the file that model_index.json names, no other.
    """
    sources: dict[str, str] = {}

    def add(module: str) -> None:
        source = Path(sys.modules[module].__file__).read_text()
        lines = source.splitlines(keepends=True)
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                add(resolve_name("." * node.level + node.module, module.rpartition(".")[0]))
                lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
        sources.setdefault(module, "".join(lines))

    add(cls.__module__)
    note = f"# Made by `save_pretrained` from {', '.join(sources)}.\n" if len(sources) > 1 else ""
    module = cls.__module__.rpartition(".")[2]
    (folder / f"{module}.py").write_text(note + "\n\n".join(sources.values()))
    return [module, cls.__name__]


def _carry_over(name_or_path: str, folder: Path) -> None:
    """Copy the companions of a pipeline's weights from where it was loaded, unless the weights have changed."""
    source = Path(name_or_path)
    if not source.is_dir():
        source = Path(snapshot_download(name_or_path, allow_patterns=[*COMPANIONS, "*.safetensors"]))
    weights = [file.relative_to(folder) for file in folder.rglob("*.safetensors")]
    if source.resolve() == folder.resolve() or not all(
        (source / file).is_file() and filecmp.cmp(source / file, folder / file, shallow=False) for file in weights
    ):
        return
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            target = folder / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def _upload(folder: Path, repo_id: str, private: bool = True, token: str | None = None, **commit) -> None:
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.upload_folder(repo_id=repo_id, folder_path=folder, **commit)


"""What the pipelines over VQGAN codes share: from pixels to codes and back."""

import torch
from diffusers import ImagePipelineOutput



class TokenPipeline(SlicePipeline):
    """Base of the pipelines with a `vqvae`."""

    def encode_images(self, images: torch.Tensor) -> torch.LongTensor:
        """(B, 1, H, W) in [-1, 1] -> (B, h, w) code indices."""
        return encode_images(self.vqvae, images.to(self._execution_device, self.vqvae.dtype))

    def decode_codes(self, code_indices: torch.LongTensor) -> torch.Tensor:
        """(B, h, w) code indices -> (B, 1, H, W), about [-1, 1]."""
        return decode_codes(self.vqvae, code_indices, self._execution_device)

    def finish(
        self, code_indices: torch.LongTensor, batch_size: int, output_type: str, return_dict: bool
    ) -> ImagePipelineOutput | tuple:
        """Decode drawn codes (N, h, w), `batch_size` images at a time, into the asked output; `latent`: the codes."""
        if output_type == "latent":
            return ImagePipelineOutput(images=code_indices) if return_dict else (code_indices,)
        images = torch.cat([self.decode_codes(codes).cpu() for codes in code_indices.split(batch_size)])
        self.maybe_free_model_hooks()
        return self.to_output(images, output_type, return_dict)


"""Discrete VQ-IHDM as a diffusers pipeline."""

from collections.abc import Callable

import torch
from diffusers import ImagePipelineOutput, VQModel
from diffusers.utils.torch_utils import randn_tensor



class VQIHDMPipeline(TokenPipeline):
    """Draws slices: u_T from the blurry prior, codes by the denoiser, pixels by the VQGAN's decoder.

    Args:
        vqvae ([`~diffusers.VQModel`]): the tokenizer of stage 1.
        denoiser ([`VQIHDMDenoiser`]): p(z_0 | u_T, revealed codes).
        prior ([`BlurryPrior`]): where u_T comes from.
        scheduler ([`HeatDissipationScheduler`]): draws and reveals codes.

    Raises:
        InputError: they do not belong together: of another codebook or grid, or the prior was fitted at another sigma
            than the scheduler's `sigma_max`.
    """

    COMPONENTS = {
        "vqvae": VQModel,
        "denoiser": VQIHDMDenoiser,
        "prior": BlurryPrior,
        "scheduler": HeatDissipationScheduler,
    }
    model_cpu_offload_seq = "denoiser->vqvae"
    _exclude_from_cpu_offload = ["prior"]  # it has buffers, but no parameter by which `accelerate` finds its device
    _callback_tensor_inputs = ["sample", "code_indices"]

    def __init__(
        self,
        vqvae: VQModel,
        denoiser: VQIHDMDenoiser,
        prior: BlurryPrior,
        scheduler: HeatDissipationScheduler,
    ):
        super().__init__()
        self.register_modules(vqvae=vqvae, denoiser=denoiser, prior=prior, scheduler=scheduler)

    def check_components(self) -> None:
        super().check_components()
        vqvae, denoiser, prior = self.vqvae.config, self.denoiser.config, self.prior.config
        check_equal("sigma_T", prior=prior.sigma, scheduler=self.scheduler.config.sigma_max)
        check_equal("number of codes", vqvae=vqvae.num_vq_embeddings, denoiser=denoiser.num_codes)
        shapes = {name: (c.code_dim, c.height, c.width) for name, c in (("denoiser", denoiser), ("prior", prior))}
        check_equal("shape of u_T", **shapes)

    def embed_codes(self, code_indices: torch.LongTensor) -> torch.Tensor:
        """(B, h, w) code indices -> (B, D, h, w) standardised embeddings e_0."""
        return self.denoiser.embed_codes(code_indices)

    def prepare_latents(self, generators: list[torch.Generator], blurred: torch.Tensor | None = None) -> torch.Tensor:
        """Draw u_T = blur(e_0, sigma_T) + delta * noise, (N, D, h, w): where sampling starts.

        Args:
            generators: one for each image.
            blurred: (N, D, h, w) the blurred embeddings without their noise; from the prior unless given.
        """
        if blurred is None:
            blurred = self.prior.sample(len(generators), generators)
        noise = randn_tensor(blurred.shape, generators, blurred.device)
        return blurred + self.scheduler.config.delta * noise.to(blurred.dtype)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        num_inference_steps: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        sample: torch.Tensor | None = None,
        batch_size: int = 32,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw `num_images` slices.

        Args:
            num_images: how many.
            num_inference_steps: network evaluations an image; 1 draws all codes at once.
            temperature, top_p: of the draw of codes; by default what the scheduler's config says. Temperature 0 takes
                the most likely code.
            generator: one, from which a seed is drawn for each image, or a list with one for each image. The same
                seed gives the same images whatever `batch_size`.
            sample: (num_images, D, h, w) u_T, noise included, to start from instead of `prepare_latents`.
            batch_size: images that are worked on at a time.
            output_type: `pil` (mode L), `np` (N, H, W, 1) or `pt` (N, 1, H, W) in [0, 1], or `latent`: code indices
                (N, h, w).
            callback_on_step_end: called as f(pipe, step, timestep, tensors) after each step of each batch; what it
                returns replaces the tensors.
            callback_on_step_end_tensor_inputs: which of `sample` and `code_indices` it is given; both by default.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple.
        """
        generators = self.image_generators(num_images, generator)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        starts = range(0, num_images, batch_size)
        code_indices = []
        with self.progress_bar(total=len(starts) * num_inference_steps) as progress:
            for start in starts:
                batch = slice(start, start + batch_size)
                code_indices.append(
                    self._draw_codes(
                        generators[batch],
                        sample[batch] if sample is not None else None,
                        temperature,
                        top_p,
                        progress,
                        callback_on_step_end,
                        callback_on_step_end_tensor_inputs or self._callback_tensor_inputs,
                    )
                )
        return self.finish(torch.cat(code_indices), batch_size, output_type, return_dict)

    def _draw_codes(self, generators, sample, temperature, top_p, progress, callback, callback_inputs):
        """Codes (B, h, w) of one batch."""
        device = self._execution_device
        num_images, config = len(generators), self.denoiser.config
        if sample is None:
            sample = self.prepare_latents(generators)
        sample = sample.to(device, self.denoiser.dtype)
        sigma = torch.full((num_images,), self.prior.sigma, device=device)
        code_indices = torch.full((num_images, config.height, config.width), OPEN, device=device)
        for i, timestep in enumerate(self.scheduler.timesteps):
            logits = self.denoiser(sample, sigma, known=code_indices != OPEN).logits
            sample, code_indices, _ = self.scheduler.step(
                logits,
                timestep,
                sample,
                code_indices,
                self.denoiser.code_embeddings,
                temperature=temperature,
                top_p=top_p,
                generator=generators,
                return_dict=False,
            )
            if callback is not None:
                tensors = {"sample": sample, "code_indices": code_indices}
                replaced = callback(self, i, timestep, {name: tensors[name] for name in callback_inputs})
                sample = replaced.get("sample", sample)
                code_indices = replaced.get("code_indices", code_indices)
            progress.update()
        return code_indices
