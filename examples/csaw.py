"""A net of CSAW-HackML-2020 from Python: scan, repair, measure, predict.

    python examples/csaw.py DATA                                 all 1283 labels: minutes
    python examples/csaw.py DATA --labels 12                     the first twelve, to see it work
    python examples/csaw.py DATA --scan goodnet-csaw/scan        a scan that is there already

DATA holds clean_validation_data.h5, clean_test_data.h5, the poisoned sets, and the nets in nets/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from goodnet.data.readers import read_images
from goodnet.evaluation import evaluate
from goodnet.models.classifier import Classifier
from goodnet.models.load import load_classifier
from goodnet.record import Share
from goodnet.repair.unlearning import Unlearning
from goodnet.repairing import Found, Output, repair
from goodnet.scan import scan

NET, POISONED = "anonymous_1_bd_weights.h5", "anonymous_1_poisoned_data.h5"


def main() -> None:
    options = arguments()
    net = load_classifier(options.data / "nets" / NET, arch="deepid")
    folder = options.scan or options.out / "scan"
    if options.scan is None:
        scanned(net, options.data, folder, options.labels)
    found, record = Found.in_folder(folder)
    print(f"{NET}: {record.verdict}, labels {list(record.flagged_labels)}")
    if not found.targets:
        return

    clean = read_images(options.data / "clean_validation_data.h5", classes=net.classes)
    output = Output(folder=options.out / "repair", goodnet=options.out / "goodnet.safetensors", keep_rejected=True)
    # the scan's seed, so that the images that judge the repair are new to the scan's triggers
    repaired, goodnet = repair(net, clean, method=Unlearning(), found=found, output=output, seed=record.method.seed)
    print(f"accepted: {repaired.accepted} ({'; '.join(repaired.reasons)})")

    test, poisoned = (read_images(options.data / name) for name in ("clean_test_data.h5", POISONED))
    after = evaluate(goodnet, test, [poisoned], before=net)
    print(f"ACC {percent(after.acc)}, FPR {percent(after.fpr)}")
    for row in after.poisoned:
        print(f"{row.name}: ASR {percent(row.asr)}, detection {percent(row.detection)}")

    answers = goodnet.predict(poisoned.tensor()[:5]).tolist()
    print("five triggered faces:", ["triggered" if answer == goodnet.classes else answer for answer in answers])


def scanned(net: Classifier, data: Path, folder: Path, count: int | None) -> None:
    """Leaves scan.json and triggers.npz in `folder`."""
    labels = None if count is None else range(count)
    scan(net, read_images(data / "clean_validation_data.h5", classes=net.classes), labels=labels, out=folder)


def percent(share: Share | None) -> str:
    return "-" if share is None else f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scan, repair and measure a net of CSAW-HackML-2020.")
    parser.add_argument("data", type=Path, help="folder of the competition's files, nets in nets/")
    parser.add_argument("--scan", type=Path, help="folder of an earlier scan of the same net")
    parser.add_argument("--labels", type=int, help="scan only the first so many labels")
    parser.add_argument("--out", type=Path, default=Path("goodnet-csaw"), help="results; default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()
