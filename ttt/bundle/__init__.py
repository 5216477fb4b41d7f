"""Bundles: one folder holds a model and everything it needs; published weights, conversion and the Hub.

Importing this package does not import torch: `read_bundle` checks a folder without it, and `ttt.bundle.weights`
reads and writes the weights.
"""

from __future__ import annotations

from ttt.bundle.hub import fetch_bundle, find_bundle
from ttt.bundle.hub_files import HUB_ID
from ttt.bundle.published import PUBLISHED
from ttt.bundle.spec import DEMO_FOLDER, Bundle, ClipSpec, read_bundle

__all__ = ["DEMO_FOLDER", "HUB_ID", "PUBLISHED", "Bundle", "ClipSpec", "fetch_bundle", "find_bundle", "read_bundle"]
