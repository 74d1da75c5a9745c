"""Random windows of images, for losses that are too dear for the whole of them."""

import torch


def draw_windows(batch: int, image_size: tuple[int, int], size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Rows and columns, (B, size) each, of one random window an image; of a side no longer than `size`, all of it.

    The image is taken for a torus: a window may leave at one side and enter at the other. Every pixel is then inside
    equally often; of windows that must stay within, those near the rim, where the cortex is, would be seen up to five
    times less often than the centre. The seam is the same in both images of a pair, and air in most scans.
    """
    windows = []
    for length in image_size:
        start = torch.randint(length if size < length else 1, (batch, 1), device=device)
        windows.append((start + torch.arange(min(size, length), device=device)) % length)
    return tuple(windows)


def crop(images: torch.Tensor, windows: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The windows of (B, 1, H, W) images, (B, 1, size, size); gradients flow back to their place."""
    rows, columns = windows
    index = torch.arange(len(images), device=images.device)[:, None, None]
    return images[index, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)
