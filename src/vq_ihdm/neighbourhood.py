"""What shows each position of a code grid its neighbours, before attention."""

from torch import nn


def make_neighbourhood(in_channels: int, hidden_size: int, size: int) -> nn.Sequential:
    """(B, in_channels, h, w) -> (B, hidden_size, h, w): two convolutions, which reach `size` - 1 positions far."""
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden_size, size, padding=size // 2),
        nn.GELU(),
        nn.Conv2d(hidden_size, hidden_size, size, padding=size // 2),
    )
