"""Judge what the demo and the real-data run left behind: used by `.ci/run` after both."""

import json
from pathlib import Path

demo = json.loads(Path("var/demo/summary.json").read_text())
real = json.loads(Path("var/demo/real-summary.json").read_text())

for stages in (demo["stages"], real["stages"]):
    for name, row in stages.items():
        total = row["done"] + row["skipped"] + row["quarantined"] + row["failed"]
        assert row["in"] == total, f"{name} does not balance: {row}"
        assert row["failed"] == 0, f"{name} failed: {row}"
assert demo["test"]["cases"] >= 6, demo["test"]
network, plain = demo["test"], demo["baseline"]
assert network["sensitivity_ge10mm"] >= plain["sensitivity_ge10mm"] + 0.2, (network, plain)
assert network["dice_mean"] >= plain["dice_mean"] + 0.2, (network, plain)
assert demo["paste_back_exact"] is True
assert demo["rerun"]["done"] == 0, demo["rerun"]
assert demo["model"]["alias"] == "champion"
assert real["stages"]["infer"]["done"] == 1, real["stages"]
assert real["paste_back_exact"] is True
aim = network["sensitivity_ge10mm"] >= 0.8 and network["fp_per_volume"] <= 2.0
print(
    f"sensitivity {network['sensitivity_ge10mm']:.3f} at {network['fp_per_volume']:.2f} FP per volume;"
    f" the aim of 0.8 at 2 is {'reached' if aim else 'NOT reached'}"
)
print("verdict: accounting balances, network well above the plain detector, paste back exact, rerun idle")
