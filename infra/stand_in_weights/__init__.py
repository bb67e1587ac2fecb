"""Stand-ins for TotalSegmentator's weights: small nnU-Nets that know phantoms alone.

They let TotalSegmentator's own code run from end to end where its weights are not at hand, in tests and
benchmarks. On a patient's CT they find nothing that may be relied on.
"""
