"""The error tree. The command line prints an `AlchemyError` without traceback and exits with its code.

Each class takes one string, so that it can be unpickled from a worker. Domain failures (an SCF that
does not converge, an exploded trajectory) are records, not exceptions.
"""


class AlchemyError(Exception):
    """Base class; a bare one means a bug of ours."""

    exit_code = 1


class InputError(AlchemyError):
    """The user's file, key or value is wrong: says which, what was found and what would work."""

    exit_code = 2


class ConfigError(InputError):
    """The campaign file is wrong; the message names file, line and key."""


class StructureError(InputError):
    """A structure cannot be used (overlapping atoms, unknown element, no atoms)."""


class PluginError(InputError):
    """A policy or labeler of that name does not exist, or exists twice."""


class QueryError(InputError):
    """A query expression is wrong; the message gives the column."""


class StoreError(AlchemyError):
    """The store cannot be read or written."""

    exit_code = 3


class StoreDamagedError(StoreError):
    """A sealed file does not match its checksums, or a commit is missing."""

    exit_code = 2


class EnvironmentProblemError(AlchemyError):
    """Something around us is missing: a program, a package, disk space, a scheduler."""

    exit_code = 3


class CampaignBusyError(AlchemyError):
    """Another controller holds the campaign."""

    exit_code = 3


class InterruptedRunError(AlchemyError):
    """Ctrl-C or SIGTERM: everything is on disk, the same command continues."""

    exit_code = 7
