"""shaped: a trainer whose shapes are proved before its first step."""

from shaped.params import ParamList as ParamList
from shaped.proof import prove as prove
