"""The contract, codec by codec."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import rayd
from rayd.artifact import write
from rayd.data.transform import Transform
from rayd.distill.budget import Budget, Ledger, Stored, packed, unpacked
from rayd.distill.contract import OptimiserConfig
from rayd.distill.storage import FORM, TYPES
from rayd.distill.unroll import Inner, unroll
from rayd.errors import Refused
from rayd.methods.haba import Haba
from rayd.methods.idc import Formation
from rayd.methods.lodc import Lodc
from rayd.methods.lss import Lss
from rayd.methods.nsd import Nsd
from rayd.methods.pixel import Pixel
from rayd.schema import parse, to_dict
from tests.support.codecs import CONFIGS, SPEC, built, smooth


@pytest.fixture(params=CONFIGS)
def codec(request):
    return built(CONFIGS[request.param])


def test_shapes_and_classes(codec):
    index = torch.arange(len(codec))
    images, labels = codec.decode(index)
    assert images.shape == (len(codec), *SPEC.shape)
    assert torch.allclose(labels.sum(1), torch.ones(len(codec)))
    assert torch.equal(labels.argmax(1), codec.classes())
    assert sorted(torch.cat([codec.of_class(c) for c in range(4)]).tolist()) == index.tolist()
    assert all(len(codec.of_class(c)) for c in range(4))
    assert len(codec) == torch.tensor(list(codec.axes.values())).prod()
    assert torch.isfinite(images).all() and 0.2 < float(images.detach().std()) < 3


def test_decode_is_pure_and_indexable(codec):
    index = torch.randperm(len(codec), generator=torch.Generator().manual_seed(3))[:7]
    images, labels = codec.decode(index)
    again, _ = codec.decode(index)
    assert torch.equal(images, again)
    every, all_labels = codec.decode(torch.arange(len(codec)))
    assert torch.allclose(images, every[index], atol=1e-5)
    assert torch.equal(labels, all_labels[index])
    twice, _ = codec.decode(index[[0, 0, 1]])
    assert torch.allclose(twice, images[[0, 0, 1]], atol=1e-5)


def test_every_stored_number_gets_a_gradient(codec):
    images, labels = codec.decode(torch.arange(len(codec)))
    rng = torch.Generator().manual_seed(4)
    value = (images * torch.randn(images.shape, generator=rng)).sum()
    value = value + (labels * torch.randn(labels.shape, generator=rng)).sum()
    stored = {name: one.tensor for name, one in codec.stored().items()}
    grads = torch.autograd.grad(value, list(stored.values()))
    for name, g in zip(stored, grads, strict=True):
        assert (g != 0).float().mean() > 0.999, name
    moved = {id(p) for player in codec.players() for p in player.params}
    assert moved == {id(t) for t in stored.values()}, "what is stored is what is learned"


def test_minibatches(codec):
    rng = torch.Generator().manual_seed(5)
    size = min(6, codec.full_batch)
    batches = codec.draws(rng, 6, 5)
    assert [len(b) for b in batches] == [size] * 5
    assert all(b.unique().numel() == size and b.max() < len(codec) for b in batches)
    assert all(len(b.unique()) == codec.full_batch for b in codec.draws(rng, len(codec), 2))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("storage", TYPES)
def test_the_file_is_all_it_takes(name, storage):
    """Ledger, save, rebuild: what is decoded from the file is what the stored numbers decode to."""
    config = CONFIGS[name]
    config = (
        replace(config, under=replace(config.under, storage=storage))
        if name.startswith("formation")
        else replace(config, storage=storage)
    )
    codec = built(config)
    stored = codec.stored()
    file = packed(stored)
    assert Ledger.of(stored).floats == codec.config.floats(SPEC) - 1
    if not any(name.endswith(FORM) for name in file):
        assert Ledger.of(stored).floats == sum(t.numel() for t in file.values())
    assert Ledger.of(stored).floats < Budget(ipc=3).limit(SPEC)
    plain = json.loads(json.dumps(to_dict(codec.config)))
    again = parse(type(codec).Config, plain).build(SPEC, torch.Generator().manual_seed(9))
    assert again.config == codec.config
    for key, tensor in unpacked(file).items():
        again.stored()[key].tensor.data.copy_(tensor)
    index = torch.arange(len(codec))
    images, labels = again.decode(index)
    twice = packed(again.stored())
    assert all(torch.equal(file[k], twice[k]) for k in file), "saving what was loaded gives the same bytes"
    exact, exact_labels = codec.decode(index)
    if storage == "fp32":
        assert torch.equal(images, exact) and torch.equal(labels, exact_labels)
    elif storage in ("fp16", "bf16", "int8"):
        assert float(((images - exact).square().mean().sqrt() / exact.std()).detach()) < 0.05


@pytest.mark.parametrize("storage", ["fp32", "int8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_artifact_is_the_codec(tmp_path, name, storage):
    """Ledger and file agree to the byte; what is loaded decodes to what the stored numbers say."""
    config = CONFIGS[name]
    under = isinstance(config, Formation.Config)
    config = (
        replace(config, under=replace(config.under, storage=storage)) if under else replace(config, storage=storage)
    )
    codec = built(config)
    stored = codec.stored() | {"step_size": Stored(torch.tensor([0.01]), "step")}
    written = {"name": name.split("-")[0], **to_dict(codec.config)}
    transform = Transform("normalise", torch.zeros(3), torch.ones(3))
    about = write.Provenance(codec=written, spec=SPEC, classes=("a", "b", "c", "d"))
    made = write.files(about, codec, stored, transform)
    write.save(tmp_path, about, codec, stored, transform)
    artifact = rayd.load(tmp_path)
    ledger = json.loads(made["ledger.json"])
    assert ledger["bytes"] == len(made["codec.safetensors"])
    assert ledger["floats"] == codec.config.floats(SPEC)
    back = artifact.codec.decode(torch.arange(len(codec)))[0]
    if storage == "fp32":
        assert torch.equal(back, codec.decode(torch.arange(len(codec)))[0])
    again = packed(artifact.codec.stored())
    assert all(torch.equal(again[key], tensor) for key, tensor in packed(codec.stored()).items())


def test_a_fresh_process_decodes_the_same(tmp_path):
    codec = built(CONFIGS["nsd"])
    from safetensors.torch import save_file

    save_file(packed(codec.stored()), tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(json.dumps(to_dict(codec.config)))
    program = (
        "import json, sys, torch; from safetensors.torch import load_file; from rayd.distill.budget import unpacked\n"
        "from rayd.data.images import Spec; from rayd.methods.nsd import Nsd; from rayd.schema import parse\n"
        "config = parse(Nsd.Config, json.load(open(sys.argv[1] + '.json')))\n"
        "codec = config.build(Spec((3, 16, 16), 4), torch.Generator())\n"
        "tensors = unpacked(load_file(sys.argv[1] + '.safetensors'))\n"
        "[one.tensor.data.copy_(tensors[name]) for name, one in codec.stored().items()]\n"
        "print(codec.decode(torch.arange(len(codec)))[0].double().sum().item().hex())"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == codec.decode(torch.arange(len(codec)))[0].double().sum().item().hex()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_unit_step_moves_images_as_it_would_move_pixels(name):
    """RMS change per pixel of a +-lr step of one factor at its scale, other signs than those of the measurement."""
    codec = built(CONFIGS[name])
    index = torch.arange(len(codec))
    before, lr = codec.decode(index)[0].detach(), 1e-2
    for player in codec.players():
        if player.name == "labels":
            continue
        (p,) = player.params
        kept, moved = p.detach().clone(), []
        for seed in range(6):
            signs = torch.randint(2, p.shape, generator=torch.Generator().manual_seed(100 + seed)) * 2 - 1
            p.data = kept + lr * player.scale * signs
            moved.append((codec.decode(index)[0].detach() - before).square().mean())
            p.data = kept
        rms = float(torch.stack(moved).mean().sqrt())
        low = 0.5 if name.startswith("formation") else 0.75  # a cell is interpolated; a few biases are few numbers
        assert low < rms / lr < 1.3, (player.name, rms / lr)


def test_pixels_have_scale_one():
    assert [p.scale for p in built(Pixel.Config()).players()] == [1.0]


def test_scales_depend_on_the_plan_only():
    one, two = (built(CONFIGS["nsd"]).players() for _ in range(2))
    assert [p.scale for p in one] == [p.scale for p in two]


@pytest.mark.parametrize("name", ["lodc", "lss", "nsd-global", "haba", "formation-lodc"])
def test_the_inner_loop_gradient_through_decode_is_exact(name):
    """Against the full graph of the same steps, in double precision."""
    codec = built(CONFIGS[name]).double()
    leaves = list(codec.parameters())
    rng = torch.Generator().manual_seed(0)
    theta = torch.randn(4 * 48, generator=rng, dtype=torch.float64) * 0.1
    indices = codec.draws(rng, 6, 3)
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(theta_P, x_NCHW, y_NK):
        pooled_ND = torch.nn.functional.avg_pool2d(x_NCHW, 4).flatten(1)
        return -(y_NK * (pooled_ND @ theta_P.view(48, 4)).log_softmax(1)).sum(1).mean()

    def batch(i):
        images, targets = codec.decode(indices[i])
        return images, targets.double()

    def value(end):
        return (end - 1).square().sum()

    end = unroll(Inner(loss, torch.device("cpu"), compile=False), theta, batch, 3, rate, leaves)
    ours = torch.autograd.grad(value(end), [*leaves, rate])
    full = theta.requires_grad_()
    for i in range(3):
        (g,) = torch.autograd.grad(loss(full, *batch(i)), full, create_graph=True)
        full = full - rate * g
    theirs = torch.autograd.grad(value(full), [*leaves, rate])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


# --- rank -----------------------------------------------------------------------------------------------------------


def ranks(x: torch.Tensor) -> int:
    return int(torch.linalg.matrix_rank(x.detach().double(), rtol=1e-5).max())


@pytest.mark.parametrize("start", ["real", "noise"])
def test_rank_as_promised(start):
    for config in (
        Lodc.Config(rank=2, start=start),
        Lss.Config(rank=2, sides="one", start=start),
        Lss.Config(rank=3, sides="two", start=start),
    ):
        codec = built(config)
        assert ranks(codec.decode(torch.arange(len(codec)))[0]) == config.rank
    codec = built(Nsd.Config(rank=3, sharing=2, start=start))
    images = codec.decode(torch.arange(len(codec)))[0]
    kernel = torch.arange(len(codec)) // codec.axes["column"] % 2
    for j in range(2):
        assert ranks(images[kernel == j].transpose(0, 2).flatten(1)) == 3, "H mode"
        assert ranks(images[kernel == j].transpose(0, 3).flatten(1)) == 3, "W mode"
    own = images[: codec.axes["column"]].flatten(1)
    assert ranks(own) == min(codec.config.slices, codec.axes["column"]), "B mode"


def test_full_rank_from_real_images_reproduces_them():
    take = smooth(SPEC)
    budget = Budget(ipc=20)
    configs = [
        Pixel.Config(),
        Lodc.Config(rank=16),
        Lss.Config(rank=16, sides="one"),
        Lss.Config(rank=16, sides="two", scope="global"),
    ]
    for config in configs:
        codec = built(config, budget=budget)
        for c in range(4):
            own = codec.of_class(c)
            assert torch.allclose(codec.decode(own)[0], take(c, len(own)), atol=1e-4), config
    for basis in ("svd", "dct"):
        codec = built(Nsd.Config(rank=16, sharing=1, slices=5, columns=5, basis=basis, blend="pick"), budget=budget)
        for c in range(4):
            assert torch.allclose(codec.decode(codec.of_class(c))[0], take(c, 5), atol=1e-4), basis


def test_a_start_near_real_images():
    """Hallucinators near the identity, formations of shrunk images."""
    haba = built(Haba.Config(), budget=Budget(ipc=8))
    own = haba.of_class(2)
    real = smooth(SPEC)(2, haba.units_of(2)).repeat_interleave(haba.axes["hallucinator"], 0)
    assert (haba.decode(own)[0] - real)[..., 2:-2, 2:-2].square().mean() < 0.4 * real.square().mean()
    formation = built(CONFIGS["formation"])
    own = formation.of_class(1)
    real = smooth(SPEC)(1, len(own))
    assert (formation.decode(own)[0] - real).square().mean() < 0.2 * real.square().mean()


def test_formation_of_factor_one_is_the_codec_itself():
    one, plain = built(Formation.Config(factor=1)), built(Pixel.Config())
    assert torch.allclose(one.decode(torch.arange(12))[0], plain.decode(torch.arange(12))[0])


def test_formation_pads_what_it_does_not_divide():
    codec = built(Formation.Config(factor=3))
    assert codec.decode(torch.arange(len(codec)))[0].shape == (len(codec), 3, 16, 16)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lss-global", "nsd-global", "nsd-random", "haba", "formation-lodc"])
def test_a_teacher_sets_soft_labels(name):
    codec = built(CONFIGS[name])
    assert codec.learns_labels and CONFIGS[name].learns_labels
    start = codec.decode(torch.arange(len(codec)))[1].detach()
    assert torch.allclose(start.max(1).values, torch.tensor(0.9), atol=1e-4)
    codec.teach(lambda x, c: torch.tensor([3.0, 1.0, 0.0, 0.0]).expand(len(x), 4))
    taught = codec.decode(torch.arange(len(codec)))[1].detach()
    own = codec.of_class(0)
    assert torch.allclose(taught[own], torch.tensor([3.0, 1.0, 0, 0]).softmax(0).expand(len(own), 4), atol=1e-5)
    rest = codec.classes() != 0
    assert torch.equal(taught[rest], start[rest]), "a teacher that is wrong says nothing"


def test_rates_of_labels():
    (labels,) = [p for p in built(Lss.Config(labels="soft", lr_labels=5.0)).players() if p.name == "labels"]
    assert labels.optimiser == OptimiserConfig(name="sgd", lr=5.0, momentum=0.9)
    (labels,) = [p for p in built(Lss.Config(labels="soft")).players() if p.name == "labels"]
    assert labels.optimiser is None and labels.scale is None, "the run's, at its own rate"


def test_hard_labels_cost_nothing():
    soft, hard = (built(Lss.Config(labels=kind, rank=2, images=20, subspaces=4)) for kind in ("soft", "hard"))
    assert Ledger.of(soft.stored()).floats - Ledger.of(hard.stored()).floats == 20 * 4


# --- projection -----------------------------------------------------------------------------------------------------


def test_pixels_are_clamped_to_what_is_legal_on_request():
    transform = Transform("normalise", torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.2]))
    codec = built(Pixel.Config(clamp=True))
    codec.pixels.data.mul_(10)
    codec.project(transform)
    raw = transform.inverse(codec.pixels)
    assert raw.min() >= -1e-6 and raw.max() <= 1 + 1e-6
    white = Transform("zca", torch.zeros(2), torch.ones(1), torch.eye(2), torch.eye(2))
    with pytest.raises(Refused, match="clamp"):
        codec.project(white)
