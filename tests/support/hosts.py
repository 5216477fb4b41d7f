"""Hosts, resource estimates, a completed form and an address for the tests of the Contribute tab."""

from __future__ import annotations

from ttt.swarm.training.requirements import ResourceEstimate
from ttt.ui.contribute.fake import ADDRESS
from ttt.ui.contribute.form import PeerForm
from ttt.ui.contribute.host import Gpu, HostInfo

T4 = HostInfo(gpu=Gpu("Tesla T4", 15 << 30, 14 << 30), gpus=1, cores=4, ram=16 << 30)
CPU = HostInfo(cores=2, ram=8 << 30)
SPACE = HostInfo(space="anna/demo", gpu=T4.gpu, gpus=1, ram=16 << 30)
FITS = ResourceEstimate("run", "a run", 4096, 125_900_000, 16, 5 << 30, 1 << 30, 1e12)
TOO_LARGE = ResourceEstimate("run", "a run", 4096, 6_000_000_000, 0, 90 << 30, 1 << 30, 1e12)
FORM = PeerForm(run="run.toml", initial_peers=ADDRESS, name="me")
LOOPBACK = "/ip4/127.0.0.1/tcp/5000/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
