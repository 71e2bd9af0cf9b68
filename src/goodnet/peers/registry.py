"""The programs that goodnet is measured beside: what each is, where it runs, and what had to be repaired of it."""

from __future__ import annotations

from dataclasses import dataclass

_NO_TORCHVISION = (
    "torchvision's operators `nms` and `qnms` are declared before it is imported, for it stops where its compiled part "
    "does not fit torch's (trojanvision calls neither); matplotlib 3.8, the last with `matplotlib.cm.get_cmap`"
)
_TRAINING = "needs the poisoned training set: it is given the clean images with a tenth of triggered ones among them"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One program.

    Attributes:
        name: as in tables.
        adapter: its module in `goodnet.peers`, which has `run(task) -> Said`.
        package: its distribution; empty for what is part of goodnet.
        what: in a few words, settings included.
        sees: what it is given that goodnet is not; empty for nothing.
        patch: what the small repair is without which it does not do its work; empty where it needs none. Such a
            program is run in both states.
    """

    name: str
    adapter: str
    package: str
    what: str
    sees: str = ""
    patch: str = ""


_ALL = (
    Peer(
        name="goodnet", adapter="own", package="", what="`goodnet scan`, then `repair --method auto`, as a user would"
    ),
    Peer(
        name="plain-neural-cleanse",
        adapter="plain_neural_cleanse",
        package="",
        what="Neural Cleanse written from the paper: 300 steps of 32 images a label, anomaly index 2, unlearning",
    ),
    Peer(
        name="plain-fine-pruning",
        adapter="plain_fine_pruning",
        package="",
        what="fine-pruning written from the paper: a repair without a verdict",
    ),
    Peer(
        name="art-neural-cleanse",
        adapter="art_neural_cleanse",
        package="adversarial-robustness-toolbox",
        what="NeuralCleanse of ART with 10 steps a label, as in ART's own example; each of its three repairs",
        patch="`generate_backdoor` and the four methods beside it, which ART has for Keras nets alone, line by line "
        "for PyTorch nets",
    ),
    Peer(
        name="art-neural-cleanse-1000",
        adapter="art_neural_cleanse",
        package="adversarial-robustness-toolbox",
        what="the same with ART's default of 1000 steps a label",
        patch="as art-neural-cleanse",
    ),
    Peer(
        name="art-strip",
        adapter="art_strip",
        package="adversarial-robustness-toolbox",
        what="STRIP of ART, defaults: a guard without a verdict",
        patch="entropy over the classes of each blend (`axis=1`), not over the blends of each class (`axis=0`)",
    ),
    Peer(
        name="art-activation-defence",
        adapter="art_activation_defence",
        package="adversarial-robustness-toolbox",
        what="ActivationDefence of ART, defaults: a filter of training data",
        sees=_TRAINING,
    ),
    Peer(
        name="trojanvision-neural-cleanse",
        adapter="trojanvision_inspection",
        package="trojanzoo",
        what="neural_cleanse of trojanzoo's trojanvision, defaults; it prints anomaly indices, read here with the "
        "paper's bound of 2",
        patch=_NO_TORCHVISION,
    ),
    Peer(
        name="trojanvision-tabor",
        adapter="trojanvision_inspection",
        package="trojanzoo",
        what="tabor of trojanvision, defaults, read alike",
        patch=_NO_TORCHVISION,
    ),
    Peer(
        name="trojanvision-fine-pruning",
        adapter="trojanvision_fine_pruning",
        package="trojanzoo",
        what="fine_pruning of trojanvision, defaults: 95 % of the last convolution, then 600 epochs",
        patch=_NO_TORCHVISION,
    ),
    Peer(
        name="backdoormbti-neural-cleanse",
        adapter="backdoormbti_neural_cleanse",
        package="backdoormbti",
        what="image/nc of BackdoorMBTI, defaults: up to 80 epochs a label",
        patch="installed without its 170 pinned dependencies (torch 2.0.0 among them); the modules that it imports and "
        "this search does not call are stand-ins; search and outlier test are called one by one, for what joins them "
        "asks for a GPU",
    ),
    Peer(
        name="aegis-activation-clustering",
        adapter="aegis_activation_clustering",
        package="aegis-scan-ai",
        what="activation clustering of aegis-scan-ai, defaults: a filter of training data",
        sees=_TRAINING,
    ),
    Peer(
        name="nullsec-strip",
        adapter="nullsec_strip",
        package="nullsec-datapoisoning",
        what="STRIP of nullsec-datapoisoning, defaults: a guard without a verdict, in plain Python",
    ),
)
PEERS: dict[str, Peer] = {peer.name: peer for peer in _ALL}
