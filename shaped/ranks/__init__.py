"""Many devices: joining the processes that torchrun started, and what they exchange."""

from shaped.ranks.exchange import Exchange as Exchange
from shaped.ranks.exchange import Totals as Totals
from shaped.ranks.join import join as join
from shaped.ranks.join import leave as leave
from shaped.ranks.join import say as say
from shaped.ranks.layout import Layout as Layout
from shaped.ranks.layout import units as units
