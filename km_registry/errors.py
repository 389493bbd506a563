"""Errors of the registry. An exception's docstring is its default message."""

from __future__ import annotations


class KMError(Exception):
    """Something in KM Server went wrong."""

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        #: The field that is to be changed, where there is one.
        self.param = param


class NotFoundError(KMError):
    """There is no such thing, or it is not yours."""


class NotAllowedError(KMError):
    """This needs an administrator's API key."""


class InvalidValueError(KMError):
    """A value cannot be taken as it is."""


class QuotaError(KMError):
    """One owner may not have more."""

    def __init__(self, message: str | None = None, *, retry_after_s: int = 60) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InvalidDocumentError(KMError):
    """The document cannot be taken as it is."""


class DocumentTooLargeError(InvalidDocumentError):
    """The document is larger than this server takes."""


class InvalidKEError(KMError):
    """The KE cannot be taken as it is."""

    def __init__(self, message: str | None = None, *, param: str | None = "directory") -> None:
        super().__init__(message, param=param)


class ConflictError(KMError):
    """The request does not fit the state of things."""


class InstallationError(KMError):
    """Database, data directory and shared store do not belong together."""


class StaleAttemptError(KMError):
    """This attempt no longer owns its job: it was cancelled, deleted or taken over."""


class ArtifactError(KMError):
    """An artifact is missing, altered or not finite."""


class StoreUnavailableError(KMError):
    """The store of artifacts cannot be reached, or refuses. Try again later."""


class BaseModelError(KMError):
    """The base model cannot be found or read."""
