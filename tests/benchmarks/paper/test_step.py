"""`python -m benchmarks.paper.step`: each way changes the step as its name says, and the profile knows its kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

pytest.importorskip("mlxtend")

from benchmarks.paper import step
from benchmarks.paper.networks import AssociationNetwork
from benchmarks.paper.runs import initial_network

pytestmark = pytest.mark.usefixtures("one_thread")

# Images that pass together; dtype of the embeddings; weights in channels_last; graphs that were compiled; fused Adam.
USUAL = {"passes": [200], "dtype": torch.float32, "channels_last": True, "graphs": 0, "fused": False}
CHANGES: dict[str, dict[str, Any]] = {
    "float32": {},
    "without channels_last": {"channels_last": False},
    "labelled and unlabelled apart": {"passes": [100, 100]},
    "fused Adam": {"fused": True},
    "`torch.compile` of the network": {"graphs": 1},
    "bf16": {"dtype": torch.bfloat16},
    "bf16, `torch.compile` of the network": {"dtype": torch.bfloat16, "graphs": 1},
}


def operations(run: Callable[[], None]) -> set[str]:
    """The profiler's names of what ``run`` does."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        run()
    return {event.key for event in record.key_averages()}


@pytest.mark.parametrize("name", step.WAYS)
def test_each_way_changes_what_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[AssociationNetwork] = []
    graphs: list[torch.fx.GraphModule] = []
    embeddings: list[torch.Tensor] = []

    def observed_network(*arguments: Any) -> AssociationNetwork:
        networks.append(initial_network(*arguments))
        networks[0].register_forward_hook(lambda network, images, output: embeddings.append(output))
        return networks[0]

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(step, "initial_network", observed_network)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))  # Inductor takes a minute
    torch.compiler.reset()
    done = operations(step.training_step(step.WAYS[name]))
    convolutions = [layer for layer in networks[0].modules() if isinstance(layer, nn.Conv2d)]
    assert {
        "passes": [len(output) for output in embeddings],
        "dtype": embeddings[0].dtype,
        "channels_last": all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in convolutions),
        "graphs": len(graphs),
        "fused": "aten::addcdiv_" not in done,  # one of the operations that it replaces
    } == USUAL | CHANGES[name]


@pytest.mark.parametrize("name", ["float32", "bf16"])
def test_every_named_operation_occurs(name: str) -> None:
    # Where the processor has no instructions for it, PyTorch convolves bf16 in a way of its own.
    slow = name == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    absent = {"mkldnn_convolution"} if slow else {"slow_conv2d_forward", "slow_conv2d_backward"}
    done = operations(step.training_step(step.WAYS[name]))
    assert absent == {part for parts in step.KINDS.values() for part in parts if not any(part in key for key in done)}


def test_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ROUNDS", "WARM_UP", "PROFILED_STEPS"):
        monkeypatch.setattr(step, name, 1)
    monkeypatch.setattr(step, "WAYS", {name: way for name, way in step.WAYS.items() if "compile" not in name})
    step.main()
    ways, shares = capsys.readouterr().out.split("| share of the operations' time | float32 | bf16 |")
    assert all(f"| {name} | " in ways for name in step.WAYS)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shares.strip().splitlines()[1:]]
    assert [kind for kind, *_ in rows] == [*step.KINDS, "everything else"]
    percent = {kind: [float(share.rstrip(" %")) for share in row] for kind, *row in rows}
    for column in (0, 1):
        convolutions = [percent[f"convolutions, {way}"][column] for way in ("backward", "forward")]
        assert min(convolutions) > percent["the association loss, both"][column]
