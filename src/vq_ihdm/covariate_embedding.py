"""Covariates as an input of a transformer, any of them given or not."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .covariates import MARGIN, Covariate, decode_covariates, encode_covariates

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
