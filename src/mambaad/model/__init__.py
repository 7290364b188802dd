"""The network: ``encoder`` → ``neck`` → ``decoder`` of ``blocks``, put together in ``mambaad``."""

from mambaad.model.mambaad import MambaAD, anomaly_maps, build, parameter_count

__all__ = ["MambaAD", "anomaly_maps", "build", "parameter_count"]
