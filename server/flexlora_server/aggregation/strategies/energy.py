"""FLoRIST's energy threshold (arXiv 2506.09199), for the option `energy` of rules that decompose.

Of each module the fewest directions are served whose share of W's energy reaches the threshold:

    the least p with  sum of sigma_j^2 over j <= p  >=  energy * sum of all sigma_j^2

There, a server sends p directions and no more. Here a participant's rank is what it declared: the directions beyond p have
B = 0 and keep their A, so that they cost as much as before but can be learned again; smaller slices would need ranks that
differ by module and round, for whoever is served and for what it may upload. It saves no bytes: it takes noise away.

What is beyond p is lost, round after round: energy lost in one round is not missing in the threshold of the next. Where an
iteration decomposes, the energy is an estimate, its tail to about 1 %.
"""

import torch
from torch import Tensor

from flexlora_server.aggregation.svd.truncated_svd import TruncatedSVD


def leading(svd: TruncatedSVD, energy: float) -> Tensor:
    """The singular values (r,), 0 beyond those that reach the share `energy` of W's energy; all of them where none does."""
    if energy == 1:
        return svd.S
    before = svd.S.square().cumsum(0) - svd.S.square()
    return torch.where(before < energy * svd.total_energy, svd.S, 0.0)
