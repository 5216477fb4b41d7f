"""A dropped PNG -> the form that paints it again. Trusts nothing in the file."""

from __future__ import annotations

from ttt import results
from ttt.errors import InvalidInput
from ttt.ui.generate import form as forms
from ttt.ui.generate.form import Form


def read_picture(path: str | None, models: list[str], default_model: str) -> Form:
    """InvalidInput when the file is not a picture of ours."""
    if not path:
        raise InvalidInput("no file arrived; drop one PNG that was made here")
    stored = results.read_settings(path)
    return forms.from_settings(stored["prompt"], stored["params"], stored["model"], models, default_model)
