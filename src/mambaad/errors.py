"""Every exception that a user of this package may want to catch.

MambaADError
├── ConfigError       a setting is unknown, mistyped or out of range
├── DatasetError      the folder on disk is not the data set it claims to be
│   └── ImageError    one picture or mask cannot be read
├── CheckpointError   a run folder or weight file cannot be loaded, or belongs to another model
├── WeightsError      the encoder's pretrained weights cannot be had
├── BackendError      the requested scan cannot run on this machine
└── TrainingError     training cannot go on (for example a loss that is not finite)

Shapes and types that are a programmer's mistake raise ``ValueError`` or ``TypeError`` instead.
"""


class MambaADError(Exception):
    """Base class. The command line prints its message as one line and exits with status 2."""


class ConfigError(MambaADError):
    """A setting is unknown, mistyped or out of range."""


class DatasetError(MambaADError):
    """The folder on disk is not the data set it claims to be."""


class ImageError(DatasetError):
    """One picture or mask cannot be read."""


class CheckpointError(MambaADError):
    """A run folder or weight file cannot be loaded, or belongs to another model."""


class WeightsError(MambaADError):
    """The encoder's pretrained weights cannot be had."""


class BackendError(MambaADError):
    """The requested scan backend cannot run on this machine or on these tensors."""


class TrainingError(MambaADError):
    """Training cannot go on, for example because the loss is not finite."""
