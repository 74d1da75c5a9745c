"""Images brought to one place before they are compared pixel by pixel."""

import numpy as np


def centred(images: np.ndarray) -> np.ndarray:
    """(N, H, W) uint8 images, each moved by whole pixels until its centre of mass is in the middle.

    Mass is the square of the grey level, so that the noise of air weighs nothing. Pixels that leave on one side enter
    on the other, so nothing is lost, and the mirror image of a centred image is the centred mirror image. Black images
    stay as they are.

    The folds of a brain are a few pixels wide: moved by one, a slice is about as far from itself as from the slices of
    other people.
    """
    result = np.empty_like(images)
    for i, image in enumerate(images):
        mass = image.astype(np.int64) ** 2
        result[i] = np.roll(image, [-offset(mass.sum(axis)) for axis in (1, 0)], axis=(0, 1))
    return result


def moved(images: np.ndarray, pixels: int) -> np.ndarray:
    """(N, H, W) images, each moved by up to so many pixels along either side, the same at every call."""
    offsets = np.random.default_rng(0).integers(-pixels, pixels, size=(len(images), 2), endpoint=True)
    return np.stack([np.roll(image, places, axis=(0, 1)) for image, places in zip(images, offsets, strict=True)])


def offset(profile: np.ndarray) -> int:
    """How far, in whole pixels, the mean position of a profile (L,) is behind the middle."""
    place = np.arange(len(profile)) - (len(profile) - 1) / 2
    return int(np.rint(profile @ place / max(profile.sum(), 1)))
