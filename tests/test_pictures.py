"""Sheets of slices, as training logs and publishes them."""

import numpy as np
import torch
from conftest import tiny_conditional

from vq_ihdm.pictures import contact_sheet, covariate_sheet, reconstruction_sheet


def test_contact_sheet_shows_every_image_once():
    images = np.stack([np.full((3, 4), value, np.uint8) for value in (10, 20, 30, 40, 50)])
    sheet = np.asarray(contact_sheet(images, columns=2, margin=1))
    assert sheet.shape == (3 * 3 + 2, 2 * 4 + 1)
    assert [(sheet == value).sum() for value in (10, 20, 30, 40, 50)] == [12] * 5
    assert sheet[0, 0] == 10 and sheet[0, -1] == 20 and sheet[-1, 0] == 50


def test_reconstruction_sheet_has_originals_above():
    sheet = np.asarray(reconstruction_sheet(torch.ones(3, 1, 4, 4), -torch.ones(3, 1, 4, 4)))
    assert (sheet[:4, :4] == 255).all() and (sheet[-4:, :4] == 0).all()


def test_a_row_for_each_covariate_in_which_it_alone_changes():
    pipe = tiny_conditional()
    sheet = np.asarray(covariate_sheet(pipe, seed=3, columns=4))
    assert sheet.shape == (2 * 34 - 2, 4 * 34 - 2)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    youngest, oldest = pipe(2, generator=generators, covariates={"age": [20, 80]}).images
    assert (sheet[:32, :32] == youngest).all() and (sheet[:32, -32:] == oldest).all()
    assert (sheet[34:, 68:] == 255).all() and (sheet[34:, :66] != 255).any()  # two sexes, and blanks
