import numpy as np
import pytest

from vq_ihdm.evaluation.alignment import centred, moved


@pytest.fixture(params=[(32, 32), (33, 24)])
def images(request):
    images = np.zeros((6, *request.param), np.uint8)
    images[:, 9:22, 7:17] = np.random.default_rng(0).integers(1, 256, (6, 13, 10))
    return images


@pytest.mark.parametrize("place", [(1, 0), (-2, 3), (5, -4)])
def test_images_are_brought_to_one_place_wherever_they_stood(images, place):
    assert np.array_equal(centred(np.roll(images, place, axis=(1, 2))), centred(images))


def test_the_centre_of_mass_is_within_half_a_pixel_of_the_middle(images):
    result = centred(images).astype(float) ** 2
    for axis in (1, 2):
        profile = result.sum(axis=3 - axis)
        place = np.arange(profile.shape[1]) - (profile.shape[1] - 1) / 2
        assert (np.abs(profile @ place / profile.sum(axis=1)) <= 0.5).all()


def test_centring_loses_nothing_and_keeps_to_mirror_images(images):
    assert np.array_equal(np.sort(centred(images).reshape(6, -1)), np.sort(images.reshape(6, -1)))
    assert np.array_equal(centred(centred(images)), centred(images))
    assert np.array_equal(centred(images[..., ::-1]), centred(images)[..., ::-1])
    assert np.array_equal(centred(np.zeros_like(images)), np.zeros_like(images))


def test_images_are_moved_by_no_more_than_asked_and_back_by_centring(images):
    result = moved(images, 3)
    offsets = [
        [p for p in np.ndindex(7, 7) if np.array_equal(np.roll(image, np.subtract(p, 3), axis=(0, 1)), there)]
        for image, there in zip(images, result, strict=True)
    ]
    assert all(len(found) == 1 for found in offsets) and len({found[0] for found in offsets}) > 1
    assert np.array_equal(centred(result), centred(images))
