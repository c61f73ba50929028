"""shaped: a trainer whose shapes are proved before its first step.

The door: what is imported here is public, and nothing else is.
"""

from shaped.garbage import uncollected as _uncollected

with _uncollected():
    from shaped import init as init
    from shaped import losses as losses
    from shaped.checkpoint import Checkpoints as Checkpoints
    from shaped.errors import CheckpointCorrupt as CheckpointCorrupt
    from shaped.errors import CheckpointError as CheckpointError
    from shaped.errors import ExecutorError as ExecutorError
    from shaped.errors import ExportError as ExportError
    from shaped.errors import GradientError as GradientError
    from shaped.errors import NonFiniteError as NonFiniteError
    from shaped.errors import ProofError as ProofError
    from shaped.errors import RankError as RankError
    from shaped.errors import RunLocked as RunLocked
    from shaped.errors import ShapedError as ShapedError
    from shaped.errors import ShapeError as ShapeError
    from shaped.errors import SignatureError as SignatureError
    from shaped.errors import StateError as StateError
    from shaped.errors import Unprovable as Unprovable
    from shaped.loop import Loop as Loop
    from shaped.params import ParamList as ParamList
    from shaped.proof import Proof as Proof
    from shaped.proof import prove as prove
    from shaped.shapes import dims as dims
    from shaped.strategies import FullBackpropagation as FullBackpropagation
    from shaped.strategies import GradientStrategy as GradientStrategy
    from shaped.strategies import OneStep as OneStep
    from shaped.strategies import carry as carry
    from shaped.trainer import ScalarTrainer as ScalarTrainer

__version__ = "0.1.0"
