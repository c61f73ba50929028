"""Learning while data come: notice a drift, update in a transaction, keep verified versions, forget slowly.

The detectors are river's (the extra `online`); what concerns the trainer, its versions and the record of them is ours.
"""

from shaped.workflow.online.audit import AuditLog as AuditLog
from shaped.workflow.online.audit import verify_log as verify_log
from shaped.workflow.online.drift import ADWIN as ADWIN
from shaped.workflow.online.drift import KSWIN as KSWIN
from shaped.workflow.online.drift import DriftDetector as DriftDetector
from shaped.workflow.online.drift import PageHinkley as PageHinkley
from shaped.workflow.online.drift import Trigger as Trigger
from shaped.workflow.online.elastic import Elastic as Elastic
from shaped.workflow.online.elastic import elastic as elastic
from shaped.workflow.online.elastic import fisher_diagonal as fisher_diagonal
from shaped.workflow.online.feedback import Feedback as Feedback
from shaped.workflow.online.learner import Observation as Observation
from shaped.workflow.online.learner import OnlineLearner as OnlineLearner
from shaped.workflow.online.learner import Update as Update
from shaped.workflow.online.validators import Candidate as Candidate
from shaped.workflow.online.validators import Composite as Composite
from shaped.workflow.online.validators import LossDelta as LossDelta
from shaped.workflow.online.validators import Validator as Validator
from shaped.workflow.online.validators import WeightNorm as WeightNorm
from shaped.workflow.online.versions import Version as Version
from shaped.workflow.online.versions import Versions as Versions
