"""Dimension expressions, annotations, signatures and binding. No autograd, no tracing."""

from shaped.shapes.annotations import Entry as Entry
from shaped.shapes.annotations import Origin as Origin
from shaped.shapes.annotations import Renames as Renames
from shaped.shapes.annotations import TensorSpec as TensorSpec
from shaped.shapes.annotations import annotated_part as annotated_part
from shaped.shapes.annotations import class_of as class_of
from shaped.shapes.annotations import compose as compose
from shaped.shapes.annotations import dims as dims
from shaped.shapes.annotations import dtype_name as dtype_name
from shaped.shapes.annotations import is_tensor_annotation as is_tensor_annotation
from shaped.shapes.annotations import read_tensor as read_tensor
from shaped.shapes.annotations import resolve_hints as resolve_hints
from shaped.shapes.annotations import spell as spell
from shaped.shapes.annotations import split_annotated as split_annotated
from shaped.shapes.binding import Binding as Binding
from shaped.shapes.binding import bind as bind
from shaped.shapes.binding import describe as describe
from shaped.shapes.binding import ranks_of as ranks_of
from shaped.shapes.containers import Container as Container
from shaped.shapes.containers import read_container as read_container
from shaped.shapes.dims import Dim as Dim
from shaped.shapes.signature import Argument as Argument
from shaped.shapes.signature import Signature as Signature
from shaped.shapes.signature import Structure as Structure
from shaped.shapes.signature import read_signature as read_signature
from shaped.shapes.wrapping import worn as worn
