"""A pretend GPU: tensors that say cuda:0, compute on the CPU and refuse what CUDA refuses.

It sees where tensors lie and what a CUDA graph allows, and nothing else: no kernels, streams, precision or memory. Refused
are operands on two devices, a CUDA index into a CPU tensor, a CPU generator for a CUDA draw, a copy that is said not to
block and would (its source is not contiguous), NumPy's view of a CUDA tensor, and, while a graph is captured, whatever
waits for the device. A captured graph is a tape: its replay computes anew from the captured inputs into the captured
outputs, so that an output held beyond the next replay changes as it would on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda", 0), torch.device("meta")
aten = torch.ops.aten

MOVES = {aten._to_copy.default, aten.copy_.default}
"""Take tensors of two devices."""
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
}
"""A CPU index into a CUDA tensor is moved; not the other way about."""
SCALARS = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill.Tensor, aten.fill_.Tensor}
"""Beside the pointwise operations, these take a CPU tensor without dimensions among CUDA operands."""
BLANK = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default}
"""What lies in fresh memory is no number."""
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
"""Their result is needed on the host."""


class Pretend(Tensor):
    """A CPU tensor that says it lies on a GPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretend:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=META,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Pretend({self.inner!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """As Tensor's own, which looks for memory that is not there."""
        if id(self) not in memo:
            memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
            memo[id(self)]._is_param = getattr(self, "_is_param", False)
        return memo[id(self)]  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise Refusal("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        return self.detach().cpu().numpy()

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_device(func, args, kwargs or {})


class Everywhere(TorchDispatchMode):
    """Factories too, which have no tensor to ask."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_device(func, args, kwargs or {})


class Surface(TorchFunctionMode):
    """What Python sees: tensors that C++ takes for `meta` lie on cuda:0, and what is asked for there comes to lie there.

    C++ is told `meta` because autograd would ask a CUDA driver for its streams.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            device = func(*args)
            return CUDA if device.type == "meta" else device
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return Tensor.device.__get__(args[0]).type == "meta"  # type: ignore[attr-defined]
        if func == Tensor.is_meta.__get__:  # type: ignore[attr-defined]
            return False
        if func is Tensor.cuda:
            return args[0].to(META)
        if func in (torch.tensor, torch.as_tensor) and is_gpu(kwargs.get("device")):
            return func(*args, **(kwargs | {"device": CPU})).to(META)
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], **kwargs).to(args[0].device)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], listed(args[1]), *args[2:])
        moves = func is Tensor.to
        args = tuple(META if is_gpu(one, moves) else one for one in args)
        return func(*args, **{name: META if is_gpu(one, name == "device") else one for name, one in kwargs.items()})


def listed(index: Any) -> Any:
    """Lists in an index as tensors: C++ would make them where it thinks the indexed tensor is, with nothing in them."""
    if isinstance(index, tuple):
        return tuple(listed(one) for one in index)
    return torch.tensor(index) if isinstance(index, list) else index


def is_gpu(one: Any, named: bool = True) -> bool:
    """`named`: where a string would be the name of a device."""
    return (isinstance(one, torch.device) and one.type == "cuda") or (
        named and isinstance(one, str) and one[:4] == "cuda"
    )


class Refusal(RuntimeError):
    """CUDA would not do this."""


def on_device(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: refused, or computed on the CPU and said to be where CUDA would leave it."""
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    target = kwargs.get("device")
    target = torch.device(target) if target is not None else None
    here = any(isinstance(one, Pretend) for one in tensors)
    there = target.type in ("cuda", "meta") if target is not None else here
    if not here and not there:
        return func(*args, **kwargs)
    refuse(func, args, kwargs, tensors, there)
    plain_args, plain_kwargs = tree_map(inner_of, (args, kwargs))
    if target is not None:
        plain_kwargs["device"] = CPU
    if func is aten._to_copy.default and there and not here:
        plain_kwargs["non_blocking"] = False
    plain_kwargs.pop("pin_memory", None)
    if func is aten._fused_sdp_choice.default:
        return 0  # the plain formula: CUDA's fused kernels are not here
    out = func(*plain_args, **plain_kwargs)
    if func in BLANK:
        out.fill_(torch.nan if out.is_floating_point() else 0)
    if Graph.open is not None:
        Graph.open.tape.append((func, plain_args, plain_kwargs, out))
    if func is aten.copy_.default:
        return args[0]
    if not there:
        return out
    wrapped = tree_map(lambda one: Pretend(one) if isinstance(one, Tensor) else one, out)
    return wrapped if target is not None else return_and_correct_aliasing(func, args, kwargs, wrapped)


def inner_of(one: Any) -> Any:
    return one.inner if isinstance(one, Pretend) else one


def refuse(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], there: bool) -> None:
    """What CUDA would say."""
    source = args[1] if func is aten.copy_.default else args[0] if func is aten._to_copy.default else None
    if func in MOVES and isinstance(source, Tensor):
        crosses = isinstance(source, Pretend) != (isinstance(args[0], Pretend) if func is aten.copy_.default else there)
        blocking = not (kwargs.get("non_blocking", False) or (func is aten.copy_.default and args[2:] == (True,)))
        if crosses and not blocking and not source.is_contiguous():
            raise Refusal(f"{func}: said not to block, but its source {tuple(source.shape)} is not contiguous")
        if crosses and Graph.open is not None:
            raise Refusal(f"{func}: a copy between devices while a graph is captured")
        return
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise Refusal(f"{func}: Expected a 'cuda' device type for generator but found 'cpu'")
    if func in WAITS and Graph.open is not None:
        raise Refusal(f"{func}: waits for the device while a graph is captured")
    if func in INDEXED:
        indexed, *rest = args
        if not isinstance(indexed, Pretend) and any(isinstance(one, Pretend) for one in tree_leaves(rest[0])):
            raise Refusal(f"{func}: indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if Graph.open is not None and any(
            not isinstance(one, Pretend) for one in tree_leaves(rest[0]) if one is not None
        ):
            raise Refusal(f"{func}: a CPU index while a graph is captured")
        tensors = [indexed, *(one for one in tree_leaves(rest[1:]) if isinstance(one, Tensor) and one.dim())]
    loose = func in SCALARS or torch.Tag.pointwise in func.tags
    places = {isinstance(one, Pretend) for one in tensors if isinstance(one, Pretend) or not (loose and one.dim() == 0)}
    if len(places) > 1:
        shapes = ", ".join(
            f"{tuple(one.shape)} on {'cuda:0' if isinstance(one, Pretend) else 'cpu'}" for one in tensors
        )
        raise Refusal(f"{func}: Expected all tensors to be on the same device, but found {shapes}")


class Graph:
    """Of torch.cuda.CUDAGraph: what was done between begin and end, done again into the same tensors."""

    open: Graph | None = None

    def __init__(self) -> None:
        self.tape: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for func, args, kwargs, kept in self.tape:
            again = func(*args, **kwargs)
            for new, old in zip(tree_leaves(again), tree_leaves(kept), strict=True):
                if isinstance(new, Tensor) and new.untyped_storage().data_ptr() != old.untyped_storage().data_ptr():
                    old.copy_(new)


@contextlib.contextmanager
def captured(graph: Graph, **options: Any) -> Iterator[None]:
    """Of torch.cuda.graph."""
    Graph.open = graph
    try:
        yield
    finally:
        Graph.open = None


class Stream:
    """Of torch.cuda.Stream: there is one order here."""

    def wait_stream(self, other: Stream) -> None:
        pass

    def is_capturing(self) -> bool:
        return Graph.open is not None


@pytest.fixture
def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Within the test there is a GPU; nothing is compiled, and everything that would be captured is."""
    submit = ThreadPoolExecutor.submit

    def entered(fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with Surface(), Everywhere():
                return fn(*args, **kwargs)

        return call

    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda pool, fn, *a, **k: submit(pool, entered(fn), *a, **k))
    monkeypatch.setattr(torch, "compile", lambda fn=None, **options: fn)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    cuda: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "pretend",
        "max_memory_allocated": lambda device=None: 2**20,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (20 * 2**30, 24 * 2**30),
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "current_stream": Stream,
        "Stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": captured,
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.accelerator, "current_stream", Stream)
    monkeypatch.setattr(torch.autograd, "has_torch_function", lambda args: False)  # its backward is to see our device
    with Surface(), Everywhere():
        yield CUDA
