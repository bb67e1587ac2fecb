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
network, plain = demo["test"], demo["baseline"]
large = sum(network["strata"][name]["nodes"] for name in ("10-15", ">=15"))
assert network["cases"] >= 6 and large >= 20, (network["cases"], large)
assert network["sensitivity_ge10mm"] >= 0.8 and network["fp_per_volume"] <= 2.0, network
assert network["sensitivity_ge10mm"] >= plain["sensitivity_ge10mm"] + 0.2, (network, plain)
assert network["dice_mean"] >= plain["dice_mean"] + 0.2, (network, plain)
assert demo["paste_back_exact"] is True
assert demo["rerun"]["done"] == 0, demo["rerun"]
assert demo["model"]["alias"] == "champion"
assert real["stages"]["infer"]["done"] == 1, real["stages"]
assert real["paste_back_exact"] is True
found, alarms = network["sensitivity_ge10mm"], network["fp_per_volume"]
print(f"sensitivity {found:.3f} at {alarms:.2f} FP per volume on {network['cases']} phantom patients")
print("machine:", *(f"{name} {value}" for name, value in demo["machine"].items()))
print(f"demo {demo['wall_s']:.0f} s; second pass {demo['rerun']['wall_s']:.0f} s")
print("verdict: accounting balances, network well above the plain detector, paste back exact, rerun idle")
