"""Windows of images: drawn without favouring a pixel, cut with gradients."""

import torch

from vq_ihdm.vqgan.windows import crop, draw_windows


def test_windows_see_every_pixel_equally_often():
    rows, columns = draw_windows(4000, (12, 20), 5, torch.device("cpu"))
    assert rows.shape == columns.shape == (4000, 5)
    for indices, length in ((rows, 12), (columns, 20)):
        share = torch.bincount(indices.flatten(), minlength=length) / len(indices)
        assert (share - 5 / length).abs().max() < 0.04  # five standard deviations


def test_a_window_is_cut_from_its_own_image_and_gradients_find_the_way_back():
    images = torch.rand(3, 1, 12, 20, requires_grad=True)
    rows, columns = windows = draw_windows(3, (12, 20), 5, torch.device("cpu"))
    cut = crop(images, windows)
    for b in range(3):
        assert torch.equal(cut[b, 0], images[b, 0][rows[b]][:, columns[b]])
    cut.sum().backward()
    assert (images.grad.sum(dim=(1, 2, 3)) == 25).all() and images.grad.max() == 1


def test_a_window_no_smaller_than_the_image_is_the_image():
    images = torch.rand(2, 1, 12, 20)
    assert torch.equal(crop(images, draw_windows(2, (12, 20), 20, torch.device("cpu"))), images)
