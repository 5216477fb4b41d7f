"""Fingerprints of parameters."""

from __future__ import annotations

import pytest
import torch

from ttt.swarm.averaging.training_state import FINGERPRINT_SIZE, fingerprint, fingerprint_distance


def test_a_fingerprint_measures_the_distance_of_parameters() -> None:
    generator = torch.Generator().manual_seed(0)
    a = [torch.randn(50, 70, generator=generator), torch.randn(13, generator=generator)]
    same = [t.clone() for t in a]
    sums, norm = fingerprint(a)
    assert len(sums) == FINGERPRINT_SIZE
    assert norm == pytest.approx(float(torch.cat([t.flatten() for t in a]).norm()), rel=1e-5)
    assert fingerprint_distance(sums, fingerprint(same)[0], norm) == 0
    estimates = []
    for _ in range(50):
        b = [t + 0.01 * torch.randn(t.shape, generator=generator) for t in a]
        estimates.append(fingerprint_distance(sums, fingerprint(b)[0], norm))
    assert 0.008 < (sum(e**2 for e in estimates) / 50) ** 0.5 < 0.012
    a[1][12] += 1  # one element of all, the last of an uneven tensor
    assert fingerprint_distance(sums, fingerprint(a)[0], norm) == pytest.approx(1 / norm, rel=1e-3)
