"""Augmentation: siamese, deterministic, differentiable, as DSA's; transforms: invertible, cached, restorable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rayd.data.augment import COLUMNS, AugmentConfig, Draw
from rayd.data.config import DataConfig
from rayd.data.load import load as load_data
from rayd.data.transform import Transform
from rayd.errors import Refused
from rayd.schema import parse
from rayd.seeds import generator

OPS = tuple(COLUMNS)


pytestmark = pytest.mark.usefixtures("cache")


def images(n: int = 4, c: int = 3, side: int = 16) -> torch.Tensor:
    return torch.randn(n, c, side, side, generator=generator("images"))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_operation_is_pure_and_differentiable(op: str, channels: int) -> None:
    augment = AugmentConfig(ops=(op,)).build()
    x = images(3, channels, 8).double().requires_grad_()
    draw = augment.draw(generator("draw", op), 3, (channels, 8, 8))
    before = torch.random.get_rng_state()
    first = augment(x, draw)
    assert first.shape == x.shape and first.dtype == x.dtype
    assert torch.equal(first, augment(x, draw))
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is nobody's"
    if op == "rotate":  # its coordinates are fp32 by plan
        assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()
    else:
        assert torch.autograd.gradcheck(lambda z: augment(z, draw), (x,), eps=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_a_shared_draw_is_siamese_whatever_the_batch(op: str) -> None:
    augment = AugmentConfig(ops=(op,), share="batch").build()
    draw = augment.draw(generator("shared", op), 9, (3, 16, 16))
    x = images(4)
    alone = torch.cat([augment(one[None], draw) for one in x])
    assert torch.allclose(augment(x, draw), alone, atol=1e-6)


@pytest.mark.parametrize("op", OPS)
def test_draws_follow_their_images(op: str) -> None:
    augment = AugmentConfig(ops=(op,)).build()
    draw = augment.draw(generator("rows", op), 4, (3, 16, 16))
    x = images(4)
    whole = augment(x, draw)
    assert torch.allclose(whole[1:3], augment(x[1:3], draw.rows(1, 3)), atol=1e-6)


def test_policies() -> None:
    one = AugmentConfig().build()
    drawn = {one.draw(generator("one", i), 2, (3, 16, 16)).ops for i in range(60)}
    assert drawn == {(op,) for op in OPS}
    always = AugmentConfig(policy="always").build()
    drawn = {always.draw(generator("always", i), 2, (3, 16, 16)).ops for i in range(40)}
    assert drawn == {("flip", "color", op, "cutout") for op in ("crop", "scale", "rotate")}
    few = AugmentConfig(ops=("color", "crop", "cutout"), policy="always").build()
    assert few.draw(generator("few"), 2, (3, 16, 16)).ops == ("color", "crop", "cutout")
    nothing = AugmentConfig(ops=()).build()
    draw = nothing.draw(generator("none"), 2, (3, 16, 16))
    x = images(2)
    assert draw.ops == () and nothing(x, draw) is x


def test_ranges_are_those_of_dsa() -> None:
    n, shape = 4000, (3, 32, 32)
    values = {op: AugmentConfig(ops=(op,)).build().draw(generator("ranges", op), n, shape).values_NK for op in OPS}
    assert values["crop"].unique().tolist() == list(range(-4, 5))
    assert values["cutout"].min() == 0 and values["cutout"].max() == 32
    assert 0.45 < values["flip"].mean() < 0.55
    assert values["scale"].min() >= 1 / 1.2 and values["scale"].max() <= 1.2
    assert values["rotate"].abs().max() <= 15 * torch.pi / 180
    low, high = values["color"].min(0).values, values["color"].max(0).values
    assert torch.allclose(low, torch.tensor([-0.5, 0, 0.5]), atol=0.01)
    assert torch.allclose(high, torch.tensor([0.5, 2, 1.5]), atol=0.01)


def test_crop_cutout_flip_against_the_plain_way() -> None:
    x = images(1, 2, 8)
    crop = AugmentConfig(ops=("crop",)).build()(x, Draw(("crop",), torch.tensor([[1.0, -1.0]])))
    assert torch.equal(crop[..., :-1, 1:], x[..., 1:, :-1]) and bool((crop[..., -1, :] == 0).all())
    cut = AugmentConfig(ops=("cutout",)).build()(x, Draw(("cutout",), torch.tensor([[0.0, 4.0]])))
    assert bool((cut[..., :2, 2:6] == 0).all()) and int((cut == 0).sum()) == 2 * 2 * 4
    flip = AugmentConfig(ops=("flip",)).build()(x, Draw(("flip",), torch.tensor([[1.0]])))
    assert torch.equal(flip, x.flip(3))


def test_scale_is_bilinear_sampling() -> None:
    x = images(3)
    zoom = torch.tensor([[0.9, 1.1], [1.2, 1.0], [1 / 1.2, 1.15]])
    affine = torch.zeros(3, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = zoom[:, 0], zoom[:, 1]
    plain = F.grid_sample(x, F.affine_grid(affine, list(x.shape), align_corners=False), align_corners=False)
    assert torch.allclose(AugmentConfig().build()(x, Draw(("scale",), zoom)), plain, atol=1e-4)


@pytest.mark.parametrize("wrong", [{"ops": ("blur",)}, {"ops": ("flip", "flip")}, {"policy": "some"}, {"share": "all"}])
def test_illegal_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(Refused, match=r"augment\."):
        parse(AugmentConfig, wrong, "augment")


@pytest.mark.parametrize("kind", ["normalise", "zca", "none"])
def test_transforms_invert_and_come_back(kind: str) -> None:
    train = load_data(DataConfig(name="generated", size=6, count=300, val=0)).train
    transform = Transform.fit(train, kind)  # type: ignore[arg-type]
    pixels = train.pixels_NCHW[:20]
    x = transform(pixels)
    assert x.dtype == torch.float32 and torch.equal(x, transform(pixels.float() / 255))
    assert torch.allclose(transform.inverse(x), pixels.float() / 255, atol=1e-4)
    back = Transform.restore(transform.meta(), transform.tensors(), train.spec)
    assert torch.equal(back(pixels), x) and back.fingerprint() == transform.fingerprint()
    bounds = transform.bounds()
    if kind == "zca":
        assert bounds is None
    else:
        assert bounds is not None
        ends = [transform(torch.full((1, 3, 1, 1), v))[0, :, 0, 0] for v in (0.0, 1.0)]
        assert torch.allclose(torch.stack(bounds), torch.stack(ends))


def test_zca_whitens_as_its_formula_says_and_is_cached(tmp_path: Path) -> None:
    train = load_data(DataConfig(name="generated", size=4, count=2000, val=0)).train
    transform = Transform.fit(train, "zca")
    flat = train.pixels_NCHW.flatten(1).double() / 255
    values, vectors = torch.linalg.eigh(flat.T.cov())
    expected = vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T
    assert transform.matrix_DD is not None
    assert torch.allclose(transform.matrix_DD.double(), expected, atol=1e-4)
    (kept,) = (tmp_path / "cache").glob("zca-*.npy")
    stamp = kept.stat().st_mtime_ns
    again = Transform.fit(train, "zca")
    assert kept.stat().st_mtime_ns == stamp
    assert torch.equal(again(train.pixels_NCHW[:3]), transform(train.pixels_NCHW[:3]))
    other = load_data(DataConfig(name="generated", size=4, count=2000, val=0, seed=1)).train
    assert Transform.fit(other, "zca").fingerprint() != transform.fingerprint()
