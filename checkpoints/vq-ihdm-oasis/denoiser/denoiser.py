# Made by `save_pretrained` from vq_ihdm.covariates, vq_ihdm.covariate_embedding, vq_ihdm.neighbourhood, vq_ihdm.denoiser.
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedModel, PretrainedConfig
from transformers.utils import ModelOutput


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


"""Covariates as an input of a transformer, any of them given or not."""


NUM_COSINES = 8


class KnowsCovariates:
    """Of a network with a vocabulary, `known_covariates`: the table that a user's words stand for, and back."""

    known_covariates: tuple[Covariate, ...]

    def encode_covariates(self, given: Mapping[str, Any] | None, num_images: int) -> torch.Tensor:
        """What a user asks for as a table (num_images, C); see `vq_ihdm.covariates.encode_covariates`."""
        return encode_covariates(self.known_covariates, given, num_images)

    def decode_covariates(self, table: torch.Tensor) -> dict[str, list]:
        """A table (N, C) as a list of N values for each name, None where nothing is given."""
        return decode_covariates(self.known_covariates, table)


class CovariateEmbedding(nn.Module):
    """A table of covariates (B, C), NaN where not given -> (B, hidden_size), the sum of one embedding each.

    A category has a learned vector, a number a small network on cosines of its position in the range a user may ask
    for, and each covariate a learned vector for "not given".
    """

    def __init__(self, known: Sequence[Covariate], hidden_size: int):
        super().__init__()
        self.known = known
        self.embeddings = nn.ModuleList(
            nn.Embedding(len(covariate.categories), hidden_size)
            if covariate.kind == "category"
            else nn.Sequential(nn.Linear(NUM_COSINES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
            for covariate in known
        )
        self.not_given = nn.Parameter(torch.empty(len(known), hidden_size))
        for parameter in (self.not_given, *(e.weight for e in self.embeddings if isinstance(e, nn.Embedding))):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, covariates: torch.Tensor) -> torch.Tensor:
        given = ~covariates.isnan()
        parts = []
        for column, (covariate, embedding) in enumerate(zip(self.known, self.embeddings, strict=True)):
            values = covariates[:, column].nan_to_num()
            if covariate.kind == "category":
                part = embedding(values.long())
            else:
                part = embedding(position_cosines(covariate, values).to(self.not_given.dtype))
            parts.append(torch.where(given[:, column, None], part, self.not_given[column]))
        return torch.stack(parts).sum(0)


def position_cosines(covariate: Covariate, values: torch.Tensor) -> torch.Tensor:
    """(B,) numbers -> (B, NUM_COSINES): cos(pi k x), x in [0, 1] from `MARGIN` below the range to as far above it."""
    position = (values.float() - covariate.low) / (covariate.high - covariate.low)
    position = (position + MARGIN) / (1 + 2 * MARGIN)
    return torch.cos(math.pi * position[:, None] * torch.arange(1, NUM_COSINES + 1, device=values.device))


"""What shows each position of a code grid its neighbours, before attention."""


def make_neighbourhood(in_channels: int, hidden_size: int, size: int) -> nn.Sequential:
    """(B, in_channels, h, w) -> (B, hidden_size, h, w): two convolutions, which reach `size` - 1 positions far."""
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden_size, size, padding=size // 2),
        nn.GELU(),
        nn.Conv2d(hidden_size, hidden_size, size, padding=size // 2),
    )


"""The denoiser: BERT over the positions of a code grid."""


# Of log sigma, which spans about 4 (0.5 to 24): periods from 16 down to an eighth tell neighbouring sigmas apart.
NUM_FREQUENCIES = 32


class VQIHDMDenoiserConfig(PretrainedConfig):
    """Configuration of a `VQIHDMDenoiser`.

    Args:
        num_codes: K, size of the codebook.
        code_dim: D, dimension of a code.
        height, width: the grid of codes.
        hidden_size, num_hidden_layers, num_attention_heads, dropout: of the `BertModel`; its intermediate size is
            4 x hidden_size. The defaults are the paper's.
        neighbourhood_size: side of the two convolutions that show each position its neighbours; 1, the paper's, for
            none. Attention has to learn from nothing which of the other positions are near.
        covariates: what the network can be asked for (`Covariate` as dicts); nothing by default.
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
        neighbourhood_size: int = 1,
        covariates: list[dict] | None = None,
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
        self.neighbourhood_size = neighbourhood_size
        self.covariates = covariates
        super().__init__(**kwargs)


@dataclass
class VQIHDMDenoiserOutput(ModelOutput):
    """`logits`: (B, H, W, K), of p(z_0 | u_t, revealed codes)."""

    logits: torch.FloatTensor | None = None


class VQIHDMDenoiser(KnowsCovariates, PreTrainedModel):
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
        if config.neighbourhood_size > 1:
            self.neighbourhood = make_neighbourhood(config.code_dim + 1, config.hidden_size, config.neighbourhood_size)
        self.sigma_embedding = SigmaEmbedding(config.hidden_size)
        self.known_covariates = vocabulary(config.covariates)
        if self.known_covariates:
            self.covariate_embedding = CovariateEmbedding(self.known_covariates, config.hidden_size)
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
        covariates: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> VQIHDMDenoiserOutput | tuple:
        """
        Args:
            sample: (B, D, H, W) the state: blurred embeddings, sharp ones where codes are known.
            sigma: (B,) blur width of the state in grid cells; networks that train_ihdm.py trained know sigma_T alone.
            known: (B, H, W) which positions are revealed; none when left out.
            covariates: (B, C) table of `vq_ihdm.covariates`, NaN where not given; nothing is given when left out.
        """
        batch, _, height, width = sample.shape
        if known is None:
            known = torch.zeros(batch, height, width, dtype=torch.bool, device=sample.device)
        tokens = self.input_projection(sample.flatten(2).transpose(1, 2))
        if self.config.neighbourhood_size > 1:
            seen = self.neighbourhood(torch.cat([sample, known[:, None].to(sample)], dim=1))
            tokens = tokens + seen.flatten(2).transpose(1, 2)
        tokens = tokens + self.sigma_embedding(sigma)[:, None]
        if self.known_covariates:
            if covariates is None:
                covariates = torch.full((batch, len(self.known_covariates)), math.nan, device=sample.device)
            tokens = tokens + self.covariate_embedding(covariates)[:, None]
        hidden = self.bert(inputs_embeds=tokens, token_type_ids=known.flatten(1).long()).last_hidden_state
        logits = self.head(hidden).view(batch, height, width, -1)
        return VQIHDMDenoiserOutput(logits=logits) if return_dict else (logits,)


class SigmaEmbedding(nn.Module):
    """(B,) sigma -> (B, hidden_size): Fourier features of log sigma, then a small network."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        # made on the CPU: Apple's GPUs have no logspace
        frequencies = torch.logspace(math.log10(1 / 16), math.log10(8), NUM_FREQUENCIES).to(sigma.device)
        angles = 2 * math.pi * sigma.float().log()[:, None] * frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.layers(features.to(self.layers[0].weight.dtype))
