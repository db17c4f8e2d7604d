"""The files of each format, written whole or not at all, below one folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.export import Dim, ExportedProgram

from u2pl.data.images import refuse_way_out
from u2pl.engine.checkpoint import write_atomically
from u2pl.engine.trained import SegmentationModel
from u2pl.errors import UserError, import_extra
from u2pl.exporting.graph import INPUT, OUTPUTS, ExportGraph
from u2pl.models.encoders import quiet_libraries

FORMATS = ("onnx", "pt2", "safetensors", "hf")
"""What :func:`u2pl.export` writes."""

OPSET = 18  # of ONNX: the first whose Resize and ReduceSum are those that torch writes

_EXPORTERS = ("torch.onnx", "torch.export", "onnxscript")  # what they log is of their own insides

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From images [1, H, W, 3] uint8 to the mask [1, H, W] and the logits [1, C, H, W]."""


@dataclass(frozen=True)
class Traced:
    """A network as a graph.

    Attributes:
        program: the graph.
        size: (height, width) that its images must have, or None for any.
        smallest: sides of images from this on are sure to work.
    """

    program: ExportedProgram
    size: tuple[int, int] | None
    smallest: int


def trace(model: SegmentationModel) -> Traced:
    """Make a graph of a network: for any batch and size, or, where that fails, for its crop.

    Args:
        model: on the CPU.

    Raises:
        UserError: where torch.export cannot follow the network at all.
    """
    graph = ExportGraph(model).eval()
    multiple = model.network.multiple
    # neither side a multiple, nor alike: a graph that is tied to a size would be noticed below
    example = _noise(2, 2 * multiple + multiple // 2, 3 * multiple - 3)
    sides = [(1, 2 * multiple, 3 * multiple), (3, 3 * multiple + 1, 2 * multiple - 1)]
    with quiet_libraries(*_EXPORTERS):
        try:
            shape = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
            program = torch.export.export(graph, (example,), dynamic_shapes=(shape,), strict=False)
            if all(_agree(program, graph, _noise(*size)) for size in sides):
                return Traced(program, None, multiple + 1)
        except Exception:  # torch.export has dozens of errors for what it cannot follow
            pass
        size = model.card.crop
        try:
            batch = ({0: Dim.DYNAMIC},)
            example = _noise(2, *size)
            program = torch.export.export(graph, (example,), dynamic_shapes=batch, strict=False)
        except Exception as error:
            raise UserError(
                f"torch.export cannot follow this network ({type(error).__name__}); use "
                "--format safetensors, or another encoder or decoder."
            ) from None
        return Traced(program, size, min(size))


def _noise(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, height, width, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@torch.no_grad()
def _agree(program: ExportedProgram, graph: ExportGraph, images: Tensor) -> bool:
    theirs, ours = program.module()(images)[3], graph(images)[3]
    return theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=1e-3, atol=1e-3)


def onnx_bytes(traced: Traced, about: dict[str, Any]) -> bytes:
    """The graph as an ONNX model, with its description in the metadata, each value as JSON.

    Raises:
        UserError: where the packages are missing.
    """
    onnx = require("onnx")
    require("onnxscript")
    with quiet_libraries(*_EXPORTERS):
        program = torch.onnx.export(
            traced.program,
            (),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _name_sides(proto.graph, traced.size)
    onnx.helper.set_model_props(proto, {key: as_text(value) for key, value in about.items()})
    content: bytes = proto.SerializeToString()
    return content


def _name_sides(graph: Any, size: tuple[int, int] | None) -> None:
    """Call the free sides of input and outputs batch, height and width; torch numbers them."""
    sides = graph.input[0].type.tensor_type.shape.dim
    names = {sides[0].dim_param: "batch"}
    if size is None:
        names |= {sides[1].dim_param: "height", sides[2].dim_param: "width"}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param in names:
                side.dim_param = names[side.dim_param]


def as_text(value: Any) -> str:
    """A value of the metadata: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def pt2_bytes(traced: Traced, about: dict[str, Any]) -> bytes:
    """The graph as torch.export saves it, with its description as the extra file u2pl.json."""
    buffer = io.BytesIO()
    with quiet_libraries(*_EXPORTERS):
        torch.export.save(traced.program, buffer, extra_files={"u2pl.json": json.dumps(about)})
    return buffer.getvalue()


def safetensors_bytes(model: SegmentationModel, about: dict[str, Any]) -> bytes:
    """The weights, with the description as metadata."""
    state = {name: value.contiguous() for name, value in model.network.state_dict().items()}
    return save(state, metadata={key: as_text(value) for key, value in about.items()})


def write_below(out: Path, name: str, content: bytes) -> Path:
    """Write a file of the export, whole or not at all.

    Raises:
        UserError: where it cannot be written, or a link leads out of the folder.
    """
    path = out / name
    refuse_way_out(out, path)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


def run_onnx(path: Path) -> Run:
    """The written ONNX file in onnxruntime, on the CPU."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: warnings are about the optimiser's own choices
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        mask, logits = session.run(["mask", "logits"], {INPUT: images.numpy()})
        return torch.from_numpy(np.asarray(mask)), torch.from_numpy(np.asarray(logits))

    return run


def run_pt2(content: bytes) -> Run:
    """A saved graph, from the bytes that this process has made.

    torch's reader of such files may run pickles in them, so no file on disk is given to it.
    """
    with quiet_libraries(*_EXPORTERS):
        module = torch.export.load(io.BytesIO(content)).module()

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        mask, _, _, logits = module(images)
        return mask, logits

    return run


def run_model(model: SegmentationModel) -> Run:
    """A network of ours, that sees whole images."""

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.whole(images.permute(0, 3, 1, 2).float() / 255)
        return logits.softmax(dim=1).max(dim=1).indices, logits

    return run


def require(name: str) -> Any:
    """Import a package of the extra ``export``.

    Raises:
        UserError: where it is not installed.
    """
    return import_extra(
        name, f"The package {name} is not installed; do pip install 'u2pl[export]'."
    )
