"""MSLR and MSES: a learning rate and an early stop for each modality, from its results after each epoch.

Sources: Yao, Mihalcea, "Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion", Findings of
ACL 2022 (MSLR); Fujimori et al., "Modality-Specific Learning Rate Control for Multimodal Classification", ACPR 2019
(MSES). Both as the baselines in the code of AGM, ICCV 2023, have them; the competition metric of that paper is
`competition_metric`. Deviations: docs/methods/mslr.md.
"""

from __future__ import annotations

from modbalance import Method, hookimpl

from .competition import competition_metric as competition_metric
from .mses import MSES as MSES
from .mslr import MSLR as MSLR


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer both methods."""
    return [MSLR, MSES]
