"""Ordinary JPEG files: the set is distilled in the coefficients that a baseline JPEG file holds (ITU-T T.81).

Stored: the common head of the files, their scans and the lengths of these; head, scan and end make a file that any viewer
opens. Or one stream of the same coefficients, shorter (`rayd.data.jpeg_sets`). The parameters are the coefficients of luma
and colour in grey levels; a file holds them rounded to the steps of its quantisation tables, and `quantise` does the same.
Decoding repeats libjpeg's integer arithmetic to the bit (accurate integer inverse DCT, triangle filter of half-size colour,
table of colours), with the gradient of the smooth functions behind it.

It starts as a coreset of compressed real images, of the quality at which `images` of them fill the budget. Learned labels
lie beside the files, in `storage`. They start at the class mixed with the experts' probabilities on the images as the files
show them: experts alone are wrong on too many images, and measure worse than hard labels.

**Rate.** After each step every coefficient moves towards zero by `weight` * step / (1 + |coefficient / step|), the slope of
the bits of its magnitude. Every `EVERY` steps the set's Huffman bits are counted, and the weight follows them so that the
budget is kept. What still exceeds it when the set is written, or in between, is rounded towards zero: a coefficient needs
0.5 + `dead` of a step to count as one.

Shapes: U images, B blocks in the order of the scan, 64 coefficients in zigzag order; N images of a minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.data import jpeg_files
from rayd.data.images import Spec
from rayd.data.jpeg_files import Layout
from rayd.data.jpeg_sets import SHORTER, Coding
from rayd.data.transform import Transform
from rayd.distill.budget import FLOAT, STEP, Budget, Shapes, Stored, file_bytes
from rayd.distill.codec import Family, Take
from rayd.distill.fit import CodecOptions
from rayd.distill.libjpeg import Planes
from rayd.distill.storage import Storage, pack_shape, rounded
from rayd.errors import refuse
from rayd.schema import ADDED

EVERY = 5
"""Steps between two counts of the set's bits."""
RECOUNT = 25
"""Steps between two measurements of a stream."""
FULL = 0.995
"""Share of the room for scans that the weight of the rate aims at."""
GAIN = 10.0
"""Relative change of the weight for each relative excess of bits, at most by a factor of two."""
FIRST_WEIGHT = 0.002
CLOSE = 0.998  # share of the room that a stream begins with: its length is known once it is written
HEAD = 640
"""Bytes that a head takes at most."""
LEAST = 1e-3
"""Probability that a label starts from at least, so that few bits reach from the least to the largest."""


class Jpeg(Family):
    @dataclass(frozen=True, kw_only=True)
    class Config(CodecOptions):
        """rank and sharing: none. The dials are `bits`, `side` and `colours`; `storage` and `scales` are those of labels."""

        images: int | None = None
        """In all; classes in turn."""
        bits: float = 3.0
        """Of the budget for each pixel of a stored image; decides how many images there are."""
        side: int | None = None
        """Height of a stored image, shown larger; null: the image's own."""
        colours: Literal["half", "full"] = "half"
        """Sides of the colour channels, of those of luma (4:2:0 or 4:4:4)."""
        entropy: Literal["huffman", "context"] = field(default="huffman", metadata=ADDED)
        """huffman: scans of files; context: one stream for all, some 14 % shorter; an export makes files of it."""
        tables: Literal["standard", "flat"] = field(default="standard", metadata=ADDED)
        """Steps of a file's frequencies: for the eye (annex K.1), or one of luma and one of colour for the least error."""
        dead_zone: float = field(default=0.0, metadata=ADDED)
        """Of a step, beyond the half, that a coefficient needs to count: fewer bits for the same error."""
        teacher_share: float = field(default=0.5, metadata=ADDED)
        """Of the experts' probabilities in the soft labels that it starts from; the rest is the class."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("rank", "sharing"):
                if getattr(self, name) is not None:
                    raise refuse(f"codec.{name}", getattr(self, name), "null: the dials are codec.bits, side, colours")
            if self.storage != "fp32" and not self.learns_labels:
                allowed = "fp32: files hold rounded coefficients anyway, and another type is that of soft labels"
                raise refuse("codec.storage", self.storage, allowed, "set codec.labels=soft")
            if self.start == "noise":
                raise refuse("codec.start", self.start, "real | confident: the quality follows from real images")
            if not 0 <= self.teacher_share <= 1:
                raise refuse("codec.teacher_share", self.teacher_share, "0 to 1")
            if not 0 <= self.dead_zone < 0.5:
                raise refuse("codec.dead_zone", self.dead_zone, "at least 0, below 0.5")
            if not self.bits > 0:
                raise refuse("codec.bits", self.bits, "above 0")

        @classmethod
        def resolved(cls) -> tuple[str, ...]:
            return ("images", "side")

        def layout(self, spec: Spec) -> Layout:
            channels, height, width = spec.shape
            side = self.side or height
            half = channels == 3 and self.colours == "half"
            return Layout(side, max(1, round(width * side / height)), channels, half)

        def shapes(self, spec: Spec) -> Shapes:
            """Before anything is compressed: the coefficients."""
            return {"blocks": ((self.images or 0, self.layout(spec).blocks, 64), "pixels")}

        def fixed_shapes(self, spec: Spec) -> Shapes:
            lengths = {"lengths": ((self.images or 0,), "pixels")} if self.entropy == "huffman" else {}
            return lengths | {name: one for name, one in self.all_shapes(spec).items() if name != "blocks"}

        @classmethod
        def is_many(cls, name: str, role: str) -> bool:
            """There is a label for each image."""
            return True

        @classmethod
        def usual_scales(cls, kind: str) -> str:
            """A label is a few numbers: a scale of its own would cost as much as some of them."""
            return "tensor"

        def slots(self, spec: Spec) -> int:
            return self.images or 0

        decoded = slots

        def room(self, budget: Budget, spec: Spec) -> int:
            """Bytes for the scans: what a file without any, and with a head of the usual size, leaves of the budget."""
            return self.filled(budget, spec) - self._beside(spec)

        def filled(self, budget: Budget, spec: Spec) -> int:
            return budget.bytes if budget.bytes is not None else FLOAT * budget.limit(spec)

        def _beside(self, spec: Spec) -> int:
            """Bytes of everything in the file but the scans."""
            lengths = ((self.images or 0,), self.coding(spec).length_type())
            parts = {
                "head": ((HEAD,), torch.uint8),
                **({"lengths": lengths} if self.entropy == "huffman" else {}),
                "scans": ((10**8,), torch.uint8),
                "step_size": (STEP["step_size"][0], torch.float32),
            }
            if self.learns_labels:
                labels = pack_shape((self.slots(spec), spec.classes), self.stored_as("labels", "labels"))
                parts |= {"labels" + suffix: part for suffix, part in labels.items()}
            return file_bytes(parts) - 10**8

        def coding(self, spec: Spec) -> Coding:
            return Coding(self.layout(spec), self.entropy == "context")

        def within(self, budget: Budget, spec: Spec) -> bool:
            blocks = (self.images or 0) * self.layout(spec).blocks
            return self.room(budget, spec) >= blocks * (0.5 if self.entropy == "huffman" else 0.1)

        def fill(self, budget: Budget, spec: Spec) -> float:
            """The set is written as large as the budget."""
            return 1.0 if self.within(budget, spec) else 2.0

        def floats(self, spec: Spec) -> int:
            return (self.images or 0) * self.layout(spec).blocks * 64

        def resolve(self, budget: Budget, spec: Spec) -> Jpeg.Config:
            config = replace(self, side=self.side or spec.shape[-2])
            if config.side is None or not 1 <= config.side <= spec.shape[-2]:
                raise refuse("codec.side", self.side, f"1 to {spec.shape[-2]}, the side of an image")
            layout = config.layout(spec)
            each = max(1, round(self.bits * layout.height * layout.width / 8))
            if self.learns_labels:
                each += math.ceil(spec.classes * Storage.parse(self.stored_as("labels", "labels")).itemsize)
            each += FLOAT if self.entropy == "huffman" else 0
            return replace(config, images=self.images or max(spec.classes, config.room(budget, spec) // each))

        def describe(self, budget: Budget, spec: Spec) -> str:
            images, side = self.images or 1, self.layout(spec).height
            size = f"{self.room(budget, spec) / images:.0f} bytes an image, {images / spec.classes:g} images a class"
            return f"images {images}, side {side}, colours {self.colours}: {size} of {budget}"

        def build(self, spec: Spec, rng: torch.Generator) -> Jpeg:
            return Jpeg(self, spec, rng)

    steps: Tensor
    dead: Tensor
    weight: Tensor
    counted: Tensor
    room: Tensor
    shorter: Tensor
    table_B: Tensor

    def __init__(self, config: Config, spec: Spec, rng: torch.Generator) -> None:
        super().__init__(config, spec, {"image": config.images or 0})
        self.layout = config.layout(spec)
        self.blocks = nn.Parameter(torch.randn(len(self), self.layout.blocks, 64, generator=rng) * 10)
        tables = len(jpeg_files.steps(50, self.layout.channels))
        self.register_buffer("steps", torch.ones(tables, 64))
        for name, value in {"dead": config.dead_zone, "weight": FIRST_WEIGHT, "counted": 0.0, "room": math.inf}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64), persistent=name != "room")
        self.coding = config.coding(spec)
        self.register_buffer("shorter", torch.tensor(SHORTER, dtype=torch.float64), persistent=self.coding.stream)
        self.transform: Transform | None = None
        self.register_buffer("table_B", torch.from_numpy(self.layout.channel_B).clamp(max=1), persistent=False)
        self.planes = Planes(self.layout)

    def enter(self, transform: Transform, budget: Budget | None = None) -> None:
        self.transform = transform.to(self.blocks.device)
        if budget is not None:
            self.room.fill_(self.config.room(budget, self.spec))

    def images(self, index_N: Tensor) -> Tensor:
        assert self.transform is not None
        if self.transform.device != self.blocks.device:
            self.transform = self.transform.to(self.blocks.device)
        return self.transform(self.pixels(index_N) / 255)

    def pixels(self, index_N: Tensor) -> Tensor:
        """Of 0 to 255, as libjpeg decodes the files, of the size of the images."""
        x_NCHW = self.planes.pixels(self.blocks.index_select(0, index_N.to(self.blocks.device)))
        if x_NCHW.shape[-2:] == self.spec.shape[-2:]:
            return x_NCHW
        return F.interpolate(x_NCHW, size=self.spec.shape[-2:], mode="bilinear", align_corners=False)

    def begin(self, take: Take, rng: torch.Generator) -> None:
        assert self.transform is not None
        for c in range(self.spec.classes):
            pixels = self.transform.inverse(take(c, self.units_of(c)).to(self.blocks.device)) * 255
            self.blocks[c :: self.spec.classes] = self.compressed(pixels.clamp(0, 255))
        self._choose_quality()

    def compressed(self, pixels_NCHW: Tensor) -> Tensor:
        """Coefficients of images before they are rounded."""
        size = (self.layout.height, self.layout.width)
        x = pixels_NCHW if pixels_NCHW.shape[-2:] == size else F.interpolate(pixels_NCHW, size=size, mode="area")
        return self.planes.blocks(x)

    def _choose_quality(self) -> None:
        """The steps under which the scans fill the room, or the stream, whose length is measured on the way."""
        flat, zone = self.config.tables == "flat", self.config.dead_zone
        for _ in range(3 if self.coding.stream else 1):
            low, high = 0.5, 99.5
            for _ in range(12):
                middle = (low + high) / 2
                self.steps.copy_(torch.from_numpy(jpeg_files.steps(middle, self.layout.channels, flat)))
                fits = self._bytes(zone) <= float(self.room) * (CLOSE if self.coding.stream else 1)
                low, high = (middle, high) if fits else (low, middle)
            self.steps.copy_(torch.from_numpy(jpeg_files.steps(low, self.layout.channels, flat)))
            self._recount()

    def _recount(self) -> None:
        """How much shorter the stream is than scans, once it is written."""
        if self.coding.stream:
            size = self.coding.pack(self.levels(self.config.dead_zone), self.steps)["stream"].numel()
            self.shorter.mul_(size / self._bytes(self.config.dead_zone))

    def levels(self, dead: float) -> Tensor:
        """Whole numbers of steps; between -1023 and 1023, of which baseline files have codes."""
        x_UBk = self.blocks.detach() / self.steps[self.table_B]
        if dead == 0:
            return x_UBk.round().clamp(-1023, 1023)
        return (x_UBk.sign() * (x_UBk.abs() + 0.5 - dead).floor().clamp(min=0)).clamp(-1023, 1023)

    def _bytes(self, dead: float) -> float:
        return self.coding.size(self.levels(dead), float(self.shorter))

    @torch.no_grad()
    def quantise(self) -> None:
        self._round()
        if self.learns_labels:
            self.labels.copy_(rounded(self.labels, self.config.stored_as("labels", "labels")))

    def _round(self) -> None:
        self.blocks.copy_(self.levels(float(self.dead)) * self.steps[self.table_B])

    @torch.no_grad()
    def teach(self, predict: Callable[[Tensor, Tensor], Tensor]) -> None:
        """By the images as the files show them."""
        blocks, parts = self.blocks.clone(), torch.arange(len(self)).split(256)
        self._round()
        logits_UK = torch.cat([predict(self.images(part), self.class_of(part)).float() for part in parts])
        self.blocks.copy_(blocks)
        own_UK = F.one_hot(self.classes(), self.spec.classes).to(logits_UK)
        log_UK = own_UK.lerp(logits_UK.softmax(1), self.config.teacher_share).clamp(min=LEAST).log()
        self.labels.copy_(log_UK - log_UK.mean(1, keepdim=True))

    def stored(self) -> dict[str, Stored]:
        """Made anew at each call. Refused, by what writes it, if no rounding makes it fit."""
        room = float(self.room) + HEAD
        tensors = self.coding.pack_within(room, self.levels, self.config.dead_zone, self.steps)
        files = {name: Stored(tensor, "pixels") for name, tensor in tensors.items()}
        return files | {name: one for name, one in super().stored().items() if name == "labels"}

    def files(self) -> list[bytes]:
        """An ordinary JPEG file for each image."""
        return self.coding.files(self.levels(0.0), self.steps)

    @torch.no_grad()
    def restore(self, numbers: Mapping[str, Tensor]) -> None:
        levels, steps_k = self.coding.unpack(numbers, len(self))
        self.steps.copy_(torch.from_numpy(steps_k))
        self.blocks.copy_(torch.from_numpy(levels).to(self.blocks) * self.steps[self.table_B])
        self.dead.zero_()
        if self.learns_labels:
            self.labels.copy_(numbers["labels"])

    @torch.no_grad()
    def project(self, transform: Transform) -> None:
        steps_Bk = self.steps[self.table_B]
        x_UBk = self.blocks.div_(steps_Bk)
        size_UBk = x_UBk.abs()
        shrunk_UBk = (size_UBk - float(self.weight) / (1 + size_UBk)).clamp(min=0)
        self.blocks.copy_(x_UBk.sign() * shrunk_UBk).mul_(steps_Bk)
        self.counted.add_(1)
        if int(self.counted) % RECOUNT == 0:
            self._recount()
        if int(self.counted) % EVERY == 0:
            self._follow()

    def _follow(self) -> None:
        """The weight by the excess of bits, and the rounding that keeps the budget until the weight does."""
        dead, room = self.config.dead_zone, float(self.room)
        size = self._bytes(dead)
        self.weight.mul_(min(max(math.exp(GAIN * (size / (FULL * room) - 1)), 0.5), 2.0))
        while size > room and dead < 8:
            dead += 0.05
            size = self._bytes(dead)
        self.dead.fill_(dead)
