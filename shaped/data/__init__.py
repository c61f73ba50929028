"""Data that is on every machine, and data as a loop goes over it: from any batch of any epoch."""

from shaped.data.batches import Batches as Batches
from shaped.data.digits import digits as digits
from shaped.data.feed import Batch as Batch
from shaped.data.feed import DataError as DataError
from shaped.data.feed import Feed as Feed
from shaped.data.local import Local as Local
from shaped.data.prefetch import prefetch as prefetch
from shaped.data.stdlib import Windows as Windows
from shaped.data.stdlib import stdlib_text as stdlib_text
from shaped.data.windows import WindowSet as WindowSet
from shaped.data.windows import create_windows as create_windows
from shaped.data.windows import dispatch as dispatch
from shaped.data.windows import flat_windows as flat_windows
from shaped.data.windows import last_rows as last_rows
from shaped.data.windows import parse_window_sizes as parse_window_sizes
from shaped.data.windows import single_windows as single_windows
