"""Secrets and signatures of Standard Webhooks (standardwebhooks.com, specification 1.0.0)."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"
_PREFIX = "whsec_"
# The specification asks for 24 to 64 bytes.
_SECRET_BYTES = 32


def new_secret() -> str:
    """Return a random secret as receivers keep it: `whsec_` and its bytes in base64."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def hint_of(secret: str) -> str:
    """Return a text by which people tell secrets apart, and nobody can sign."""
    return f"{_PREFIX}…{secret.rstrip('=')[-4:]}"


def signed_headers(
    event_id: str, timestamp_s: int, payload: bytes, keys: Sequence[str]
) -> dict[str, str]:
    """Return the three headers of a payload, with a signature by each of the secrets `keys`."""
    signatures = []
    for secret in keys:
        key = base64.b64decode(secret.removeprefix(_PREFIX))
        signed = f"{event_id}.{timestamp_s}.".encode() + payload
        digest = hmac.new(key, signed, hashlib.sha256).digest()
        signatures.append(f"v1,{base64.b64encode(digest).decode()}")
    return {ID: event_id, TIMESTAMP: str(timestamp_s), SIGNATURE: " ".join(signatures)}
