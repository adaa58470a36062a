"""Signatures of webhooks, by Standard Webhooks: what OpenAI's and other libraries check.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from ..errors import BadSettings

_PREFIX = "whsec_"
SECRET_BYTES_MIN = 16


def read_secrets(text: str) -> list[bytes]:
    """Return the keys in `whsec_…[,whsec_…]`; several while they are changed.

    Raises:
        BadSettings: one is not `whsec_` and base64 of enough bytes. The secret is not repeated.
    """
    keys: list[bytes] = []
    for place, secret in enumerate(text.split(","), 1):
        encoded = secret.strip()
        try:
            key = base64.b64decode(encoded.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if not encoded.startswith(_PREFIX) or len(key) < SECRET_BYTES_MIN:
            raise BadSettings(
                f"--webhook-secret: secret {place} is not {_PREFIX} and base64 of at least "
                f"{SECRET_BYTES_MIN} bytes; make one: echo {_PREFIX}$(openssl rand -base64 32)"
            )
        keys.append(key)
    return keys


def signed_headers(keys: Sequence[bytes], event_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """Return the headers of a webhook sent now: a signature by each key."""
    content = f"{event_id}.{at_s}.".encode() + body
    signatures = (hmac.new(key, content, hashlib.sha256).digest() for key in keys)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(one).decode()}" for one in signatures),
    }
