"""Proofs: the symbolic trace, its side conditions, and the statement that prints itself."""

from shaped.proof.conditions import Condition as Condition
from shaped.proof.deciding import Decided as Decided
from shaped.proof.deciding import prove_ways as prove_ways
from shaped.proof.proof import Proof as Proof
from shaped.proof.proof import forward_graph as forward_graph
from shaped.proof.proving import prove as prove
from shaped.proof.proving import prove_absent as prove_absent
from shaped.proof.proving import prove_setting as prove_setting
from shaped.proof.setting import Setting as Setting
from shaped.proof.setting import Step as Step
from shaped.proof.setting import expect as expect
from shaped.proof.ways import NUMBER as NUMBER
from shaped.proof.ways import ROUNDS as ROUNDS
from shaped.proof.ways import Uncounted as Uncounted
