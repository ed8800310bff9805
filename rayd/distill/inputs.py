"""What a method may see: the network, the training images by number, and rows of the expert buffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rayd.data.images import Images, Spec
from rayd.data.stream import Residence, is_streamed
from rayd.data.transform import Transform
from rayd.errors import Failed, refuse
from rayd.experts.trajectory import Segment
from rayd.nets.convnet import Net
from rayd.seeds import generator


class Rows(Protocol):
    """What of an expert buffer is read."""

    @property
    def experts(self) -> int: ...
    @property
    def last_epoch(self) -> int: ...
    def row(self, expert: int, epoch: int) -> Tensor: ...
    def segment(self, expert: int, first: int, last: int) -> Segment: ...


@dataclass
class RunInputs:
    """The surroundings of one worker. Images stay uint8: on the device where steps match them and they fit, else mapped
    from disk, where items fetch theirs by number, ahead of the step."""

    net: Net
    transform: Transform
    images: Images
    device: torch.device
    seed: int
    precision: str = "fp32"
    compiled: bool = True
    buffer: Rows | None = None
    residence: Residence = "auto"
    needs_real: bool = True
    """Whether steps match real images; where only the start takes some, they are read when it does."""

    def __post_init__(self) -> None:
        self.spec: Spec = self.images.spec
        self.transform = self.transform.to(self.device)
        pixels = self.images.pixels_NCHW
        held = self.needs_real and not is_streamed(pixels, self.device, self.residence)
        self._pixels = pixels.to(self.device) if held else pixels
        self._members = [self.images.of_class(c) for c in range(self.spec.classes)]

    @property
    def experts(self) -> int:
        return self._rows.experts

    @property
    def last_epoch(self) -> int:
        return self._rows.last_epoch

    def segment(self, expert: int, first: int, last: int) -> Segment:
        segment = self._rows.segment(expert, first, last)
        for epoch, row in ((first, segment.start_P), (last, segment.end_P)):
            if not bool(torch.isfinite(row).all()):
                raise Failed(
                    f"expert {expert}, epoch {epoch}: the buffer's row is not finite; run jobs.experts verify=true"
                )
        return segment

    def theta(self, expert: int, epoch: int) -> Tensor:
        return self._rows.row(expert, epoch).to(self.device)

    def members(self, c: int) -> Tensor:
        return self._members[c]

    def real(self, index_N: Tensor) -> Tensor:
        return self.transform(self._pixels[index_N.to(self._pixels.device)].to(self.device))

    def targets(self, index_N: Tensor) -> Tensor:
        labels = self.images.labels_N[index_N].to(self.device)
        return torch.nn.functional.one_hot(labels, self.spec.classes).float()

    @property
    def _rows(self) -> Rows:
        if self.buffer is None:
            raise refuse(
                "buffer", None, "the URI of an expert buffer", "this method needs experts: run jobs.experts first"
            )
        return self.buffer

    def start_images(
        self, seed: int, predict: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Callable[[int, int], Tensor]:
        """take(c, n): n real images of class c by plan; with `predict(images, classes)`, those first that it gets right."""

        def take(c: int, n: int) -> Tensor:
            members = self.images.distinct(c)
            if len(members) == 0:
                raise refuse("data", self.images.classes[c], "at least one training image per class")
            order = members[torch.randperm(len(members), generator=generator(seed, "start", c))]
            if predict is not None:
                right: list[Tensor] = []
                for part in order.split(512):
                    logits = predict(self.real(part), torch.full((len(part),), c))
                    right.append(logits.argmax(1).cpu() == c)
                    if sum(int(flags.sum()) for flags in right) >= n:
                        break
                flags = torch.cat([*right, torch.zeros(len(order), dtype=torch.bool)])[: len(order)]
                order = torch.cat([order[flags], order[~flags]])
            order = order.repeat(-(-n // len(order)))
            return self.real(order[:n])

        return take
