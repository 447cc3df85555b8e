"""Nonlinearities by name."""

from sae_cli.dictionary.nonlinearities.base import Nonlinearity
from sae_cli.dictionary.nonlinearities.gated import Gated
from sae_cli.dictionary.nonlinearities.prolu import ProLU, ProLUHybrid, ReLU
from sae_cli.dictionary.nonlinearities.threshold import JumpReLU, TLin, TRec
from sae_cli.dictionary.nonlinearities.topk import BatchTopK, TopK

NONLINEARITIES: dict[str, Nonlinearity] = {
    "relu": ReLU(),
    "prolu_relu": ProLU(0.0, 0.0),
    "prolu_ste": ProLU(1.0, 1.0),
    "prolu_mixed": ProLU(),
    "prolu_hybrid": ProLUHybrid(),
    "trec": TRec(),
    "tlin": TLin(),
    "jumprelu": JumpReLU(),
    "topk": TopK(),
    "batchtopk": BatchTopK(),
    "gated": Gated(),
}
