"""A trained network as files that other programs run: ONNX, torch.export, safetensors."""

from u2pl.exporting.formats import FORMATS, export_model

__all__ = ["FORMATS", "export_model"]
