"""Signatures are those of Standard Webhooks: by its text, and for OpenAI's client."""

import base64
import hashlib
import hmac
import time

import openai
import pytest

from shared.webhooks.signing import hint_of, new_secret, signed_headers

PAYLOAD = (
    b'{"id":"evt_1","object":"event","created_at":1,"type":"batch.completed","data":{"id":"b"}}'
)
CLIENT = openai.OpenAI(api_key="none", base_url="http://nowhere")


def test_the_vector_of_the_specification() -> None:
    """The example of the Standard Webhooks libraries, whose signature others computed."""
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_openais_client_and_the_text_of_the_specification_agree() -> None:
    secret = new_secret()
    now_s = int(time.time())
    headers = signed_headers("evt_1", now_s, PAYLOAD, [secret])

    event = CLIENT.webhooks.unwrap(PAYLOAD, headers, secret=secret)
    assert (event.id, event.type) == ("evt_1", "batch.completed")

    key = base64.b64decode(secret.removeprefix("whsec_"))
    assert 24 <= len(key) <= 64
    content = b"evt_1." + str(now_s).encode() + b"." + PAYLOAD
    digest = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    assert headers == {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(now_s),
        "webhook-signature": f"v1,{digest}",
    }


@pytest.mark.parametrize("changed", ["payload", "id", "timestamp", "secret"])
def test_whatever_is_changed_the_signature_fails(changed: str) -> None:
    secret = new_secret()
    headers = signed_headers("evt_1", int(time.time()), PAYLOAD, [secret])
    payload = PAYLOAD
    match changed:
        case "payload":
            payload = PAYLOAD.replace(b"completed", b"failed")
        case "id":
            headers["webhook-id"] = "evt_2"
        case "timestamp":
            headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) - 1)
        case "secret":
            secret = new_secret()
    with pytest.raises(openai.InvalidWebhookSignatureError):
        CLIENT.webhooks.unwrap(payload, headers, secret=secret)


def test_two_secrets_sign_side_by_side() -> None:
    secrets = [new_secret(), new_secret()]
    headers = signed_headers("evt_1", int(time.time()), PAYLOAD, secrets)
    assert len(headers["webhook-signature"].split()) == 2
    for secret in secrets:
        CLIENT.webhooks.unwrap(PAYLOAD, headers, secret=secret)


def test_a_hint_tells_secrets_apart_and_nothing_else() -> None:
    secret = new_secret()
    assert hint_of(secret) != hint_of(new_secret())
    assert hint_of(secret).startswith("whsec_…")
    assert len(hint_of(secret)) == len("whsec_…") + 4
