"""Many devices: joining the processes that torchrun started, and what they exchange."""

from shaped.ranks.exchange import Exchange as Exchange
from shaped.ranks.exchange import Totals as Totals
from shaped.ranks.join import abandon as abandon
from shaped.ranks.join import join as join
from shaped.ranks.join import leave as leave
from shaped.ranks.join import say as say
from shaped.ranks.layout import Placement as Placement
from shaped.ranks.layout import units as units
from shaped.ranks.peers import ALONE as ALONE
from shaped.ranks.peers import Peers as Peers
from shaped.ranks.peers import peers_of as peers_of
from shaped.ranks.peers import processes_here as processes_here
from shaped.ranks.peers import rank_here as rank_here
from shaped.ranks.peers import restarted as restarted
from shaped.ranks.peers import together as together
from shaped.ranks.pieces import Piece as Piece
from shaped.ranks.rows import Rows as Rows
