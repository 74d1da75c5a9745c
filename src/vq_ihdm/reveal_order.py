"""Which positions of a code grid are revealed next."""

import torch


def reveal_spread_out(known: torch.BoolTensor, uniform: torch.Tensor, num_known: int) -> torch.BoolTensor:
    """Reveal positions until each image has `num_known`, each as far as can be from all that are known before it.

    Codes that are revealed at one time are drawn independently of each other. Neighbours depend on each other most, so
    they are to be revealed at different times. Distances are on a torus: else rim and corners would come first.

    Args:
        known: (B, H, W); an image of which more is known already keeps it.
        uniform: (B, H, W) uniform numbers in [0, 1), which decide among equally distant positions.

    Returns:
        (B, H, W) what is known then.
    """
    height, width = known.shape[1:]
    rows, columns = (squared_gaps(size, uniform) for size in (height, width))
    # Squared distance of each position to the nearest known one, in its row and then over the rows.
    distance = torch.where(known, 0, height**2 + width**2).to(uniform.dtype)
    distance = (distance[:, :, None] + columns).amin(-1)
    distance = (distance.mT[:, :, None] + rows).amin(-1).mT
    missing = num_known - known.sum((1, 2))
    for revealed in range(int(missing.max())):
        farthest = (distance + uniform).flatten(1).argmax(1)
        y, x = farthest // width, farthest % width
        nearer = torch.minimum(distance, rows[y][:, :, None] + columns[x][:, None])
        distance = torch.where((revealed < missing)[:, None, None], nearer, distance)
    return distance == 0


def squared_gaps(size: int, like: torch.Tensor) -> torch.Tensor:
    """(size, size) squared distances between the positions of a circle, of the type and on the device of `like`."""
    positions = torch.arange(size, dtype=like.dtype, device=like.device)
    gaps = (positions[:, None] - positions).abs()
    return torch.minimum(gaps, size - gaps) ** 2
