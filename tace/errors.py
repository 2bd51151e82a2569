"""The errors that a user can cause. Each takes one string, so that it survives a trip from a worker."""


class TaceError(Exception):
    """Base of what `tace` raises on bad input; a command line prints it without a traceback."""

    exit_code = 2


class UnknownElementError(TaceError):
    """A structure holds an element that the model was not built for."""


class UnknownFidelityError(TaceError):
    """A label or a request names a fidelity that the model does not have."""


class ModelFileError(TaceError):
    """A model file is missing, damaged, or of a newer format."""


class DataError(TaceError):
    """Structures or labels that cannot be trained on, with the frame that is to blame."""


class TrainingError(TaceError):
    """Training diverged or could not go on."""
