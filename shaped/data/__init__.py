"""Data that is on every machine, and data as a loop goes over it: from any batch of any epoch."""

from shaped.data.batches import Batches as Batches
from shaped.data.digits import digits as digits
from shaped.data.feed import Batch as Batch
from shaped.data.feed import DataError as DataError
from shaped.data.feed import Feed as Feed
from shaped.data.prefetch import prefetch as prefetch
from shaped.data.stdlib import Windows as Windows
from shaped.data.stdlib import stdlib_text as stdlib_text
