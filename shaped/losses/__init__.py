"""Losses that refuse to broadcast: `loss(prediction, target, *, mask, weights, reduction) -> scalar`.

Each compares shapes before it computes, in a proof as at run time, so `[batch, 1]` against `[batch]` is an error at the
caller's line. In a proof's derivation each is one step.

    mask        bool, of the shape of the single losses. What is False counts for nothing: neither its value (NaN
                included) nor its gradient.
    weights     floating point, of that shape, not negative: the mean is sum(weights*loss) / sum(weights).
    reduction   "mean" (the default), "sum", or "none" for the single losses. With nothing left by mask and weights the
                mean is 0.
"""

from shaped.losses.classification import binary_cross_entropy as binary_cross_entropy
from shaped.losses.classification import categorical_cross_entropy as categorical_cross_entropy
from shaped.losses.classification import cross_entropy as cross_entropy
from shaped.losses.classification import kl_divergence as kl_divergence
from shaped.losses.embedding import contrastive as contrastive
from shaped.losses.embedding import triplet as triplet
from shaped.losses.regression import huber as huber
from shaped.losses.regression import mae as mae
from shaped.losses.regression import mse as mse
from shaped.losses.regression import quantile as quantile
from shaped.losses.series import pearson as pearson
from shaped.losses.series import sharpe as sharpe
from shaped.losses.terms import add_loss as add_loss
from shaped.losses.terms import loss_terms as loss_terms
from shaped.losses.terms import with_terms as with_terms
