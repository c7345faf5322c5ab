"""Every error a user of the public functions can meet, in one place."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Similarity = Literal["dot", "cosine", "euclidean"]
Backend = Literal["auto", "cpu", "triton"]
GradientReduction = Literal["mean", "sum"]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
BACKENDS: tuple[Backend, ...] = get_args(Backend)
GRADIENT_REDUCTIONS: tuple[GradientReduction, ...] = get_args(GradientReduction)
ORDINARY = (Tensor, torch.nn.Parameter)
"""Types of tensors that are no more than their memory."""
_SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""Similarities over it are finite in float32 where they are at most 1."""
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_embeddings(a: Tensor, b: Tensor, over_ranks: bool = False) -> None:
    """Two floating-point matrices of one width on one device, not empty; a rank of several may have no row of ``a``."""
    width = _checked_width("a", a, may_lack_rows=over_ranks)
    if width != _checked_width("b", b):
        raise ValueError(f"a and b must have the same embedding size; got {width} and {b.shape[1]}")
    if a.device != b.device:
        raise RuntimeError(f"a and b must be on the same device; got {a.device} and {b.device}")


def _checked_width(name: str, x: Tensor, may_lack_rows: bool = False) -> int:
    _check_tensor(name, x)
    shape = x.shape
    if len(shape) != 2:
        raise ValueError(f"{name} must have 2 dimensions, samples x embedding; got shape {tuple(shape)}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64; got {x.dtype}")
    rows, width = shape
    if width == 0 or (rows == 0 and not may_lack_rows):
        raise ValueError(f"{name} must not be empty; got shape {tuple(shape)}")
    return width


def check_mixed_dtypes(a: Tensor, b: Tensor) -> None:
    """Two dtypes meet under autocast only."""
    if not torch.is_autocast_enabled(a.device.type):
        raise TypeError(f"a and b must have the same dtype outside autocast; got {a.dtype} and {b.dtype}")


def check_labels(labels: Tensor, a: Tensor) -> None:
    """One integer or bool for each row of ``a``, on the CPU or beside ``a``."""
    _check_tensor("labels", labels)
    dtype, shape = labels.dtype, labels.shape
    if dtype.is_floating_point or dtype.is_complex:
        raise TypeError(f"labels must be of an integer or bool dtype; got {dtype}")
    if len(shape) != 1:
        raise ValueError(f"labels must have 1 dimension, one label per row of a; got shape {tuple(shape)}")
    if shape[0] != a.shape[0]:
        raise ValueError(f"labels must hold one label per row of a; got {shape[0]} labels for {a.shape[0]} rows")
    if not labels.is_cpu and labels.device != a.device:
        raise RuntimeError(f"labels must be on the CPU or on the device of a ({a.device}); got {labels.device}")


def check_memory(**tensors: Tensor) -> None:
    """Each tensor's memory is there: its storage may have been freed, as sharded training does between uses."""
    for name, x in tensors.items():
        _check_memory(name, x)


def _check_memory(name: str, x: Tensor) -> None:
    if x.is_contiguous():
        length = x.numel()
    else:
        length = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    held, needed = x.untyped_storage().nbytes(), (x.storage_offset() + length) * x.element_size()
    if held < needed and not x._is_zerotensor():
        raise RuntimeError(
            f"the memory of {name} was released: its storage holds {held} bytes, and {name} of shape "
            f"{tuple(x.shape)} and dtype {x.dtype} needs {needed}"
        )


Form = tuple[torch.Size, torch.dtype, torch.device, int] | None


_NAMES = ("a", "b", "temperature")


def forms(tensors: tuple[Tensor | None, ...]) -> list[Form]:
    """Shape, dtype, device and bytes of memory of tensors, which `check_unchanged` compares with later."""
    return [None if x is None else (x.shape, x.dtype, x.device, x.untyped_storage().nbytes()) for x in tensors]


def check_unchanged(expected: list[Form], tensors: tuple[Tensor | None, ...]) -> None:
    """Tensors kept for the backward pass, ``a``, ``b`` and temperature first, are as the forward pass left them."""
    found = forms(tensors)
    if found == expected:
        return
    for number, (before, now) in enumerate(zip(expected, found, strict=True)):
        # Hooks on saved tensors may bring back one with memory of its own.
        if (before and before[:3]) != (now and now[:3]):
            name = _NAMES[number] if number < len(_NAMES) else "a tensor saved by the forward pass"
            raise RuntimeError(
                f"{name} changed between the forward and the backward pass of fastassoc's loss: "
                f"it was {_described(before)}, and is {_described(now)}"
            )
    # What the forward pass made itself nobody else frees.
    for number, x in enumerate(tensors[: len(_NAMES)]):
        if x is not None:
            _check_memory(_NAMES[number], x)


def _described(form: Form) -> str:
    return "None" if form is None else f"{tuple(form[0])} of {form[1]} on {form[2]}"


def check_options(
    walker_weight: Any,
    visit_weight: Any,
    similarity: Any,
    temperature: Any,
    eps: Any,
    ignore_index: Any,
    backend: Any,
    readable: bool = True,
) -> None:
    """The keyword arguments, in the order of the signature; ``readable``: whether tensors hold numbers to look at."""
    compiling = torch.compiler.is_compiling()
    hashable = (
        type(walker_weight) is type(visit_weight) is type(temperature) is type(eps) is float
        and type(similarity) is type(backend) is str
        and (ignore_index is None or type(ignore_index) is int)
    )
    check = _check_options_once if hashable and not compiling else _check_options
    check(walker_weight, visit_weight, similarity, temperature, eps, ignore_index, backend, readable, compiling)


def _check_options(
    walker_weight: Any,
    visit_weight: Any,
    similarity: Any,
    temperature: Any,
    eps: Any,
    ignore_index: Any,
    backend: Any,
    readable: bool,
    compiling: bool,
) -> None:
    _check_number("walker_weight", walker_weight, readable, compiling)
    _check_number("visit_weight", visit_weight, readable, compiling)
    _check_choice("similarity", similarity, SIMILARITIES)
    _check_number("temperature", temperature, readable, compiling)
    if _can_be_read(temperature, readable, compiling):
        value = temperature.item() if isinstance(temperature, Tensor) else float(temperature)
        if not value >= _SMALLEST_TEMPERATURE:
            learned = isinstance(temperature, Tensor) and temperature.requires_grad
            advice = "; learn its logarithm instead, and pass log_temperature.exp()" if learned else ""
            least = "greater than 0" if value <= 0.0 else f"at least {_SMALLEST_TEMPERATURE:.3g}"
            raise ValueError(f"temperature must be {least}; got {value}{advice}")
    if isinstance(eps, (Tensor, bool)) or not isinstance(eps, Real):
        raise TypeError(f"eps must be a float; got {type(eps).__name__}")
    _check_number("eps", eps, readable, compiling)
    if not 0.0 <= float(eps) <= 1.0:
        raise ValueError(f"eps must lie between 0 and 1, for it is added to probabilities; got {eps}")
    check_ignore_index(ignore_index)
    _check_choice("backend", backend, BACKENDS)


_check_options_once = functools.lru_cache(maxsize=16)(_check_options)
"""Training repeats the same options; only those that pass are remembered."""


def check_gradient_reduction(gradient_reduction: Any) -> None:
    """How gradients of ranks are put together."""
    _check_choice("gradient_reduction", gradient_reduction, GRADIENT_REDUCTIONS)


def check_group(group: Any) -> None:
    """A process group that this process belongs to, or "world", which may be made later."""
    if group is None or (isinstance(group, str) and group == "world"):
        return
    if torch.distributed.is_available():
        if isinstance(group, torch.distributed.ProcessGroup):
            return
        if group == torch.distributed.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("group must be one that this process belongs to; this process is not a member")
    raise TypeError(f"group must be a torch.distributed.ProcessGroup, 'world' or None; got {group!r}")


def found_group(group: ProcessGroup | Literal["world"]) -> ProcessGroup:
    """The group of that name; RuntimeError where there is none yet."""
    check_group(group)
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise RuntimeError("group needs torch.distributed.init_process_group to have been called in this process")
    if isinstance(group, str):
        world = torch.distributed.group.WORLD
        assert world is not None
        return world
    return group


def check_ordinary(**tensors: Tensor) -> None:
    """Tensors that are no more than their memory."""
    for name, x in tensors.items():
        if isinstance(x, Tensor) and type(x) not in ORDINARY:
            raise TypeError(f"{name} must be an ordinary torch.Tensor with group; got {type(x).__name__}")


def check_labels_fit(labels: Tensor) -> None:
    """Labels of several ranks meet as int64."""
    if labels.dtype == torch.uint64 and bool((labels.to(torch.int64) < 0).any()):
        raise ValueError("labels must fit in int64 with group; got a larger one in uint64")


def check_exchanged(a: Tensor, group: ProcessGroup) -> None:
    """The group can exchange tensors on the device of ``a``."""
    backends = torch.distributed.get_backend_config(group)
    if f"{a.device.type}:" not in backends:
        raise RuntimeError(f"group must exchange tensors on {a.device.type}, as a and b are; its backend is {backends}")


def check_ignore_index(ignore_index: Any) -> None:
    """None, or an int that a label can be."""
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral)):
        raise TypeError(f"ignore_index must be an int or None; got {type(ignore_index).__name__}")
    if ignore_index is not None and not -(2**63) <= int(ignore_index) < 2**63:
        raise ValueError(f"ignore_index must fit in int64; got {ignore_index}")


def check_rows_left(rows: int, ignore_index: int) -> None:
    """At least one labelled row starts a walk."""
    if rows == 0:
        raise ValueError(f"every label equals ignore_index={ignore_index}; at least one row of a must take part")


def checked_sample_labels(labels: Any) -> np.ndarray[Any, Any]:
    """The labels of a data set as int64 [N]; one at least."""
    try:
        x = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        got = type(labels).__name__
        if isinstance(labels, np.ndarray):
            got += f" of dtype {labels.dtype}"
        elif isinstance(labels, Sequence) and not isinstance(labels, str):
            other = next((x for x in labels if not isinstance(x, Integral)), None)
            got += f" ({error})" if other is None else f" with an item of type {type(other).__name__}"
        raise TypeError(f"labels must be a tensor, an array or a sequence of integers; got {got}") from error
    if x.is_meta:
        raise TypeError("labels must have values; got a tensor on the meta device")
    if x.ndim != 1:
        raise ValueError(f"labels must have 1 dimension, one label per sample; got shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError("labels must not be empty")
    if x.is_floating_point() or x.is_complex():
        raise TypeError(f"labels must be of an integer or bool dtype; got {x.dtype}")
    return x.detach().cpu().to(torch.int64).numpy()


def check_samples_left(samples: int, ignore_index: int) -> None:
    """At least one sample can be drawn."""
    if samples == 0:
        raise ValueError(f"every label equals ignore_index={ignore_index}; at least one sample must take part")


def check_count(name: str, value: Any, least: int, most: int | None = None) -> None:
    """An integer within bounds."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int; got {type(value).__name__}")
    if int(value) < least or (most is not None and int(value) > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {bounds}; got {value}")


def _check_tensor(name: str, x: Any) -> None:
    if type(x) in ORDINARY and x.layout == torch.strided and not x.is_nested:
        return
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}")
    if x.is_nested:
        raise TypeError(f"{name} is a nested tensor, which is not supported: pass its rows as one matrix")
    if x.layout != torch.strided:
        raise TypeError(f"{name} is of layout {x.layout}, which is not supported: pass {name}.to_dense()")
    if hasattr(x, "full_tensor"):
        raise TypeError(
            f"{name} is a {type(x).__name__}, which is not supported: pass {name}.to_local() with group where its rows "
            f"are split over processes, else {name}.full_tensor()"
        )


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; expected one of {', '.join(map(repr, choices))}")


def _can_be_read(value: Any, readable: bool, compiling: bool) -> bool:
    """Whether the number is at hand: reading a tensor would stall its device, or break a graph."""
    if isinstance(value, Tensor):
        return readable and value.device.type == "cpu"
    # torch.compile makes numbers that change from call to call symbols without a value.
    return not compiling


def _check_number(name: str, value: Any, readable: bool, compiling: bool) -> None:
    if compiling and isinstance(value, (int, float)):
        return
    if type(value) is float and math.isfinite(value):
        return
    if isinstance(value, Tensor):
        if value.ndim > 1 or value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(
                f"{name} must be a number, or a real tensor of one element; got a tensor of shape "
                f"{tuple(value.shape)} and dtype {value.dtype}"
            )
        if not _can_be_read(value, readable, compiling):
            return
        value = value.item()
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, or a real tensor of one element; got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")
