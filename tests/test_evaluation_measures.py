"""The measures themselves, as properties."""

import itertools

import numpy as np
import pytest
import torch
from evaluation_helpers import people
from scipy import linalg
from torch_fidelity.metric_fid import fid_features_to_statistics

from vq_ihdm.evaluation.anatomy import asymmetry, compare_anatomy, measure_anatomy, segment
from vq_ihdm.evaluation.diversity import duplicate_rate, ms_ssim, pair_similarity
from vq_ihdm.evaluation.features import Features
from vq_ihdm.evaluation.fidelity import (
    BLOCK,
    Grams,
    extrapolate,
    fidelity,
    frechet_distance,
    kernel_distance,
    moments,
    neighbourhoods,
)
from vq_ihdm.evaluation.image_sets import ImageSet, independent
from vq_ihdm.evaluation.memorisation import Space, distance_ratio, mean_nearest, memorisation_figures, nearest
from vq_ihdm.evaluation.resampling import choice, difference, estimate, half_sample

RNG = np.random.default_rng(0)


def gaussian(count, dimension=8, shift=0.0, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (count, dimension)).astype(np.float32))


# intervals


def test_half_samples_scatter_like_the_mean_of_the_whole():
    values, groups = np.repeat(RNG.normal(size=40), 3), np.repeat(np.arange(40), 3)
    means = [values[half_sample(groups, RNG)].mean() for _ in range(4000)]
    assert np.std(means) == pytest.approx(np.std(values[::3], ddof=1) / np.sqrt(40), rel=0.05)


def test_a_group_moves_as_one():
    groups = RNG.integers(0, 10, 60)
    chosen = groups[half_sample(groups, RNG)]
    assert len(np.unique(chosen)) == len(np.unique(groups)) // 2
    assert all((chosen == group).sum() == (groups == group).sum() for group in np.unique(chosen))


def test_an_interval_stays_within_the_measures_range():
    assert estimate(0.95, [0.5, 1.0], 2, 0, 1).interval == (pytest.approx(0.95 - 1.96 * 0.25), 1)


def test_what_the_people_add_to_two_systems_cancels_in_their_difference():
    real, groups = gaussian(40, seed=1), np.arange(40)
    near, far = (
        fidelity(Features(gaussian(80, shift=shift, seed=2), None), Features(real, None), np.arange(80), groups)["kid"]
        for shift in (0.5, 0.6)
    )
    apart = difference(far, near)
    assert apart.value == pytest.approx(far.value - near.value)
    low, high = apart.interval
    assert low > 0 and high - low < 0.7 * (far.interval[1] - far.interval[0])
    assert near.interval[1] > far.interval[0]  # which overlapping intervals could not have shown


# fidelity


@pytest.mark.parametrize("sizes", [(30, 50), (200, 100)])  # fewer and more images than features
def test_frechet_distance_from_inner_products_is_that_of_the_covariances(sizes):
    x, y = (gaussian(n, 40, shift, seed=n).numpy().astype(np.float64) for n, shift in zip(sizes, (0, 0.3), strict=True))
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    difference = x.mean(0) - y.mean(0)
    root = np.trace(linalg.sqrtm(s @ t).real)
    expected = difference @ difference + np.trace(s) + np.trace(t) - 2 * root
    assert frechet_distance(Grams.of(torch.from_numpy(x), torch.from_numpy(y))) == pytest.approx(expected, rel=1e-4)


def test_moments_summed_by_blocks_are_those_of_the_whole():
    features = gaussian(2 * BLOCK + 5, 12, shift=3)
    whole = fid_features_to_statistics(features)
    for name, value in moments(features).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-5, atol=1e-7)


def test_a_choice_of_many_images_keeps_whole_people():
    groups = np.repeat(np.arange(40), RNG.integers(1, 9, 40))
    chosen = choice(groups, 60)
    assert 50 < len(chosen) <= 60
    assert all((groups[chosen] == group).sum() == (groups == group).sum() for group in np.unique(groups[chosen]))
    np.testing.assert_array_equal(choice(groups, len(groups)), np.arange(len(groups)))


def test_kernel_distance_is_unbiased():
    groups = np.arange(24), np.arange(36)
    sides = [(gaussian(24, seed=2 * i), gaussian(36, seed=2 * i + 1)) for i in range(400)]
    values = [kernel_distance(Grams.of(*side), *groups) for side in sides]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(400)
    assert kernel_distance(Grams.of(gaussian(24, shift=1), gaussian(36, seed=1)), *groups) > 4 * np.std(values)


def test_slices_of_one_person_do_not_count_as_two_people():
    """Each of six people nine times: pairs of the same person are alike and would add to the distance."""
    each, people = np.arange(54), np.repeat(np.arange(6), 9)
    grams = [Grams.of(gaussian(54, seed=2 * i), gaussian(6, seed=2 * i + 1)[people]) for i in range(200)]
    all_pairs, different = ([kernel_distance(g, each, groups) for g in grams] for groups in (each, people))
    assert abs(np.mean(different)) < 3 * np.std(different) / np.sqrt(200)
    assert np.mean(all_pairs) > 6 * np.std(all_pairs) / np.sqrt(200)


def test_neighbourhoods_of_a_collapsed_generator_are_precise_and_cover_nothing():
    real = gaussian(200, seed=1)
    collapsed = real[:1] + 1e-3 * gaussian(200)
    measured = neighbourhoods(Grams.of(collapsed, real))
    assert measured["precision"] == 1 and measured["recall"] < 0.02
    assert measured["coverage"] < 0.1 and measured["density"] > 1
    same = neighbourhoods(Grams.of(gaussian(200), real))
    assert same["precision"] > 0.8 and same["coverage"] > 0.9 and same["density"] == pytest.approx(1, abs=0.2)


def test_extrapolation_takes_a_bias_that_falls_with_n_away():
    assert extrapolate(5 + 80 / 200, [5 + 80 / 100] * 3) == pytest.approx(5)
    x, y = gaussian(300, 4), gaussian(300, 4, seed=1)
    fid = fidelity(Features(x, None), Features(y, None), np.arange(300), np.arange(300))
    assert abs(fid["fid_infinity"].value) < fid["fid"].value


def test_intervals_narrow_with_more_subjects_not_with_more_slices():
    def width(subjects, slices):
        real = np.repeat(gaussian(subjects, seed=1).numpy(), slices, axis=0)
        real = torch.from_numpy(real + 0.05 * gaussian(len(real), seed=2).numpy())
        groups = np.repeat(np.arange(subjects), slices)
        generated = Features(gaussian(600, shift=1), None)
        low, high = fidelity(generated, Features(real, None), np.arange(600), groups)["kid"].interval
        return high - low

    few = width(10, 6)
    assert width(60, 1) < 0.75 * few
    assert width(10, 12) == pytest.approx(few, rel=0.4)


def test_pairs_are_resampled_together():
    x = gaussian(60, seed=1)
    y = x + 0.1 * gaussian(60, seed=2)
    groups = np.arange(60)
    apart, together = (
        fidelity(Features(x, None), Features(y, None), groups, groups, paired=paired)["fid"].interval
        for paired in (False, True)
    )
    assert together[1] - together[0] < apart[1] - apart[0]


# diversity


def test_ms_ssim_is_one_for_equal_images_and_falls_with_noise():
    x = torch.from_numpy(people(4, 1, size=176).images).unsqueeze(1).float()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ms_ssim(x, x), torch.ones(4))
    torch.testing.assert_close(ms_ssim(x, x + noise), ms_ssim(x + noise, x))
    assert (ms_ssim(x, x + 40 * noise) < ms_ssim(x, x + 10 * noise)).all()


def test_ms_ssim_of_flat_images_is_their_luminance_term():
    """Without contrast every scale contributes 1 but the coarsest: (2ab + c1) / (a^2 + b^2 + c1) to the power .1333."""
    a, b, c1 = 100.0, 150.0, 2.55**2
    similarity = ms_ssim(torch.full((1, 1, 176, 176), a), torch.full((1, 1, 176, 176), b))
    assert similarity.item() == pytest.approx(((2 * a * b + c1) / (a * a + b * b + c1)) ** 0.1333, rel=1e-4)


def test_pairs_are_of_different_people_and_of_one_level_if_asked():
    patterns = RNG.integers(0, 255, (6, 32, 32), dtype=np.uint8)  # one picture a person
    subjects = np.repeat(np.arange(6), 5)
    assert pair_similarity(ImageSet(patterns[subjects], subjects)).value < 0.5
    levels = np.tile(np.arange(5), 6)
    same = pair_similarity(ImageSet(patterns[levels], subjects, levels), same_level=True)  # one picture a level
    assert same.value == pytest.approx(1) and same.details["pairs"] == 15
    assert pair_similarity(ImageSet(patterns[levels], subjects, levels)).value < 0.9
    assert pair_similarity(independent(patterns), same_level=True) is None
    one_couple = np.tile(np.arange(5), 2)
    assert pair_similarity(ImageSet(patterns[one_couple], np.repeat([0, 1], 5), one_couple), same_level=True) is None


def test_duplicates_are_counted_within_the_set():
    images = RNG.integers(0, 255, (20, 16, 16), dtype=np.uint8)
    images[10:14] = images[:4]
    groups = np.arange(20)
    found = nearest(images, images, groups, 1 / (255 * 16), own=groups)
    rate = duplicate_rate(found.by_subject, 0.01, groups)
    assert rate.value == pytest.approx(8 / 20)
    # Of ten images in a half each has its twin there in nine of nineteen cases.
    assert np.mean(rate.resampled) == pytest.approx(8 / 20 * 9 / 19, abs=0.05)
    people = np.repeat(np.arange(10), 2)  # the twins are of other people; one more is of the same
    images[19] = images[18]
    found = nearest(images, images, people, 1 / (255 * 16), own=people)
    assert duplicate_rate(found.by_subject, 0.01, people).value == pytest.approx(8 / 20)


# memorisation


def test_nearest_is_exact():
    queries, candidates, subjects = gaussian(7).numpy(), gaussian(30, seed=1).numpy(), RNG.permutation(30) % 5
    distances = np.linalg.norm(queries[:, None] - candidates, axis=2) / 2
    own = np.arange(7) % 5
    for exclude in (None, own):
        expected = distances if exclude is None else np.where(exclude[:, None] == subjects, np.inf, distances)
        found = nearest(queries, candidates, subjects, 0.5, exclude)
        np.testing.assert_array_equal(found.index, expected.argmin(axis=1))
        by_subject = [expected[:, subjects == subject].min(axis=1) for subject in range(5)]
        np.testing.assert_allclose(found.by_subject, np.transpose(by_subject), rtol=1e-4)
    assert (nearest(candidates, candidates, subjects).distance == 0).all()


def test_neighbours_are_found_across_blocks_and_in_mirror_images():
    candidates = RNG.integers(0, 255, (1100, 4, 6), dtype=np.uint8)
    subjects = RNG.permutation(1100) % 90
    queries = candidates[[3, 600, 1099]][..., ::-1]
    found = nearest(queries, candidates, subjects, mirrored=True)
    np.testing.assert_array_equal(found.index, [3, 600, 1099])
    assert (found.distance == 0).all()
    np.testing.assert_array_equal(found.by_subject.argmin(axis=1), subjects[[3, 600, 1099]])
    flat = np.stack([queries, queries[..., ::-1]])[:, :, None].astype(float) - candidates
    expected = np.sqrt((flat**2).sum(axis=(-1, -2))).min(axis=0)
    by_subject = [expected[:, subjects == subject].min(axis=1) for subject in range(90)]
    np.testing.assert_allclose(found.by_subject, np.transpose(by_subject), rtol=1e-4, atol=0.1)
    differing = nearest(candidates[:5], candidates[5:], subjects[5:], norm=0)
    np.testing.assert_allclose(differing.distance, (candidates[:5, None] != candidates[5:]).sum((2, 3)).min(axis=1))


def faces(num_subjects, seed, slices=6):
    rng = np.random.default_rng(seed)
    return (
        np.repeat(rng.normal(size=(num_subjects, 20)), slices, axis=0)
        + 0.3 * rng.normal(size=(num_subjects * slices, 20))
    ).astype(np.float32), np.repeat(np.arange(num_subjects), slices)


def test_a_memory_shows_in_the_ratio_and_in_the_copy_rate():
    training, held_out = faces(60, 1), faces(12, 2)  # five times as many: that alone must not show
    space = Space("vectors", *training, *held_out)
    fresh = faces(150, 3, slices=1)[0]
    ratio, share, copies = memorisation_figures(space, *space.search(fresh))
    assert ratio.generated.interval[0] < 1 < ratio.generated.interval[1]
    assert ratio.floor.value == pytest.approx(1, abs=0.1)
    assert share.generated.interval[0] < 60 / 72 < share.generated.interval[1]
    assert copies.generated.value < 0.01 and copies.floor.value < 0.01
    fresh[:30] = training[0][::12] + 0.01
    copied = memorisation_figures(space, *space.search(fresh))[2].generated
    assert copied.value == pytest.approx(30 / 150, abs=0.01)
    everywhere = training[0][RNG.permutation(len(training[0]))[:150]] + 0.1 * faces(150, 4, 1)[0]
    ratio, share, _ = memorisation_figures(space, *space.search(everywhere))
    assert ratio.generated.interval[1] < 1 and share.generated.value > 0.99 and share.floor.value < 0.95


def test_the_mean_nearest_of_n_subjects_is_that_over_all_choices():
    distances = RNG.random((3, 6))
    for n in range(1, 7):
        chosen = [distances[:, list(columns)].min(axis=1) for columns in itertools.combinations(range(6), n)]
        assert mean_nearest(distances, n) == pytest.approx(np.mean(chosen))
    distances[range(3), [4, 0, 5]] = np.inf  # their own subjects, which nobody can choose
    others = [row[np.isfinite(row)] for row in distances]
    for n in range(1, 6):
        chosen = [np.mean([min(c) for c in itertools.combinations(row, n)]) for row in others]
        assert mean_nearest(distances, n) == pytest.approx(np.mean(chosen))


def test_people_who_are_like_all_others_have_the_floor_they_are_measured_by():
    """Of few held-out people, too: each is missing one other person, itself."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(300):
        everybody = rng.normal(size=(30 + 6 + 6, 8))  # to train on, held out, generated
        distances = np.linalg.norm(everybody[30:, None] - everybody[None], axis=-1)
        distances[range(12), range(30, 42)] = np.inf
        ratios.append([distance_ratio(rows[:, :30], rows[:, 30:36]) for rows in (distances[:6], distances[6:])])
    floor, generated = np.mean(ratios, axis=0)
    assert floor == pytest.approx(generated, abs=0.02)


# anatomy


def head(radius=70.0, ventricle=12.0, offset=0.0, size=176):
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    image = np.where(np.hypot(x, y) < radius, 170, 0) + np.where(np.hypot(x, y) < radius - 8, 50, 0)
    return np.where(np.hypot(x - offset, y) < ventricle, 30, image).astype(np.uint8)


def test_areas_of_a_phantom_are_measured():
    brain, csf, ventricles = segment(head())
    assert brain.sum() == pytest.approx(np.pi * 70**2, rel=0.02)
    assert ventricles.sum() == pytest.approx(np.pi * 12**2, rel=0.15)
    assert (ventricles <= csf).all() and (csf <= brain).all()
    measured = measure_anatomy(np.stack([head(), head(ventricle=18)]))
    assert measured["ventricle_share"][1] == pytest.approx(18**2 / 70**2, rel=0.15)
    assert measured["brain_area"][0] == pytest.approx(measured["brain_area"][1])


def test_asymmetry_is_of_the_brain_not_of_its_place():
    brain = segment(head())[0]
    assert asymmetry(head(), brain) < 0.01
    shifted = np.roll(head(), 9, axis=1)
    assert asymmetry(shifted, segment(shifted)[0]) < 0.02
    lopsided = head(offset=15)
    assert asymmetry(lopsided, segment(lopsided)[0]) > 0.05
    mirrored = lopsided[:, ::-1]
    assert asymmetry(mirrored, segment(mirrored)[0]) == pytest.approx(
        asymmetry(lopsided, segment(lopsided)[0]), rel=0.05
    )


@pytest.mark.parametrize("grey", [0, 200])
def test_an_image_without_a_brain_measures_zero(grey):
    measured = measure_anatomy(np.full((2, 32, 32), grey, np.uint8))
    assert all((values == 0).all() for values in measured.values())


def test_wider_ventricles_are_a_distance_in_that_measure_alone():
    real = measure_anatomy(np.stack([head(ventricle=v) for v in np.linspace(10, 14, 24)]))
    wide = measure_anatomy(np.stack([head(ventricle=v + 5) for v in np.linspace(10, 14, 24)]))
    each = np.arange(24)
    distance, floor = compare_anatomy(wide, real, each, each), compare_anatomy(real, real, each, each)
    shift = wide["ventricle_share"].mean() - real["ventricle_share"].mean()
    assert distance["wasserstein_ventricle_share"].value == pytest.approx(shift, rel=1e-6)
    assert distance["wasserstein_ventricle_share"].interval[0] > floor["wasserstein_ventricle_share"].interval[1]
    assert distance["wasserstein_brain_area"].value < 1e-3
