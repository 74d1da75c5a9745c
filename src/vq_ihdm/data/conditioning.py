"""The covariates of a data set, as what a model can be conditioned on: vocabulary and table."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset

from ..covariates import Covariate
from ..errors import InputError
from ..fit_prior import MIN_SUBJECTS

KNOWN = ("age", "sex", "diagnosis", "cdr", "slice_level")  # what is used unless named otherwise
LEVEL = "slice_level"
DEGREE = 2  # of a number such as age: by a straight line ventricles at 74 are half as large as they should be


def find_vocabulary(train: Dataset, names: Sequence[str] | None, source: str) -> list[Covariate]:
    """What a model of this set can be conditioned on.

    A category held by fewer than `MIN_SUBJECTS` training subjects is left out, and its slices count as missing: what a
    model would learn of it shows these few. So is a covariate of which all training slices have the same value.

    Args:
        train: the training split.
        names: columns to be used; by default those of `KNOWN` that the set has and that vary.
        source: where the set comes from, for messages.

    Raises:
        InputError: a name that is no such column, or of which nothing can be learnt.
    """
    subjects = slice_subjects(train)
    columns = [name for name in train.column_names if name not in ("image", "subject", "slice")]
    known = []
    for name in [name for name in KNOWN if name in columns] if names is None else dict.fromkeys(names):
        if name not in columns:
            raise InputError(f"{source} has no covariate {name}; it has {', '.join(columns) or 'none'}")
        covariate = describe_column(train, name, subjects)
        if covariate is not None:
            known.append(covariate)
        elif names is not None:
            raise InputError(
                f"there is nothing to learn from {name} in {source}: its training slices have one value, or fewer than "
                f"two categories that {MIN_SUBJECTS} training subjects have; leave it out of --covariates"
            )
    return known


def describe_vocabulary(known: Sequence[Covariate], train: Dataset) -> str:
    """What a model that is trained on this split can be asked for, and which of `KNOWN` it cannot."""
    can = [
        f"{covariate.name} ({', '.join(covariate.categories) or f'{covariate.low:g} to {covariate.high:g}'})"
        for covariate in known
    ]
    cannot = [name for name in KNOWN if name in train.column_names and name not in {c.name for c in known}]
    left_out = f"; left out: {', '.join(cannot)} (a category counts where {MIN_SUBJECTS} training subjects have it)"
    return f"the model can be asked for {', '.join(can) or 'nothing'}" + left_out * bool(cannot)


def slice_subjects(split: Dataset) -> list:
    """The subject of each slice; of a set that does not say, each slice a subject of its own."""
    return split["subject"][:] if "subject" in split.column_names else list(range(len(split)))


def column_values(split: Dataset, name: str) -> list:
    """A column as numbers or names, None where missing."""
    values, feature = split[name], split.features[name]
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return [None if pd.isna(value) else value for value in values]


def describe_column(train: Dataset, name: str, subjects: Sequence) -> Covariate | None:
    """The covariate that a column of the training split is; None where there is nothing to learn from."""
    values = column_values(train, name)
    present = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in present):
        holders = {category: set() for category in sorted(set(present), key=category_order(train, name))}
        for value, subject in zip(values, subjects, strict=True):
            if value is not None:
                holders[value].add(subject)
        categories = tuple(category for category, group in holders.items() if len(group) >= MIN_SUBJECTS)
        return Covariate(name, "category", categories=categories) if len(categories) > 1 else None
    if len(set(present)) < 2:
        return None
    numbers = np.array(present, float)
    # An extreme value is somebody's: of a range of 10 to 99 years the ends go outwards to steps of five.
    step = 5 * 10.0 ** (math.floor(math.log10(np.ptp(numbers))) - 1)
    low, high = (round(r(x / step) * step, 9) for r, x in ((math.floor, numbers.min()), (math.ceil, numbers.max())))
    if name == LEVEL:
        return Covariate(name, "level", max(low, 0.0), min(high, 1.0))
    return Covariate(name, "continuous", low, high, float(numbers.mean()), float(numbers.std()), degree=DEGREE)


def category_order(train: Dataset, name: str):
    """The order of categories: that of the set's own list where it has one, else that of the alphabet."""
    feature = train.features[name]
    return feature.str2int if isinstance(feature, ClassLabel) else str


def covariate_table(known: Sequence[Covariate], split: Dataset) -> torch.Tensor:
    """(N, C), NaN where a value is missing, the split has no such column, or the vocabulary has no such category."""
    table = torch.full((len(split), len(known)), math.nan)
    for column, covariate in enumerate(known):
        if covariate.name not in split.column_names:
            continue
        values = column_values(split, covariate.name)
        if covariate.kind == "category":
            values = [covariate.encode(value) if value in covariate.categories else math.nan for value in values]
        table[:, column] = torch.tensor([math.nan if value is None else value for value in values])
    return table


def askable(known: Sequence[Covariate], table: torch.Tensor) -> torch.Tensor:
    """A table (N, C) of any people, with NaN for what the model cannot be asked for: values out of its range."""

    def asked(covariate: Covariate, number: float) -> float:
        try:
            return covariate.encode(covariate.decode(number))
        except ValueError:
            return math.nan

    table = table.clone()
    for column, covariate in enumerate(known):
        table[:, column] = torch.tensor([asked(covariate, number) for number in table[:, column].tolist()])
    return table


def withhold(table: torch.Tensor, share: float) -> torch.Tensor:
    """A table (B, C) of which, in a share of the rows, some values are not given.

    In such a row every number of withheld covariates is as likely: none to all of them. Then one network serves every
    subset of what it knows.
    """
    batch = len(table)
    rate = torch.rand(batch, 1) * (torch.rand(batch, 1) < share)
    return table.masked_fill(torch.rand(table.shape) < rate, math.nan)
