"""Puts fused operations into vLLM's compiled graphs: RMSNorm and SiLU-mul join the routed Linear that reads them.

vLLM compiles each piece of the model once per range of row counts. Pieces for large row counts are rewritten before
Inductor sees them; those for small ones stay as vLLM made them, and exact steps of any size run these: decode keeps its
very arithmetic.
A pattern that is not there (another activation, a norm with two readers) stays: the Linear quantizes by itself.

New nodes carry their example values on. PyTorch's compile cache asks for them; where one is missing, it takes a random
number for the piece's key, which ranks of one seed draw alike, so that one rank may get the piece of another's device.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from mixquant_agents.quant.ops import linear as _ops  # noqa: F401 - registers torch.ops.mixquant.gpu_*

__all__ = ["FUSE_FROM", "fuse"]

FUSE_FROM = 129
"""Pieces compiled for at least so many rows are rewritten; the runner's hook makes 128 a boundary of ranges."""

_LINEAR = "gpu_linear"


def _named(node: Any, namespace: str, name: str) -> bool:
    """Whether ``node`` calls ``torch.ops.<namespace>.<name>``, any overload."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    target = node.target
    packet = target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target
    return isinstance(packet, torch._ops.OpOverloadPacket) and packet._qualified_op_name == f"{namespace}::{name}"


def _calls(node: Any, function: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is function


def _half(node: Any, low: bool) -> tuple[fx.Node, int] | None:
    """``(p, d)`` when ``node`` is ``p[..., :d]`` (``low``) or ``p[..., d:]``."""
    if not _calls(node, operator.getitem) or node.kwargs:
        return None
    source, index = node.args
    if not (isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis and isinstance(index[1], slice)):
        return None
    start, stop = index[1].start, index[1].stop
    edge, other = (stop, start) if low else (start, stop)
    return (source, edge) if isinstance(edge, int) and other in (None, 0) else None


def _silu_source(node: fx.Node) -> fx.Node | None:
    """``p`` when ``node`` is ``silu(p[..., :d]) * p[..., d:]``."""
    if not _calls(node, operator.mul):
        return None
    for gate, up in (node.args, node.args[::-1]):
        if not _calls(gate, torch.nn.functional.silu):
            continue
        low, high = _half(gate.args[0], low=True), _half(up, low=False)
        if low is not None and low == high and len(gate.users) == 1:
            return low[0]
    return None


def _norm_arguments(norm: fx.Node, inputs: int) -> tuple[Any, ...] | None:
    """``(inputs…, gamma, eps)`` of a norm that has a weight and normalizes whole rows."""
    if norm.kwargs:
        return None
    gamma, eps, *rest = norm.args[inputs:]
    if not isinstance(gamma, fx.Node) or not isinstance(eps, float) or any(value is not None for value in rest):
        return None
    return tuple(norm.args[: inputs + 2])


def _replace(graph: fx.Graph, old: fx.Node, new: fx.Node) -> None:
    """``new`` in the place of ``old``, whose value it has."""
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    graph.erase_node(old)


def _drop(graph: fx.Graph, node: fx.Node) -> None:
    """Erase ``node`` if nothing reads it any more, and what only it has read.

    Not ``Graph.eliminate_dead_code``: that takes a method such as ``masked_fill_`` for pure, and erases it.
    """
    if node.users or node.op == "placeholder":
        return
    read = node.all_input_nodes
    graph.erase_node(node)
    for each in read:
        _drop(graph, each)


def _fuse_norm(graph: fx.Graph, node: fx.Node, norm: fx.Node) -> bool:
    arguments = _norm_arguments(norm, 1)
    if arguments is None:
        return False
    with graph.inserting_before(node):
        new = graph.call_function(torch.ops.mixquant.gpu_norm_linear.default, (*arguments, *node.args[1:]))
    _replace(graph, node, new)
    _drop(graph, norm)
    return True


def _fuse_add_norm(graph: fx.Graph, node: fx.Node, norm: fx.Node) -> bool:
    arguments = _norm_arguments(norm, 2)
    order = {each: index for index, each in enumerate(graph.nodes)}
    needed = [arg for arg in node.args[1:] if isinstance(arg, fx.Node)]
    if arguments is None or any(order[arg] > order[norm] for arg in needed):
        return False
    with graph.inserting_before(norm):
        new = graph.call_function(torch.ops.mixquant.gpu_add_norm_linear.default, (*arguments, *node.args[1:]))
        out = graph.call_function(operator.getitem, (new, 0))
        total = graph.call_function(operator.getitem, (new, 1))
    _replace(graph, node, out)
    for reader in list(norm.users):
        if reader.args[1] == 1:
            _replace(graph, reader, total)
        else:
            graph.erase_node(reader)
    _drop(graph, norm)
    _drop(graph, total)
    return True


def _fuse_one(graph: fx.Graph, node: fx.Node) -> bool:
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        return False
    if _named(source, "vllm_ir", "rms_norm"):
        return _fuse_norm(graph, node, source)
    if _calls(source, operator.getitem) and source.args[1] == 0:
        norm = source.args[0]
        simple = isinstance(norm, fx.Node) and all(_calls(user, operator.getitem) for user in norm.users)
        simple = simple and [user.args[1] for user in norm.users].count(0) == 1
        return simple and _named(norm, "vllm_ir", "fused_add_rms_norm") and _fuse_add_norm(graph, node, norm)
    halves = _silu_source(source)
    if halves is None:
        return False
    with graph.inserting_before(node):
        new = graph.call_function(torch.ops.mixquant.gpu_silu_linear.default, (halves, *node.args[1:]))
    _replace(graph, node, new)
    _drop(graph, source)
    return True


def fuse(module: fx.GraphModule) -> tuple[fx.GraphModule, int]:
    """A rewritten copy of ``module`` and how many operations were fused; ``module`` itself when there were none."""
    if not any(_named(node, "mixquant", _LINEAR) for node in module.graph.nodes):
        return module, 0
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    fused = 0
    for node in list(graph.nodes):
        if _named(node, "mixquant", _LINEAR) and not node.kwargs:
            fused += _fuse_one(graph, node)
    if not fused:
        return module, 0
    graph.lint()
    return fx.GraphModule(module, graph), fused
