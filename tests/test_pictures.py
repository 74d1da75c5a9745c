"""Sheets of slices, as training logs and publishes them."""

import numpy as np
import torch

from vq_ihdm.pictures import contact_sheet, reconstruction_sheet


def test_contact_sheet_shows_every_image_once():
    images = np.stack([np.full((3, 4), value, np.uint8) for value in (10, 20, 30, 40, 50)])
    sheet = np.asarray(contact_sheet(images, columns=2, margin=1))
    assert sheet.shape == (3 * 3 + 2, 2 * 4 + 1)
    assert [(sheet == value).sum() for value in (10, 20, 30, 40, 50)] == [12] * 5
    assert sheet[0, 0] == 10 and sheet[0, -1] == 20 and sheet[-1, 0] == 50


def test_reconstruction_sheet_has_originals_above():
    sheet = np.asarray(reconstruction_sheet(torch.ones(3, 1, 4, 4), -torch.ones(3, 1, 4, 4)))
    assert (sheet[:4, :4] == 255).all() and (sheet[-4:, :4] == 0).all()
