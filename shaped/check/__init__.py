"""`shaped check`: prove every annotated function of a file, and report a line for each."""

from shaped.check.checking import check_file as check_file
from shaped.check.targets import functions_of as functions_of
from shaped.check.verdicts import Verdict as Verdict
from shaped.check.verdicts import report as report
