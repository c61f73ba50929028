"""The training loop: steps over data with hooks, measures and a way to stop, and nothing lost in between."""

from shaped.loop.hooks import Hook as Hook
from shaped.loop.logs import JsonLines as JsonLines
from shaped.loop.logs import LogTo as LogTo
from shaped.loop.logs import TensorBoard as TensorBoard
from shaped.loop.logs import read_log as read_log
from shaped.loop.loop import Loop as Loop
from shaped.loop.plots import Curves as Curves
from shaped.loop.plots import plot_run as plot_run
from shaped.loop.progress import Progress as Progress
from shaped.loop.signals import Interrupted as Interrupted
from shaped.loop.tracer import first_nonfinite as first_nonfinite
from shaped.loop.training import TrainMetrics as TrainMetrics
