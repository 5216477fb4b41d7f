"""Bundles: one folder that holds a model and all it needs; published weights, conversion and the Hub.

Importing this package does not import torch: `read_bundle` checks a folder without it, and `ttt.bundle.weights`
reads and writes the weights.
"""

from __future__ import annotations

from ttt.bundle.spec import DEMO_FOLDER, Bundle, ClipSpec, read_bundle

__all__ = ["DEMO_FOLDER", "Bundle", "ClipSpec", "read_bundle"]
