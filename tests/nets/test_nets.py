"""Networks: the field's parameter counts, purity, second derivatives, vmap, batch norm's statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from rayd.data.images import Spec
from rayd.errors import Refused
from rayd.nets.convnet import Net, NetConfig
from rayd.schema import parse
from rayd.seeds import generator

ALL = ("convnet", "resnet18", "resnet50", "vgg11", "alexnet", "vit")


def small(name: str, spec: Spec, norm: str = "instance") -> Net:
    width = {"vit": 64, "alexnet": 16}.get(name, 8)
    return NetConfig(name=name, norm=norm, width=width, depth=2 if name == "vit" else None).build(spec)  # type: ignore[arg-type]


def batch(net: Net, n: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    rng = generator("batch")
    x = torch.rand(n, *net.spec.shape, generator=rng)
    y = torch.randint(net.spec.classes, (n,), generator=rng)
    return net.init(rng).to(dtype), x.to(dtype), y


@pytest.mark.parametrize(
    ("size", "classes", "count"),
    [(32, 10, 320_010), (32, 100, 504_420), (64, 200, 857_160), (128, 10, 615_690), (64, 1000, 2_496_360)],
)
def test_parameter_counts_of_the_field(size: int, classes: int, count: int) -> None:
    net = NetConfig().build(Spec((3, size, size), classes))
    assert net.size == net.trainable == net.flat.size == count


@pytest.mark.parametrize(
    ("name", "size", "classes", "count"),
    [
        ("resnet18", 32, 10, 11_173_962),
        ("resnet18", 224, 1000, 11_689_512),
        ("resnet50", 224, 1000, 25_557_032),
        ("vgg11", 32, 10, 9_231_114),
    ],
)
def test_parameter_counts_of_the_zoo(name: str, size: int, classes: int, count: int) -> None:
    net = NetConfig(name=name, norm="batch").build(Spec((3, size, size), classes))  # type: ignore[arg-type]
    assert net.trainable == count and net.size > count


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "spec", [Spec((1, 28, 28), 10), Spec((3, 28, 28), 3), Spec((3, 64, 64), 7), Spec((3, 224, 224), 5)]
)
def test_any_size(name: str, spec: Spec) -> None:
    net = small(name, spec)
    theta_P, x, _ = batch(net, 2)
    features = net.features(theta_P, x)
    assert len(features) >= 2 and features[-1].ndim == 2
    logits = net(theta_P, x)
    assert logits.shape == (2, spec.classes) and bool(logits.isfinite().all())
    assert torch.allclose(net.logits(theta_P, features[-1]), logits, atol=1e-5)


def test_digits_and_depths() -> None:
    nets = [NetConfig().build(Spec((3, s, s), 10)) for s in (8, 28, 32, 64, 128, 256)]
    assert [net.depth for net in nets] == [2, 3, 3, 4, 5, 6]  # type: ignore[attr-defined]
    net = NetConfig(width=4, depth=3).build(Spec((1, 8, 8), 10))
    theta_P, x, _ = batch(net)
    assert [tuple(f.shape[1:]) for f in net.features(theta_P, x)] == [(4, 4, 4), (4, 2, 2), (4, 1, 1), (4,)]
    with pytest.raises(Refused, match=r"net.depth=4.*1 to 3"):
        NetConfig(depth=4).build(Spec((1, 8, 8), 10))
    with pytest.raises(Refused, match=r"net.name=vgg11"):
        NetConfig(name="vgg11").build(Spec((1, 8, 8), 10))


@pytest.mark.parametrize(
    "wrong", [{"name": "lenet"}, {"norm": "layer"}, {"depth": 0}, {"width": -1}, {"name": "vgg11", "depth": 2}]
)
def test_illegal_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(Refused, match=r"net\."):
        parse(NetConfig, wrong, "net")


def test_init_is_torchs_own_and_explicit() -> None:
    net = NetConfig(width=16).build(Spec((3, 32, 32), 10))
    before = torch.random.get_rng_state()
    theta_P = net.init(generator(1))
    assert torch.equal(theta_P, net.init(generator(1))) and not torch.equal(theta_P, net.init(generator(2)))
    assert torch.equal(before, torch.random.get_rng_state())
    views = net.flat.split(theta_P)
    for name, plain in (("conv1", torch.nn.Conv2d(16, 16, 3)), ("head", torch.nn.Linear(256, 10))):
        assert views[f"{name}.weight"].std() == pytest.approx(plain.weight.std().item(), rel=0.1)
        assert views[f"{name}.bias"].abs().max() <= plain.weight.abs().max() * 1.05
    assert torch.equal(net.flat.join(views), theta_P)
    with pytest.raises(ValueError, match=r"head\.bias"):
        net.flat.join({name: view for name, view in views.items() if name != "head.bias"})


def test_convnet_is_the_textbooks() -> None:
    net = NetConfig(width=8).build(Spec((3, 32, 32), 10))
    theta_P, x, _ = batch(net)
    p, h = net.flat.split(theta_P), x
    for i in range(3):
        h = F.conv2d(h, p[f"conv{i}.weight"], p[f"conv{i}.bias"], padding=1)
        h = F.avg_pool2d(F.relu(F.group_norm(h, 8, p[f"norm{i}.weight"], p[f"norm{i}.bias"])), 2)
    assert torch.allclose(net(theta_P, x), F.linear(h.flatten(1), p["head.weight"], p["head.bias"]), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_are_torchvisions(name: str) -> None:
    import torchvision

    net = NetConfig(name=name, norm="batch").build(Spec((3, 96, 96), 1000))  # type: ignore[arg-type]
    theta_P, x, _ = batch(net, 2)
    theirs = getattr(torchvision.models, name)(weights=None).train()
    torch.nn.utils.vector_to_parameters(theta_P[: net.trainable].clone(), theirs.parameters())
    with torch.no_grad():
        ours, tail = net.train_step_stats(theta_P, x)
        assert torch.allclose(ours, theirs(x), atol=1e-3)
        assert torch.allclose(net(torch.cat([theta_P[: net.trainable], tail]), x), theirs.eval()(x), atol=1e-3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("norm", ["instance", "group", "batch", "none"])
def test_second_derivatives(name: str, norm: str) -> None:
    """The gradient along lambda, differentiated by the images, against the change of the gradient itself."""
    net = small(name, Spec((3, 32, 32), 5), norm)
    theta_P, x, y = batch(net, dtype=torch.float64)
    lam = torch.randn(net.size, generator=generator("lam"), dtype=torch.float64)
    lam[net.trainable :] = 0

    def along(t: Tensor, z: Tensor) -> Tensor:
        g: Tensor = grad(lambda u: F.cross_entropy(net(u, z, train=True), y))(t)
        return g @ lam

    by_theta, by_x = torch.func.grad(along, argnums=(0, 1))(theta_P, x)
    assert bool(by_theta.isfinite().all()) and bool(by_x.isfinite().all())
    assert by_theta.abs().sum() > 0 and by_x.abs().sum() > 0
    if name in ("convnet", "vit"):
        way, eps = torch.randn(x.shape, generator=generator("way"), dtype=torch.float64), 1e-6
        change = (along(theta_P, x + eps * way) - along(theta_P, x - eps * way)) / (2 * eps)
        assert float((by_x * way).sum()) == pytest.approx(float(change), rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_vmap_over_experts(name: str) -> None:
    net = small(name, Spec((3, 32, 32), 5))
    _, x, y = batch(net)
    thetas = torch.stack([net.init(generator(i)) for i in range(2)])
    together = vmap(lambda t: net(t, x))(thetas)
    assert torch.allclose(together, torch.stack([net(t, x) for t in thetas]), atol=1e-4)
    grads = vmap(grad(lambda t, z: F.cross_entropy(net(t, z), y)), in_dims=(0, 0))(thetas, torch.stack([x, x]))
    assert grads.shape == thetas.shape and bool(grads.isfinite().all())


def test_batch_norm_statistics() -> None:
    net = NetConfig(width=8, norm="batch").build(Spec((3, 32, 32), 10))
    theta_P, x, _ = batch(net, 16)
    assert not torch.allclose(net(theta_P, x), net(theta_P, x, train=True))
    for _ in range(200):
        _, tail = net.train_step_stats(theta_P, x)
        theta_P = torch.cat([theta_P[: net.trainable], tail])
    assert torch.allclose(net(theta_P, x), net(theta_P, x, train=True), atol=0.02)
    logits, moments = net.moments(theta_P, x)
    assert torch.allclose(logits, net(theta_P, x)) and len(moments) == 3
    assert torch.allclose(moments[0].mean_C, moments[0].running_mean_C, atol=1e-3)


def test_low_precision_and_fingerprint() -> None:
    net = NetConfig(width=8).build(Spec((3, 32, 32), 10))
    theta_P, x, _ = batch(net)
    low = net(theta_P.bfloat16(), x.bfloat16())
    assert low.dtype == torch.bfloat16 and torch.allclose(low.float(), net(theta_P, x), atol=0.1)
    same, other = (NetConfig(width=w).build(Spec((3, 32, 32), 10)) for w in (8, 9))
    assert net.fingerprint() == same.fingerprint() != other.fingerprint()


def test_compiled_second_derivative() -> None:
    net = NetConfig(width=4, depth=1).build(Spec((1, 8, 8), 3))
    theta_P, x, y = batch(net)
    lam = torch.randn(net.size, generator=generator("lam"))

    def along(t: Tensor, z: Tensor) -> Tensor:
        g: Tensor = grad(lambda u: F.cross_entropy(net(u, z), y))(t)
        return g @ lam

    step = torch.func.grad(along, argnums=(0, 1))
    plain, fast = step(theta_P, x), torch.compile(step, dynamic=False, fullgraph=True)(theta_P, x)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, fast, strict=True))
