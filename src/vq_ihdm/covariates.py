"""What a model can be asked for: its covariates with their ranges and categories, and how they become numbers.

A table of covariates is a tensor (N, C) with a column for each: numbers as they are, categories by their index, NaN
where nothing is given. The vocabulary, a list of `Covariate`, travels as plain dicts in the configs of the components.
"""

import itertools
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
