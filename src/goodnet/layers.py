"""The layers of a net and which feeds which, as plain data: what a diagram is drawn from; and what a repair has
done to them. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("input", "layer", "operation", "output")


@dataclass(frozen=True, kw_only=True)
class LayerNode:
    """One step of a net's forward pass.

    Attributes:
        name: of the module, as in the state dict; a module that runs twice is two nodes. Empty for operations.
        kind: `Conv2d`, `ReLU`; of operations that no module holds (`add`), their names.
        role: one of ROLES; an operation is a step in the code of some `forward`.
        shape: of its output for one image, as torch has it: (C, H, W) or (F,).
        parameters: numbers that training sets, its own.
        detail: the setting that tells such layers apart, such as a convolution's `4x4, stride 2`.
        group: which of a GoodNet's nets it belongs to, empty elsewhere.
    """

    name: str
    kind: str
    role: str
    shape: tuple[int, ...]
    parameters: int = 0
    detail: str = ""
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerEdge:
    """The output of node `source` goes into node `target`; both count from 0."""

    source: int
    target: int


@dataclass(frozen=True, kw_only=True)
class LayerGraph:
    """A net. Nodes are in the order in which they run, so every edge leads to a later one; raises ValueError else."""

    title: str
    summary: str
    nodes: tuple[LayerNode, ...]
    edges: tuple[LayerEdge, ...]

    def __post_init__(self) -> None:
        for edge in self.edges:
            if not 0 <= edge.source < edge.target < len(self.nodes):
                raise ValueError(f"edge {edge.source} -> {edge.target}: expected to lead to a later node")


@dataclass(frozen=True, kw_only=True)
class ChangedLayer:
    """How much of a layer a repair has changed: channels of which any weight differs, and weights."""

    layer: str
    channels: int
    of_channels: int
    weights: int
    of_weights: int


@dataclass(frozen=True, kw_only=True)
class PrunedLayer:
    """The channels (or, of a linear layer, neurons) that were cut, in the order in which they went.

    `side` is `output` for the layer's own channels, `input` for the neurons in front of it.
    """

    layer: str
    channels: tuple[int, ...]
    side: str = "output"
