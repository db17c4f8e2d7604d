"""A trained network as files that other programs run: ONNX, torch.export, safetensors."""

from u2pl.exporting.export import export_run
from u2pl.exporting.formats import FORMATS
from u2pl.exporting.verify import EQUAL_PIXELS

__all__ = ["EQUAL_PIXELS", "FORMATS", "export_run"]
