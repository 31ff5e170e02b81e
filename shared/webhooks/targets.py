"""URLs of webhooks, and the addresses that they may lead to.

A URL comes from a caller, so it may name anything that this machine can reach. It is called at an
address that was checked, and is never resolved twice: the second answer could be another one.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MOST_CHARACTERS = 2048
_PRINTABLE = re.compile(r"[!-~]+")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*\.?")
_PORT_OF = {"https": 443, "http": 80}
# Below it, ports are those of mail, shells and other services that speak no HTTP.
_FIRST_FREE_PORT = 1024

# The registries of IANA (iana-ipv4-special-registry and iana-ipv6-special-registry), and multicast.
# Python has such lists too, which differ from version to version.
_NOT_GLOBAL_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # no network of IANA: the platform's own address on Azure
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
"""All addresses of the Internet are among these."""
_NOT_GLOBAL_6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # Teredo and other protocols, some of which embed addresses of IPv4
        "2001:db8::/32",
        "2002::/16",  # 6to4, which embeds an address of IPv4
        "3fff::/20",
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class TargetRefused(Exception):
    """A URL that webhooks may not be sent to. The text says why; `kind` is the word of logs."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Target:
    """A URL in parts. `host` is a name or an address, without brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the header `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port == _PORT_OF[self.scheme]:
            return host
        return f"{host}:{self.port}"


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks that the texts name, as 10.0.0.0/8. Raise ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def parse_target(url: str) -> Target:
    """Return the parts of a URL. Raise TargetRefused for one that is no plain web address."""
    if len(url) > _MOST_CHARACTERS or not _PRINTABLE.fullmatch(url):
        raise _bad(f"expected at most {_MOST_CHARACTERS} printable ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad("expected an address as https://example.com/hooks") from None
    scheme = parts.scheme
    host = parts.hostname or ""
    if scheme not in _PORT_OF or not host:
        raise _bad("expected an address as https://example.com/hooks")
    if parts.username is not None or parts.password is not None:
        raise _bad("expected no user and no password")
    if "#" in url:
        raise _bad("expected no fragment")
    if "\\" in url:
        raise _bad("expected no backslash")
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise _bad("expected an address of IPv6 in brackets, or a name") from None
        if "%" in host:
            raise _bad("expected an address of IPv6 without a zone")
    elif not _NAME.fullmatch(host) or "[" in url:
        raise _bad("expected a name of a host")
    if port is None:
        port = _PORT_OF[scheme]
    path = parts.path or "/"
    if parts.query:
        path += f"?{parts.query}"
    return Target(scheme, host, port, path)


def check_url(url: str, allowed: Sequence[Network]) -> None:
    """Raise TargetRefused for a URL that is refused wherever its name leads to.

    Nothing is resolved.
    """
    target = parse_target(url)
    if not allowed:
        _check_public(target)
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        return
    check_addresses(target, [str(address)], allowed)


def check_addresses(target: Target, addresses: Sequence[str], allowed: Sequence[Network]) -> None:
    """Raise TargetRefused unless all `addresses` may be called.

    Those in the networks `allowed` may be called over http, too, and at any port; others only if
    they are public.
    """
    if not addresses:
        raise TargetRefused("unresolved", "url: its name has no address.")
    for text in addresses:
        address = _unmapped(text)
        if any(address in network for network in allowed):
            continue
        if not is_public(address):
            raise TargetRefused(
                "address_refused", "url: expected a host with public addresses alone."
            )
        _check_public(target)


def is_public(address: _Address) -> bool:
    """Return whether an address is one of the Internet: a single host, whoever asks."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_GLOBAL_4)
    if address in _NAT64:
        # The last four bytes are the address of IPv4 that is called.
        return is_public(ipaddress.IPv4Address(address.packed[-4:]))
    if address not in _GLOBAL_6:
        return False
    return not any(address in network for network in _NOT_GLOBAL_6)


def _unmapped(text: str) -> _Address:
    """Return an address, that of IPv4 where it is mapped into IPv6."""
    # Resolvers add the zone of a link-local address.
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _check_public(target: Target) -> None:
    """Raise TargetRefused for a URL that may not be called on the Internet."""
    if target.scheme != "https":
        raise TargetRefused("not_https", "url: expected https://.")
    if target.port != _PORT_OF["https"] and target.port < _FIRST_FREE_PORT:
        raise TargetRefused("port_refused", "url: expected port 443, or one from 1024 on.")


def _bad(expected: str) -> TargetRefused:
    return TargetRefused("bad_url", f"url: {expected}.")
