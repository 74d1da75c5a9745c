"""What images are asked to be, as `generate.py --covariates` says it."""

from collections.abc import Sequence

import numpy as np

from ..covariates import Covariate, encode_covariates
from ..errors import InputError

POPULATION = "population"  # as in the training set: drawn by the model's prior

Asked = dict[str, list[float] | str]  # as JSON has it


def parse_covariates(texts: Sequence[str], known: Sequence[Covariate]) -> Asked:
    """`age=60:85 sex=F slice_level=population` -> a range, a value or, left out, nothing for each name.

    Raises:
        InputError: no such form, or a covariate or value that the model does not know.
    """
    kinds = {covariate.name: covariate.kind for covariate in known}
    names = [text.partition("=")[0] for text in texts]
    if again := {name for name in names if names.count(name) > 1}:
        raise InputError(f"--covariates names {min(again)} twice; leave one of them")
    asked: Asked = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"--covariates takes name=value, name=low:high or name={POPULATION}, not {text}")
        bounds = [value] if kinds.get(name) == "category" else value.split(":")
        try:
            for bound in bounds:
                encode_covariates(known, {name: None if value == POPULATION else bound}, 1)
        except ValueError as error:
            raise InputError(f"--covariates {text}: {error}") from error
        if value == POPULATION:
            continue
        if len(bounds) > 2 or (len(bounds) == 2 and float(bounds[0]) > float(bounds[1])):
            raise InputError(f"--covariates {text}: a range is low:high")
        asked[name] = value if kinds[name] == "category" else [float(bounds[0]), float(bounds[-1])]
    return asked


def covariates_of_images(asked: Asked, image_seeds: Sequence[int]) -> dict[str, list]:
    """The arguments of a pipeline's call: a value for each image, in a range uniformly drawn from the image's seed."""
    uniform = [np.random.default_rng(seed).random(len(asked)) for seed in image_seeds]
    values: dict[str, list] = {}
    for column, (name, value) in enumerate(sorted(asked.items())):
        if isinstance(value, list):
            low, high = value
            values[name] = [low + (high - low) * float(numbers[column]) for numbers in uniform]
        else:
            values[name] = [value] * len(image_seeds)
    return values
