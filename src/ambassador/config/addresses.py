"""Places as people write them: hosts, addresses, URLs, files. Pure; text to canonical text, or `Wrong`.

Hosts are in lower case and addresses in their usual form afterwards. Nothing is taken that some library would read as
another place (`0x7f.1`, `127.1`), and no URL that holds credentials.
"""

from __future__ import annotations

import ipaddress
import re

from ambassador.config.units import Wrong
from ambassador.config.words import NOT_SUPPORTED, did_you_mean, need
from ambassador.extras import REDIS
from ambassador.observe.secret_names import names_a_secret
from ambassador.proxy.clients import mtls
from ambassador.proxy.loopback import is_this_host
from ambassador.state.redis_url import parse_address

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


def state_url(text: str) -> str:
    """`local`, or the address of a Redis. The problem never repeats the text, which may hold a password."""
    if text == "local":
        return text
    try:
        address = parse_address(text)
    except ValueError as error:
        raise Wrong(
            f"must be 'local' or the address of a Redis: {error}",
            did_you_mean(text, ["local"]) or "as in 'redis://host:6379/0'",
        ) from None
    if address.password is not None or address.sentinel_password is not None:
        key = "password" if address.password is not None else "sentinel_password"
        raise Wrong("must not hold the password", f"write 'state: {{url: …, {key}: env:NAME}}'")
    need(REDIS, "a Redis")
    return text


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port` (the host without brackets). Wrong if it is neither."""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\]:([0-9]{1,5})", text, re.ASCII)
    plain = re.fullmatch(r"([^:\[\]]+):([0-9]{1,5})", text, re.ASCII)
    match = bracketed or plain
    if match is None:
        raise Wrong(f"{text!r} is not an address", _address_hint(text))
    host, port = match[1].lower(), int(match[2])
    if port > 65535:
        raise Wrong(f"{text!r}: port {port} is over 65535")
    if bracketed:
        address = _ip_address(host, 6)
        if getattr(address, "scope_id", None) is not None and not address.is_link_local:
            raise Wrong(f"{text!r}: only link-local addresses have a zone")
        return str(address), port
    return _host_name(host), port


def _has_no_port(authority: str) -> bool:
    return re.fullmatch(r"\[[^\[\]]*\]|[^:]*", authority) is not None


def _refuse_zone(host: str) -> None:
    """Raises `Wrong` for an address that only means something together with an interface of this machine."""
    if "%" in host:
        raise Wrong(
            f"'[{host}]' has a zone, and such addresses are not connected to", "use one without, or a name"
        )


def _address_hint(text: str) -> str:
    port = re.fullmatch(r"\*?:?([0-9]{1,5})", text, re.ASCII)
    if port:
        return f"did you mean '127.0.0.1:{port[1]}', or '0.0.0.0:{port[1]}' for all interfaces?"
    if text.count(":") > 1 and not text.startswith("["):
        return "an IPv6 address stands in brackets: '[::1]:8080'"
    return "write it like '127.0.0.1:8080', '[::1]:8080' or 'unix:/path'"


def _ip_address(text: str, version: int | None = None) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise Wrong(f"{text!r} is not an IP address") from None
    if version is not None and address.version != version:
        raise Wrong(f"{text!r} is not an IPv{version} address")
    return address


def _host_name(text: str) -> str:
    lower = text.lower().removesuffix(".")
    if re.fullmatch(r"[0-9.]+", lower, re.ASCII):
        return str(_ip_address(lower, 4))
    if not lower.isascii():
        raise Wrong(f"{text!r} is not ASCII", "write the name in its 'xn--' form")
    if not _HOST_NAME.fullmatch(lower):
        raise Wrong(f"{text!r} is not a host name")
    if _NUMBER.fullmatch(lower.rpartition(".")[2]):
        # Many libraries take these for addresses, each in its own way (WHATWG URL 3.5: "ends in a number").
        raise Wrong(f"{text!r} is neither a host name nor an address", "write the address like '127.0.0.1'")
    return lower


def _unix_path(text: str) -> str:
    path = text.removeprefix("unix:")
    if not path.startswith("/") or "\0" in path:
        raise Wrong(f"{text!r} is not a socket's path", "write it like 'unix:/run/app.sock'")
    # sun_path of Linux is 108 bytes with its NUL.
    if len(path.encode("utf-8", "surrogateescape")) > 107:
        raise Wrong(f"{text!r} is longer than a socket's path may be, 107 bytes")
    return text


def listen_address(text: str) -> str:
    """`host:port`, `[v6]:port` or `unix:/path`; the host in lower case."""
    if text.startswith("unix:"):
        return _unix_path(text)
    host, port = split_address(text)
    return _join(host, port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_for_this_host(address: str) -> bool:
    """Whether only this host reaches a listen address, as far as is written: where a name leads is seen when it is
    bound.
    """
    return address.startswith("unix:") or is_this_host(split_address(address)[0])


def control(text: str) -> str:
    """`unix:/path`."""
    if not text.startswith("unix:"):
        raise Wrong(f"{text!r} is not a socket", "write it like 'unix:/run/ambassador.sock'")
    return _unix_path(text)


def endpoint_url(text: str) -> str:
    """`http://host:port` or `https://host:port`, with the port always there, or `unix:/path`."""
    if text.startswith("unix:"):
        return _unix_path(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise Wrong(f"{text!r} is not a URL", f"did you mean 'http://{text}'?")
    scheme = scheme.lower()
    if scheme not in ("http", "https"):
        raise Wrong(f"{text!r} is not an http URL")
    authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in authority:
        raise Wrong("credentials do not belong into a URL")
    if tail not in ("", "/"):
        raise Wrong(f"{text!r}: an endpoint has no path or query", "use 'rewrite' to change the path")
    if _has_no_port(authority):
        authority += ":443" if scheme == "https" else ":80"
    try:
        host, port = split_address(authority)
    except Wrong as wrong:
        raise Wrong(
            f"{text!r} is not a URL", wrong.hint if authority.count(":") > 1 else wrong.problem
        ) from None
    if port == 0:
        raise Wrong(f"{text!r}: port 0 cannot be connected to")
    _refuse_zone(host)
    return f"{scheme}://{_join(host, port)}"


def proxy_url(text: str) -> str:
    """`http://host:port` or `socks5://host:port` of an egress proxy. The problem never repeats the text, in which a
    password may be.
    """
    scheme, separator, authority = text.partition("://")
    scheme = "socks5" if scheme.lower() == "socks5h" else scheme.lower()
    if "@" in authority:
        raise Wrong(
            "credentials do not belong into a URL", "write 'via: {url: …, user: …, password: env:NAME}'"
        )
    if scheme == "https" and separator:
        raise Wrong(
            f"TLS to the egress proxy is {NOT_SUPPORTED}", "https endpoints are reached by 'http://…' too"
        )
    if scheme not in ("http", "socks5") or not separator:
        raise Wrong("is no egress proxy", "write it like 'http://proxy:3128' or 'socks5://proxy:1080'")
    try:
        return f"{scheme}://{host_port(authority.removesuffix('/'))}"
    except Wrong as wrong:
        raise Wrong(f"is no egress proxy: {wrong.problem}", wrong.hint) from None


def host_port(text: str) -> str:
    """`host:port`, in lower case; port 0 cannot be connected to."""
    if _has_no_port(text):
        raise Wrong(f"{text!r} has no port", f"write it like '{text}:8080'")
    host, port = split_address(text)
    if port == 0:
        raise Wrong(f"{text!r}: port 0 cannot be connected to")
    _refuse_zone(host)
    return _join(host, port)


def srv_name(text: str) -> str:
    """The name of SRV records (RFC 2782), in lower case."""
    if ":" in text:
        raise Wrong(f"{text!r} has a port", "SRV records tell the ports themselves")
    if re.fullmatch(r"[0-9.]+", text, re.ASCII):
        raise Wrong(f"{text!r} is an address", "write a name, like '_http._tcp.api.internal'")
    return _host_name(text)


def file_path(text: str) -> str:
    """An absolute path of a file."""
    if not text.startswith("/") or "\0" in text or text.endswith("/"):
        raise Wrong(f"{text!r} is not the absolute path of a file")
    return text


def pem_file(text: str) -> str:
    """The absolute path of a PEM file, also as `file:/path`, as secrets are written."""
    return file_path(text.removeprefix("file:"))


def server_name(text: str) -> str:
    """The name of a server, or its IP address, without a port; in lower case."""
    if ":" in text:
        try:
            return str(_ip_address(text.strip("[]"), 6))
        except Wrong:
            raise Wrong(f"{text!r} is not the name of a server", "write it without a port") from None
    return _host_name(text)


def api_server(text: str) -> str:
    """`https://host:port`, or `http://`; the port may be left out."""
    match = re.fullmatch(r"(https?)://([^/?#@]+)/?", text, re.ASCII)
    if match is None:
        raise Wrong(f"{text!r} is not the address of a server", "write it like 'https://10.0.0.1:6443'")
    scheme, authority = match.groups()
    if _has_no_port(authority):
        authority += ":443" if scheme == "https" else ":80"
    return f"{scheme}://{_join(*split_address(authority))}"


def _place(url: str) -> str:
    """A URL for people: without its query, in which some have secrets."""
    return url.partition("?")[0]


def telling_names(url: str) -> list[str]:
    """The names in a URL's query that look as if a secret had been put there."""
    names = (pair.partition("=")[0] for pair in url.partition("?")[2].split("&"))
    return [name for name in names if names_a_secret(name.encode())]


def token_url(text: str) -> str:
    """`https://host:port/path?query`, or `http://`; the port may be left out."""
    match = re.fullmatch(r"(https?)://([^/?#]*)(/[!-~]*|)", text, re.ASCII)
    if match is None or "#" in text:
        raise Wrong(
            f"{_place(text)!r} is not the URL of a token endpoint",
            "write it like 'https://id.example.com/token'",
        )
    scheme, authority, path = match.groups()
    if "@" in authority:
        raise Wrong("credentials do not belong into a URL")
    bare = _has_no_port(authority)
    host, port = split_address(f"{authority}:443" if bare else authority)
    _refuse_zone(host)
    if port == 0:
        raise Wrong(f"{_place(text)!r}: port 0 cannot be connected to")
    joined = _join(host, port)
    return f"{scheme}://{joined.rpartition(':')[0] if bare else joined}{path or '/'}"


def san_pattern(text: str) -> str:
    """A subject alternative name of a certificate; DNS names and addresses in their usual form."""
    if not text or re.search(r"[\x00-\x20\x7f]", text):
        raise Wrong(f"{text!r} is not a name that a certificate may have")
    kind = mtls.kind_of(text)
    if kind == "URI":
        if "*" in text.removesuffix("/*"):
            raise Wrong(f"{text!r}: '*' may only be the end, after a slash", "as in 'spiffe://trust/ns/*'")
        return text
    labels = text.split(".")
    if "*" in text and (
        kind != "DNS" or labels[-1] == "*" != text or any("*" in label and label != "*" for label in labels)
    ):
        raise Wrong(f"{text!r}: '*' stands for one whole label of a DNS name", "as in '*.internal'")
    if kind == "IP Address":
        return str(_ip_address(text))
    if kind == "DNS" and not _HOST_NAME.fullmatch(text.lower().replace("*", "x")):
        raise Wrong(f"{text!r} is not a DNS name", "a URI has '://', as in 'spiffe://trust/ns/billing'")
    return text.lower() if kind == "DNS" else text


def jwks_source(text: str) -> str:
    """The URL of a set of public keys, or the path of a file, as `file:/path` or bare; after loading with `file:`."""
    if text.startswith(("/", "file:")):
        return f"file:{file_path(text.removeprefix('file:'))}"
    match = re.fullmatch(r"(https?)://([^/?#@\s]+)(/[^#\s]*)?", text, re.ASCII)
    if match is None:
        raise Wrong(
            f"{_place(text)!r} is neither a URL nor a file",
            "as in 'https://id.example.com/jwks' or 'file:/path'",
        )
    scheme, authority, target = match.groups()
    if _has_no_port(authority):
        authority += ":443" if scheme == "https" else ":80"
    host, port = split_address(authority)
    _refuse_zone(host)
    if scheme == "http" and not is_this_host(host):
        raise Wrong(
            f"{_place(text)!r}: who stands between could put keys of their own there", "use https, or a file"
        )
    return f"{scheme}://{_join(host, port)}{target or '/'}"


def cidr(text: str) -> str:
    """A network; one address is a network of one."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise Wrong(f"{text!r} is not a network", "write it like '10.0.0.0/8' or '::1'") from None
    raise Wrong(f"{text!r} has host bits set", f"did you mean '{loose}'?")


def egress_place(text: str) -> str:
    """A network, an address as the network of it alone, a host name or `*.suffix`; lower case."""
    if text == "*":
        raise Wrong(
            "'*' is every host; what is to hold for all of them is a network", "as in '0.0.0.0/0' and '::/0'"
        )
    if "/" in text:
        return cidr(text)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return host_pattern(text)
    return cidr(bare)


def host_pattern(text: str) -> str:
    """A host name, `*.suffix` or `*`; lower case."""
    if text == "*":
        return text
    if text.startswith("*."):
        return "*." + _host_name(text[2:])
    if "*" in text:
        raise Wrong(
            f"{text!r} is not a host pattern", "a wildcard is '*' alone or the first label, '*.example.com'"
        )
    return _bare_host(text)


def _bare_host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return f"[{_ip_address(text[1:-1], 6)}]"
    if text.count(":") == 1 and text.partition(":")[2].isdigit():
        raise Wrong(
            f"{text!r} has a port, and ports are not matched", f"did you mean '{text.partition(':')[0]}'?"
        )
    return _host_name(text)


def host(text: str) -> str:
    """A host name or address with or without a port, or the word `keep`."""
    if _has_no_port(text):
        return _bare_host(text)
    return _join(*split_address(text))
