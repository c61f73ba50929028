"""A trained program elsewhere: plain state dicts, safetensors, torch.export and ONNX, with names and conditions."""

from shaped.export.onnx import OnnxFile as OnnxFile
from shaped.export.onnx import to_onnx as to_onnx
from shaped.export.program import export_program as export_program
from shaped.export.tensors import load_safetensors as load_safetensors
from shaped.export.tensors import save_safetensors as save_safetensors
from shaped.export.tensors import state_dict as state_dict
