"""What the HTTP side may refuse. Which status each becomes is said once, in `server.problems`."""

from __future__ import annotations

from fastapi import HTTPException

from km_registry.errors import ConflictError, KMError, NotFoundError


class RequestRefusedError(Exception):
    """The request cannot be served as it is.

    `param` names the field to change, where there is one.
    """

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))
        self.param = param


class UnauthenticatedError(RequestRefusedError):
    """Send an API key, as the header `Authorization: Bearer km_…`."""


class ForbiddenError(RequestRefusedError):
    """This API key may not do that."""


class UnreadableTextError(RequestRefusedError):
    """The text is not UTF-8. Save it as UTF-8 and send it again."""


class UnsupportedTypeError(RequestRefusedError):
    """This type of file is not taken. Send a PDF, DOCX, HTML, Markdown or text file."""


class EncryptedFileError(RequestRefusedError):
    """The file is protected by a password. Save it without one and send it again."""


class NoTextError(RequestRefusedError):
    """The file holds no text. Have OCR read it and send the result."""


class DamagedFileError(RequestRefusedError):
    """The file seems to be damaged. Open it, save it anew and send that."""


class TooComplexFileError(RequestRefusedError):
    """Reading the file takes too much. Save it anew in a simpler form, or send it in parts."""


class InvalidRequestError(RequestRefusedError):
    """A field of the request cannot be taken as it is."""


class InvalidRecipeError(InvalidRequestError):
    """The recipe cannot work on this server."""


class UnknownKEError(RequestRefusedError):
    """There is no such KE."""


class NoKEError(ConflictError):
    """No KE is registered."""

    def __init__(self, message: str | None = None, *, param: str | None = "ke") -> None:
        super().__init__(message, param=param)


class PromptTooLongError(RequestRefusedError):
    """The prompt is longer than the model reads."""


class ClientGoneError(RequestRefusedError):
    """The client went away before its answer was there."""


class StoppingError(RequestRefusedError):
    """The server is stopping. Ask again when it is there."""


class DeletionPendingError(RequestRefusedError):
    """The document is closed to everybody, but not all of it could be removed yet; that goes on by itself.

    Ask GET /receipts/{document_id} later.
    """


class RevokedError(NotFoundError):
    """What the request rested on, a grant or the API key, was taken away or has expired."""


class RateLimitedError(KMError):
    """More than is allowed in a minute was asked for."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RemovalPendingError(RequestRefusedError):
    """It is gone for everybody, but not all of it could be removed yet; that goes on by itself."""


class NotTrainedError(ConflictError):
    """The document has no KM yet."""


class BodyTooLargeError(HTTPException):
    """The request's body is larger than is taken; raised before the rest of it is read.

    An HTTPException, since FastAPI turns anything else that is raised while it reads a body into a 400.
    """

    def __init__(self, message: str) -> None:
        super().__init__(status_code=413, detail=message)
