"""One pipeline for all tests of this folder: a tiny bundle with real parts."""

from __future__ import annotations

import pytest

from ttt import TextToImage
from ttt.bundle import Bundle


@pytest.fixture(scope="session")
def pipe(bundle: Bundle) -> TextToImage:
    return TextToImage.from_pretrained(bundle.root, device="cpu")
