"""The codec of JPEG files: what is scored is what Pillow decodes, within the budget, with a gradient."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from rayd.artifact.write import as_stored
from rayd.data import jpeg_files
from rayd.data.images import Spec
from rayd.data.transform import Transform
from rayd.distill.budget import Budget, Ledger, Stored, from_bytes, packed, to_bytes, unpacked
from rayd.errors import Refused
from rayd.methods.jpeg import EVERY, LEAST, Jpeg

CASES = [
    ((3, 32, 32), "half"),
    ((3, 32, 32), "full"),
    ((1, 28, 28), "half"),
    ((3, 47, 31), "half"),
    ((3, 64, 64), "full"),
]


STREAM = {"entropy": "context", "tables": "flat", "dead_zone": 0.15}
KINDS = [{}, {"tables": "flat", "dead_zone": 0.15}, {"entropy": "context"}, STREAM]


def a_codec(shape=(3, 32, 32), colours="half", size=30_000, start=True, **options):
    spec, budget = Spec(shape, 10), Budget(bytes=size)
    codec = Jpeg.Config(colours=colours, **options).fit(budget, spec).build(spec, torch.Generator().manual_seed(0))
    transform = Transform("normalise", torch.full((shape[0],), 0.5), torch.full((shape[0],), 0.25))
    codec.enter(transform, budget)

    def take(c, n):
        rng = torch.Generator().manual_seed(c)
        coarse = torch.rand(n, shape[0], 8, 8, generator=rng)
        smooth = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic")
        return transform((smooth + 0.1 * torch.rand(n, *shape, generator=rng)).clamp(0, 1))

    if start:
        codec.encode(take, torch.Generator().manual_seed(1))
    return codec


def files(codec):
    """As a folder would hold them."""
    head, scans, lengths = (codec.stored()[name].tensor.numpy() for name in ("head", "scans", "lengths"))
    ends = lengths.astype(np.int64).cumsum()
    return [jpeg_files.file(head.tobytes(), scans[e - n : e].tobytes()) for e, n in zip(ends, lengths, strict=True)]


def pillow(data):
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return torch.tensor(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(("shape", "colours"), CASES)
def test_the_decoder_is_pillows(shape, colours):
    codec = as_stored(a_codec(shape, colours))
    ours = codec.pixels(torch.arange(len(codec)))
    for i, data in enumerate(files(codec)):
        assert torch.equal(ours[i].detach().to(torch.uint8), pillow(data)), i


def test_the_decoder_is_pillows_where_pixels_are_clipped():
    codec = a_codec(start=False)
    with torch.no_grad():
        codec.blocks.mul_(12)
    codec.room.fill_(1e9)
    codec = as_stored(codec)
    ours = codec.pixels(torch.arange(len(codec)))
    assert (ours == 0).any() and (ours == 255).any()
    assert all(torch.equal(ours[i].detach().to(torch.uint8), pillow(data)) for i, data in enumerate(files(codec)))


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("size", [30_000, 123_036])
def test_the_file_fills_the_budget_and_does_not_exceed_it(size, options):
    codec = a_codec(size=size, **options)
    stored = codec.stored() | {"step_size": Stored(torch.ones(1), "step")}
    written = len(to_bytes(packed(stored)))
    assert written == Ledger.of(stored).bytes
    assert 0.97 * size <= written <= size


@pytest.mark.parametrize("options", [{}, STREAM], ids=str)
def test_the_rate_follows_the_budget_while_the_set_learns(options):
    codec = a_codec(**options)
    rng = torch.Generator().manual_seed(3)
    first = float(codec.weight)
    for _ in range((2 if options else 4) * EVERY):
        with torch.no_grad():
            codec.blocks.add_(torch.randn(codec.blocks.shape, generator=rng) * 3)
        codec.project(codec.transform)
        stored = codec.stored() | {"step_size": Stored(torch.ones(1), "step")}
        assert Ledger.of(stored).bytes <= 30_000
    assert float(codec.weight) > (1 if options else 2) * first
    before = codec._bytes(0.0)
    for _ in range(20 * EVERY):
        codec.project(codec.transform)
    assert codec._bytes(0.0) < before, "the rate alone makes it smaller"


LABELS = [
    {"storage": storage, **more}
    for storage in ("fp32", "bf16", "int8", "int6", "int4", "int2")
    for more in ({}, {"scales": "row"}, {"scales": "group", "coder": "zlib"})
]


@pytest.mark.parametrize("options", LABELS, ids=str)
def test_labels_lie_beside_the_files_within_the_same_budget(options):
    size, plain = 30_000, a_codec(size=30_000, start=False)
    codec = a_codec(size=size, labels="soft", **options)
    assert len(codec) < len(plain), "labels take the place of images"
    with torch.no_grad():
        codec.labels.copy_(torch.randn(codec.labels.shape, generator=torch.Generator().manual_seed(2)) * 3)
    stored = codec.stored() | {"step_size": Stored(torch.ones(1), "step")}
    data = to_bytes(packed(stored))
    assert len(data) == Ledger.of(stored).bytes and 0.97 * size <= len(data) <= size
    twin = a_codec(size=size, labels="soft", start=False, **options)
    twin.restore(unpacked(from_bytes(data, "codec.safetensors")))
    assert to_bytes(packed(twin.stored() | {"step_size": stored["step_size"]})) == data
    codec.quantise()
    assert torch.equal(codec.labels, twin.labels) and torch.equal(codec.blocks, twin.blocks)
    torch.testing.assert_close(twin.decode(torch.arange(len(twin)))[1], twin.labels.softmax(1))
    assert all(torch.equal(twin.pixels(torch.tensor([i]))[0].detach().to(torch.uint8), pillow(one))
               for i, one in enumerate(twin.files()[:3]))  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_labels_start_between_the_class_and_the_teachers_probabilities_on_the_images_as_stored(share):
    codec = a_codec(labels="soft", storage="int8", teacher_share=share)
    shown, seen = as_stored(codec).images(torch.arange(len(codec))), []

    def predict(images, classes):
        seen.append(images)
        return images.mean((2, 3)) @ torch.ones(3, 10) * torch.linspace(-1, 1, 10)

    blocks = codec.blocks.detach().clone()
    codec.teach(predict)
    assert torch.equal(torch.cat(seen), shown) and torch.equal(codec.blocks, blocks)
    own = torch.nn.functional.one_hot(codec.classes(), 10).float()
    wanted = share * predict(shown, codec.classes()).softmax(1) + (1 - share) * own
    assert float((codec.decode(torch.arange(len(codec)))[1].detach() - wanted).abs().max()) < 10 * LEAST
    assert float((as_stored(codec).decode(torch.arange(len(codec)))[1] - wanted).abs().max()) < 0.03
    if share:
        assert float((wanted.amax(1)).std()) > 0.01, "no two images have the same label"


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_saving_and_reading_give_the_same_bits(options):
    codec = a_codec(**options)
    twin = a_codec(start=False, **options)
    twin.restore(unpacked(packed(codec.stored())))
    assert all(torch.equal(twin.stored()[name].tensor, one.tensor) for name, one in codec.stored().items())
    codec.quantise()
    assert torch.equal(codec.blocks, twin.blocks) and torch.equal(codec.steps, twin.steps)


def test_a_stream_holds_more_detail_than_scans_do_and_exports_the_same_files():
    scans, stream = (a_codec(images=300, size=60_000, entropy=name) for name in ("huffman", "context"))
    assert float(stream.steps.mean()) < float(scans.steps.mean())
    twin = as_stored(stream)
    for index, data in enumerate(twin.files()[:3]):
        assert torch.equal(twin.pixels(torch.tensor([index]))[0].detach().to(torch.uint8), pillow(data))


@pytest.mark.parametrize(("shape", "colours"), CASES)
def test_the_gradient_is_that_of_the_smooth_decoder(shape, colours):
    """Against finite differences over moves that are large beside the rounding."""
    codec = a_codec(shape, colours)
    with torch.no_grad():
        codec.blocks.mul_(0.5)  # away from the ends, where pixels are clipped
    index = torch.arange(8)
    direction = 4 * torch.randn(codec.blocks.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        middle = codec.blocks.clone()
        codec.blocks.copy_(middle + direction)
        above = codec.images(index)
        codec.blocks.copy_(middle - direction)
        moved = above - codec.images(index)
        codec.blocks.copy_(middle)
    (gradient,) = torch.autograd.grad((codec.images(index) * moved).sum(), [codec.blocks])
    assert float(moved.square().sum()) == pytest.approx(float((gradient * direction).sum()) * 2, rel=0.05)


def test_stored_smaller_and_shown_larger():
    codec = a_codec(side=16)
    assert codec.decode(torch.arange(4))[0].shape == (4, 3, 32, 32)
    assert pillow(files(codec)[0]).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 2}, "codec.bits"),
        ({"storage": "int4"}, r"fp32.*set codec\.labels=soft"),
        ({"start": "noise"}, "real"),
        ({"bits": 0.0}, "bits"),
        ({"dead_zone": 0.5}, "dead_zone=0.5.*below 0.5"),
        ({"labels": "soft", "teacher_share": 1.5}, "teacher_share=1.5.*0 to 1"),
    ],
)
def test_refused(options, text):
    with pytest.raises(Refused, match=text):
        Jpeg.Config(**options)


def test_a_side_larger_than_the_image_is_refused():
    with pytest.raises(Refused, match="1 to 32"):
        Jpeg.Config(side=40).fit(Budget(bytes=30_000), Spec((3, 32, 32), 10))
