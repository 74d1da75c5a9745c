"""The vocabulary: what a user may ask for, and how it becomes numbers and comes back."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from vq_ihdm.covariate_embedding import CovariateEmbedding, position_cosines
from vq_ihdm.covariates import (
    Covariate,
    covariate_features,
    decode_covariates,
    encode_covariates,
    nearest_covariates,
    vocabulary,
)

AGE = Covariate("age", "continuous", low=20, high=80, mean=50, std=20)
SEX = Covariate("sex", "category", categories=("F", "M"))
CDR = Covariate("cdr", "category", categories=("0", "0.5", "1"))
LEVEL = Covariate("slice_level", "level", low=0.2, high=0.8)
KNOWN = [AGE, SEX, CDR, LEVEL]


def test_a_value_for_all_or_one_for_each_and_back():
    given = {"sex": "F", "age": [75, 30, None], "cdr": 0.5}
    table = encode_covariates(KNOWN, given, 3)
    assert table.shape == (3, 4)
    assert decode_covariates(KNOWN, table) == {
        "age": [75, 30, None], "sex": ["F"] * 3, "cdr": ["0.5"] * 3, "slice_level": [None] * 3,
    }  # fmt: skip
    assert encode_covariates(KNOWN, None, 2).isnan().all()
    assert encode_covariates([], {}, 2).shape == (2, 0)


@pytest.mark.parametrize(
    ("known", "given", "sentence"),
    [
        (KNOWN, {"weight": 70}, "does not know the covariate weight; it knows age, sex, cdr, slice_level"),
        ([], {"age": 70}, "does not know the covariate age; it was trained without covariates"),
        (KNOWN, {"sex": "X"}, "sex is one of F, M, not X"),
        (KNOWN, {"cdr": 3}, "cdr is one of 0, 0.5, 1, not 3"),
        (KNOWN, {"age": "old"}, "age is a number, not 'old'"),
        (KNOWN, "age=70", "covariates are given by name"),
        (KNOWN, {"age": 87}, "age was 20 to 80 in the training set; 87 is outside of that by more than 6"),
        (KNOWN, {"age": math.nan}, "nan is outside"),
        (KNOWN, {"slice_level": [0.5, 0.1]}, "slice_level was 0.2 to 0.8"),
        (KNOWN, {"age": [30, 40, 50]}, "2 images need as many values of age, not 3"),
    ],
)
def test_what_cannot_be_asked_for(known, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        encode_covariates(known, given, 2)


def test_a_little_outside_the_training_range_is_allowed():
    assert encode_covariates(KNOWN, {"age": [86, 14]}, 2)[:, 0].tolist() == [86, 14]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_one_value_an_image_in_any_sequence(kind):
    table = encode_covariates(KNOWN, {"age": kind([30.0, 40.0])}, 2)
    assert table[:, 0].tolist() == [30, 40]


def test_features_and_back():
    table = torch.tensor([[25.0, 0, 2, 0.25], [math.nan, 1, 0, 0.75], [60, math.nan, math.nan, math.nan]]).double()
    features = covariate_features(KNOWN, table)
    assert features.shape == (3, 1 + 2 + 3 + 3)
    assert torch.equal(features.isnan(), table.isnan().repeat_interleave(torch.tensor([1, 2, 3, 3]), 1))
    again = nearest_covariates(KNOWN, features.nan_to_num())
    torch.testing.assert_close(again[~table.isnan()], table[~table.isnan()], atol=1e-3, rtol=0)
    # Whatever is drawn becomes something that occurs.
    wild = nearest_covariates(KNOWN, 10 * torch.randn(50, 9, dtype=torch.float64))
    assert encode_covariates(KNOWN, decode_covariates(KNOWN, wild), 50).double().allclose(wild)


def test_a_number_s_polynomials_are_uncorrelated_and_of_unit_variance():
    """Under the normal distribution, by quadrature; the first is the standardised number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(10)
    ages = torch.from_numpy(50 + 20 * nodes)
    features = dataclasses.replace(AGE, degree=4).features(ages).numpy()
    moments = np.einsum("n,ni,nj->ij", weights / weights.sum(), features, features)
    np.testing.assert_allclose(moments, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(weights @ features, 0, atol=1e-9)
    np.testing.assert_allclose(features[:, 0], nodes)


def test_the_vocabulary_travels_as_json():
    assert vocabulary([vars(covariate) for covariate in KNOWN]) == tuple(KNOWN)
    assert vocabulary(None) == ()
    of_earlier_versions = {name: value for name, value in vars(AGE).items() if name != "degree"}
    assert vocabulary([of_earlier_versions])[0].num_features == 1


def test_embedding_tells_values_apart_and_not_given_from_all_of_them():
    torch.manual_seed(0)
    embedding = CovariateEmbedding(KNOWN, 16)
    torch.nn.init.normal_(embedding.not_given)
    rows = [{}, {"age": 30}, {"age": 70}, {"sex": "F"}, {"sex": "M"}, {"slice_level": 0.3}, {"age": 30, "sex": "F"}]
    vectors = torch.cat([embedding(encode_covariates(KNOWN, row, 1)) for row in rows])
    assert vectors.shape == (len(rows), 16)
    assert torch.cdist(vectors, vectors).fill_diagonal_(1).min() > 1e-3
    # Each covariate has its own part in the sum.
    torch.testing.assert_close(vectors[6] - vectors[0], vectors[1] - vectors[0] + vectors[3] - vectors[0])


def test_no_two_ages_a_user_may_ask_for_look_the_same():
    ages = torch.linspace(14, 86, 200)
    first = position_cosines(AGE, ages)[:, 0]
    assert (first.diff() < 0).all()


def test_every_parameter_of_the_embedding_gets_a_gradient_whatever_is_given():
    """`DistributedDataParallel` stops at a parameter without one."""
    embedding = CovariateEmbedding(KNOWN, 8)
    embedding(torch.full((2, 4), math.nan)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in embedding.parameters())
