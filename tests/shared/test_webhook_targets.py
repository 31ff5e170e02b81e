"""URLs of webhooks lead to the Internet alone, unless an operator allows more."""

import ipaddress
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.settings.settings import Settings
from shared.webhooks.targets import (
    Target,
    TargetRefused,
    check_addresses,
    check_url,
    is_public,
    networks,
    parse_target,
)

HTTPS = Target("https", "example.com", 443, "/")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
PUBLIC = ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8")
NOT_PUBLIC = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.1.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2002:7f00:1::1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_called(address: str) -> None:
    check_addresses(HTTPS, [address], ())


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_any_other_address_is_refused_alone_and_beside_a_public_one(address: str) -> None:
    for addresses in ([address], ["8.8.8.8", address], [address, "8.8.8.8"]):
        with pytest.raises(TargetRefused, match="public") as refused:
            check_addresses(HTTPS, addresses, ())
        assert refused.value.kind == "address_refused"


def test_an_address_of_ipv6_that_embeds_one_of_ipv4_is_judged_by_that() -> None:
    """No form of an address gets through, of all networks that IANA lists as not global."""
    for text in ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"):
        network = ipaddress.ip_network(text)
        assert isinstance(network, ipaddress.IPv4Network)
        inner = network[network.num_addresses // 2]
        mapped = f"::ffff:{inner}"
        nat64 = f"64:ff9b::{inner}"
        sixtofour = ipaddress.IPv6Address(b"\x20\x02" + inner.packed + bytes(10))
        for form in (mapped, nat64, str(sixtofour), f"::{inner}"):
            with pytest.raises(TargetRefused):
                check_addresses(HTTPS, [form], ())
        assert not is_public(inner)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_python_knows_not_to_be_global_is_refused(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    # Those two forms stand for an address of IPv4, which is judged in their place.
    if isinstance(address, ipaddress.IPv6Address):
        assume(address.ipv4_mapped is None and address not in NAT64)
    if not address.is_global or address.is_multicast or address.is_reserved:
        with pytest.raises(TargetRefused):
            check_addresses(HTTPS, [str(address)], ())


def test_a_name_without_an_address_is_refused() -> None:
    with pytest.raises(TargetRefused) as refused:
        check_addresses(HTTPS, [], ())
    assert refused.value.kind == "unresolved"


def test_allowed_networks_open_those_addresses_and_no_others() -> None:
    allowed = networks(("127.0.0.0/8", "fd00::/8"))
    plain = Target("http", "localhost", 80, "/")
    check_addresses(plain, ["127.0.0.1", "fd00::1", "::ffff:127.0.0.2"], allowed)
    for addresses in (["127.0.0.1", "10.0.0.1"], ["::1"], ["169.254.169.254"]):
        with pytest.raises(TargetRefused):
            check_addresses(plain, addresses, allowed)
    # A public address is not called over http just because a private one may be.
    with pytest.raises(TargetRefused) as refused:
        check_addresses(plain, ["127.0.0.1", "8.8.8.8"], allowed)
    assert refused.value.kind == "not_https"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.com", Target("https", "example.com", 443, "/")),
        ("HTTPS://Example.COM:8443/a?b=c", Target("https", "example.com", 8443, "/a?b=c")),
        ("https://[2606:4700::1]/x", Target("https", "2606:4700::1", 443, "/x")),
        ("http://a_b.internal./", Target("http", "a_b.internal.", 80, "/")),
    ],
)
def test_a_url_is_read(url: str, target: Target) -> None:
    assert parse_target(url) == target


@pytest.mark.parametrize(
    ("target", "authority"),
    [
        (HTTPS, "example.com"),
        (Target("http", "example.com", 443, "/"), "example.com:443"),
        (Target("https", "::1", 8443, "/"), "[::1]:8443"),
    ],
)
def test_the_header_host_names_what_the_url_names(target: Target, authority: str) -> None:
    assert target.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/hooks",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "https://",
        "https:///path",
        "https://user@example.com/",
        "https://user:word@example.com/",
        "https://@example.com/",
        "https://example.com#@127.0.0.1/",
        "https://example.com\\@127.0.0.1/",
        "https://example.com/a b",
        "https://example.com/\r\nX-Evil: 1",
        "https://example.com\t/",
        "https://exämple.com/",
        "https://example.com:0x50/",
        "https://example.com:99999/",
        "https://[::1",
        "https://[fe80::1%25eth0]/",
        "https://[v1.a]/",
        "https://ex%61mple.com/",
        "https://-/",
        "https://a..b/",
        "https://" + "a" * 64 + ".com/",
        "https://" + "a." * 127 + "com/",
        "https://example.com/" + "a" * 2048,
    ],
)
def test_a_url_that_is_no_plain_web_address_is_refused(url: str) -> None:
    with pytest.raises(TargetRefused) as refused:
        parse_target(url)
    assert refused.value.kind == "bad_url"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://example.com/", "not_https"),
        ("https://example.com:22/", "port_refused"),
        ("https://example.com:80/", "port_refused"),
        ("https://127.0.0.1/", "address_refused"),
        ("https://[::ffff:10.0.0.1]/", "address_refused"),
        ("https://169.254.169.254/latest/meta-data", "address_refused"),
    ],
)
def test_a_url_that_no_resolver_could_make_good_is_refused_at_once(url: str, kind: str) -> None:
    with pytest.raises(TargetRefused) as refused:
        check_url(url, ())
    assert refused.value.kind == kind
    assert "127.0.0.1" not in str(refused.value)


def test_with_an_allowed_network_a_name_over_http_may_turn_out_to_be_allowed() -> None:
    check_url("http://receiver.internal:81/", networks(("10.0.0.0/8",)))
    check_url("http://10.1.2.3:81/", networks(("10.0.0.0/8",)))
    with pytest.raises(TargetRefused):
        check_url("http://127.0.0.1/", networks(("10.0.0.0/8",)))


def test_the_setting_takes_networks_alone() -> None:
    given: Any = "10.0.0.0/8, ::1"
    assert Settings(webhook_allow=given).webhook_allow == ("10.0.0.0/8", "::1")
    for wrong in ("example.com", "10.0.0.1/8", "*", "10.0.0.0/33"):
        given = wrong
        with pytest.raises(ValidationError, match=r"networks as 10\.0\.0\.0/8"):
            Settings(webhook_allow=given)
