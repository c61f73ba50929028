"""Checkpoints: directories that exist under their name only if they are complete, and are verified before they load."""

from shaped.checkpoint.checkpoints import Checkpoints as Checkpoints
from shaped.checkpoint.files import Checkpoint as Checkpoint
from shaped.checkpoint.files import read_checkpoint as read_checkpoint
from shaped.checkpoint.files import write_checkpoint as write_checkpoint
from shaped.checkpoint.generators import generator_states as generator_states
from shaped.checkpoint.generators import generators_kept as generators_kept
from shaped.checkpoint.generators import set_generator_states as set_generator_states
from shaped.checkpoint.resumed import Resumed as Resumed
