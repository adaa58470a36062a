"""What a webhook's URL may be, as far as it can be said without asking a network."""

from urllib.parse import urlsplit

from ..errors import InvalidRequest

CHARACTERS_MAX = 2048


def check_url(url: str) -> str:
    """Return `url` if a webhook may have it.

    Raises:
        InvalidRequest: it is no http or https URL, names a user, or is too long.
    """
    # What came from a caller need not be a string.
    if not isinstance(url, str) or len(url) > CHARACTERS_MAX:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _wrong(f"webhook is not a URL of {CHARACTERS_MAX} characters at most")
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise _wrong(f"webhook={url!r} is not a URL: {error}") from error
    if not is_whole or not url.isascii() or not url.isprintable() or " " in url:
        raise _wrong(f"webhook={url!r} is not a URL like https://example.com/hooks")
    if parts.username is not None:
        raise _wrong("webhook names a user: whoever receives it checks its signature")
    return url


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="webhook")
