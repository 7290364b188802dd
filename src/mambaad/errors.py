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


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the name of its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def memory_note(error: BaseException) -> str | None:
    """What to say of an error that means that memory is used up, the CPU's or a GPU's; else None.

    Torch's errors are told by their names, since this file does not import it.
    """
    text = str(error).strip().split("\n")[0]
    on_gpu = type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "CUDA" in text and "out of memory" in text  # Triton's
    )
    on_cpu = isinstance(error, MemoryError) or "DefaultCPUAllocator" in text
    if not (on_gpu or on_cpu):
        return None
    place = "GPU's memory" if on_gpu else "memory"
    return (
        f"the {place} is used up; a smaller --batch-size, --image-size or --tile needs less "
        f"({text or 'the system gave no more'})"
    )
