"""A trained program elsewhere: plain state dicts, safetensors, torch.distributed.checkpoint, torch.export and ONNX."""

from shaped.export.dcp import load_dcp as load_dcp
from shaped.export.dcp import save_dcp as save_dcp
from shaped.export.onnx import OnnxFile as OnnxFile
from shaped.export.onnx import to_onnx as to_onnx
from shaped.export.program import export_program as export_program
from shaped.export.tensors import load_safetensors as load_safetensors
from shaped.export.tensors import save_safetensors as save_safetensors
from shaped.export.tensors import state_dict as state_dict
