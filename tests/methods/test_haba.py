"""What is HaBa's alone: a minibatch under one hallucinator, and the gradient of its convolutions."""

from __future__ import annotations

import torch

from rayd.distill.budget import Budget
from rayd.methods.haba import Haba, conv
from tests.support.codecs import built


def test_one_hallucinator_a_minibatch():
    codec = built(Haba.Config(), budget=Budget(ipc=6))
    bases, styles = codec.axes.values()
    batches = codec.draws(torch.Generator().manual_seed(0), 5, 40)
    assert all((b % styles).unique().numel() == 1 for b in batches)
    assert torch.cat(batches).unique().numel() > 0.8 * len(codec)
    assert codec.full_batch == bases
    for whole in codec.draws(torch.Generator().manual_seed(0), len(codec), 3):
        assert (whole % styles).unique().numel() == 1 and (whole // styles).tolist() == list(range(bases))


def test_hallucinators_have_the_gradient_of_their_convolutions():
    rng = torch.Generator().manual_seed(0)
    x, kernel, bias = (
        torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 5, 5), (4, 3, 3, 3), (4,))
    )
    for padding in (0, 2):
        assert torch.autograd.gradcheck(lambda *all, p=padding: conv(*all, p), (x, kernel, bias))
        assert torch.autograd.gradgradcheck(lambda *all, p=padding: conv(*all, p), (x, kernel, bias))
