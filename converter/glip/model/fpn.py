"""The feature pyramid (Lin et al. 2017, arXiv:1612.03144) with two extra levels, as in RetinaNet."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from converter.glip.model.config import GLIPConfig


class FPN(nn.Module):
    """C3, C4, C5 (B, C_n, H, W) -> P3, P4, P5, P6, P7 (B, channels, H, W), strides 8 to 128, H and W rounded up.

    P6 and P7 are convolutions of P5, not of C5; the ReLU in front of P7 does not touch P6 itself.
    """

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        width = config.channels
        inputs = config.stage_dims[1:]
        self.lateral = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in inputs)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in inputs)
        self.p6 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Swin's maps are channels-last in memory; oneDNN's float32 kernels for these round four times as much.
        maps = tuple(x.contiguous() for x in maps)
        merged: Tensor = self.lateral[-1](maps[-1])
        levels: list[Tensor] = [self.output[-1](merged)]
        for index in range(len(maps) - 2, -1, -1):
            lateral: Tensor = self.lateral[index](maps[index])
            # To the finer map's own size: twice the coarser size is too large where the finer one is odd.
            merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.output[index](merged))
        levels.append(self.p6(levels[-1]))
        levels.append(self.p7(F.relu(levels[-1])))
        return tuple(levels)
