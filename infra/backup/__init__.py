"""Back up the local stack and bring it back: `python -m infra.backup save|restore FOLDER`.

A backup holds the three databases, the objects of the platform's own buckets, the secrets, and metrics
that MLflow has not taken yet. Everything that could write is stopped meanwhile, so the parts fit together.
It is whole when `manifest.json` is there, which is written last.
"""
