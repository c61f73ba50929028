"""From a table or a time series to a validated model: splits and cross-validation."""

from shaped.workflow.splits import CVConfig as CVConfig
from shaped.workflow.splits import Purged as Purged
from shaped.workflow.splits import Split as Split
from shaped.workflow.splits import Splitter as Splitter
from shaped.workflow.splits import split as split
from shaped.workflow.validation import CrossValidation as CrossValidation
from shaped.workflow.validation import CrossValidator as CrossValidator
from shaped.workflow.validation import Fold as Fold
from shaped.workflow.validation import FoldResult as FoldResult
