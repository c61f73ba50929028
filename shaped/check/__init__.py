"""`shaped check`: prove every annotated function and method of a file or a project, and report a line for each."""

from shaped.check.checking import check_file as check_file
from shaped.check.files import Job as Job
from shaped.check.files import find_jobs as find_jobs
from shaped.check.files import load as load
from shaped.check.project import Report as Report
from shaped.check.project import check_project as check_project
from shaped.check.project import one_file as one_file
from shaped.check.settings import Project as Project
from shaped.check.settings import read_project as read_project
from shaped.check.targets import functions_of as functions_of
from shaped.check.verdicts import Verdict as Verdict
from shaped.check.worker import Answer as Answer
from shaped.check.worker import CheckOptions as CheckOptions
from shaped.check.written import names_of as names_of
