#!/usr/bin/env python3
"""A second reader of Vault capabilities, written from the format and not from the Go code.

It reads capability/testdata/vectors.json and says of every chain whether it is accepted,
of every call what the chain allows, and of every proof whether it holds. It needs Python
3.9 and the package cryptography; everything else (CBOR, COSE_Sign1, JSON
canonicalisation, the constraints) is in this file.

    python3 contrib/capability/check.py capability/testdata/vectors.json

The exit code is 0 if it agrees with every vector. Not evaluated here: CEL expressions and
JSON Schemas, so a chain with a caveat is refused, as any reader without an engine must.
Regular expressions are RE2 in the format and re in Python; the vectors use what both have.
"""

import base64
import hashlib
import ipaddress
import json
import re
import sys
from datetime import datetime, timezone
from decimal import Decimal
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature


class Refused(Exception):
    """A refusal with its code and the JSON Pointer of the argument, if any."""

    def __init__(self, code, path=""):
        super().__init__(f"{code} {path}")
        self.code, self.path = code, path


def malformed(why=""):
    raise Refused("capability.malformed", why and "")


# ---------------------------------------------------------------- CBOR (RFC 8949, 4.2.1)


class Reader:
    """Reads deterministic CBOR and refuses every other way to say the same."""

    def __init__(self, data):
        self.data, self.pos = data, 0

    def take(self, n):
        if self.pos + n > len(self.data):
            malformed("cut short")
        out = self.data[self.pos : self.pos + n]
        self.pos += n
        return out

    def head(self):
        first = self.take(1)[0]
        major, low = first >> 5, first & 31
        if low < 24:
            return major, low
        if low > 27:
            malformed("indefinite length or reserved")
        size = 1 << (low - 24)
        n = int.from_bytes(self.take(size), "big")
        if n < (24 if size == 1 else 1 << (4 * size)):
            malformed("not the shortest head")
        return major, n

    def value(self, depth=0):
        if depth > 32:
            malformed("nested too deep")
        start = self.pos
        major, n = self.head()
        if major == 0:
            return n
        if major == 1:
            return -1 - n
        if major == 2:
            return self.take(n)
        if major == 3:
            try:
                return self.take(n).decode("utf-8")
            except UnicodeDecodeError:
                malformed("text is not UTF-8")
        if major == 4:
            return [self.value(depth + 1) for _ in range(self.bounded(n))]
        if major == 5:
            out, last = {}, None
            for _ in range(self.bounded(n)):
                begin = self.pos
                key = self.value(depth + 1)
                raw = self.data[begin : self.pos]
                if last is not None and raw <= last:
                    malformed("keys out of order, or one twice")
                last = raw
                out[tuple(key) if isinstance(key, list) else key] = self.value(depth + 1)
            return out
        if self.data[start] in (0xF4, 0xF5):
            return self.data[start] == 0xF5
        malformed("a tag, a float or null")

    def bounded(self, n):
        if n > 1024:
            malformed("more elements than a set may have")
        return n


def decode(data):
    r = Reader(data)
    v = r.value()
    if r.pos != len(data):
        malformed("data after the item")
    return v


def encode(v):
    def head(major, n):
        if n < 24:
            return bytes([major << 5 | n])
        for low, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
            if n < 1 << (8 * size):
                return bytes([major << 5 | low]) + n.to_bytes(size, "big")
        raise ValueError(n)

    if isinstance(v, int):
        return head(0, v) if v >= 0 else head(1, -1 - v)
    if isinstance(v, bytes):
        return head(2, len(v)) + v
    if isinstance(v, str):
        b = v.encode()
        return head(3, len(b)) + b
    if isinstance(v, list):
        return head(4, len(v)) + b"".join(encode(e) for e in v)
    if isinstance(v, dict):
        items = sorted((encode(k), encode(e)) for k, e in v.items())
        return head(5, len(items)) + b"".join(k + e for k, e in items)
    raise TypeError(type(v))


# ---------------------------------------------------------------- keys and COSE (RFC 9052)

ED25519, ES256 = -19, -7
LINK = "vault/link/v1"


class Key:
    def __init__(self, alg, x, y=b""):
        self.alg, self.x, self.y = alg, x, y

    @staticmethod
    def from_cose(m):
        if set(m) == {1, -1, -2} and m[1] == 1 and m[-1] == 6 and is_bytes(m[-2], 32):
            return Key(ED25519, m[-2])
        if set(m) == {1, -1, -2, -3} and m[1] == 2 and m[-1] == 1 and is_bytes(m[-2], 32) and is_bytes(m[-3], 32):
            key = Key(ES256, m[-2], m[-3])
            try:
                key.p256()
            except ValueError:
                malformed("the point is not on the curve")
            return key
        malformed("unknown key")

    @staticmethod
    def from_text(s):
        kind, _, text = s.partition(":")
        raw = b64(text[:43]), b64(text[43:])
        return Key(ED25519, raw[0]) if kind == "ed25519" else Key(ES256, *raw)

    def thumbprint(self):
        m = {1: 1, -1: 6, -2: self.x} if self.alg == ED25519 else {1: 2, -1: 1, -2: self.x, -3: self.y}
        return hashlib.sha256(encode(m)).digest()

    def p256(self):
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + self.x + self.y)

    def verify(self, message, signature):
        try:
            if self.alg == ED25519:
                ed25519.Ed25519PublicKey.from_public_bytes(self.x).verify(signature, message)
            else:
                r, s = (int.from_bytes(signature[i : i + 32], "big") for i in (0, 32))
                self.p256().verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
            return True
        except (InvalidSignature, ValueError):
            return False


def is_bytes(v, n):
    return isinstance(v, bytes) and len(v) == n


def b64(s):
    return base64.urlsafe_b64decode(s + "=" * (-len(s) % 4))


class Message:
    """One COSE_Sign1: [protected, {}, payload, signature], untagged."""

    def __init__(self, raw, parts):
        if not (isinstance(parts, list) and len(parts) == 4 and isinstance(parts[0], bytes) and parts[1] == {} and isinstance(parts[2], bytes) and is_bytes(parts[3], 64)):
            malformed("not a COSE_Sign1 of this format")
        self.raw, (self.protected, _, self.payload, self.signature) = raw, parts
        header = decode(self.protected)
        if not isinstance(header, dict) or set(header) - {4} != {1, 16} or header[16] != LINK or header[1] not in (ED25519, ES256):
            malformed("unknown header")
        self.alg, self.kid = header[1], header.get(4, b"")
        if 4 in header and not (isinstance(self.kid, bytes) and 0 < len(self.kid) <= 64):
            malformed("kid")
        self.id = hashlib.sha256(LINK.encode() + self.protected + self.payload).digest()

    def signed_by(self, key):
        return key.alg == self.alg and key.verify(encode(["Signature1", self.protected, LINK.encode(), self.payload]), self.signature)


def frame(raw):
    if not raw:
        raise Refused("capability.missing")
    if len(raw) > 64 << 10:
        malformed("too long")
    r = Reader(raw)
    major, n = r.head()
    if major != 4 or not 1 <= n <= 16:
        malformed("no array of links")
    out = []
    for _ in range(n):
        begin = r.pos
        parts = r.value()
        out.append(Message(raw[begin : r.pos], parts))
    if r.pos != len(raw):
        malformed("data after the chain")
    return out


# ---------------------------------------------------------------- links

# The kinds of field: how each is checked, and whether its zero value is left out, so
# that writing it is a second way to say nothing.


def text(limit=256, empty=False):
    def check(v):
        if not isinstance(v, str) or len(v.encode()) > limit or (not v and not empty):
            malformed("text")
        if any(c < " " and c not in "\n\t\r" or c == "\x7f" for c in v):
            malformed("control character")
        return v

    return check


def integer(low=None, high=None, zero=False):
    def check(v):
        if isinstance(v, bool) or not isinstance(v, int) or not zero and v == 0 or low is not None and v < low or high is not None and v > high:
            malformed("number")
        return v

    return check


def true(v):
    if v is not True:
        malformed("a flag is true or absent")
    return v


def digest(v):
    if not is_bytes(v, 32) or v == bytes(32):
        malformed("digest")
    return v


def listed(each, least=0, most=1024):
    def check(v):
        if not isinstance(v, list) or not least <= len(v) <= most:
            malformed("list")
        return [each(e) for e in v]

    return check


def fields(spec, required=()):
    def check(v):
        if not isinstance(v, dict) or set(v) - set(spec) or set(required) - set(v):
            malformed("unknown or missing field")
        return {spec[k][0]: spec[k][1](e) for k, e in v.items()}

    return check


INSTANT = integer(1, 253_402_300_799_999)
LIMIT = integer(0, (1 << 63) - 1, zero=True)
INT64 = integer(-(1 << 63), (1 << 63) - 1, zero=True)
KINDS = {"tool", "resource", "prompt", "server_request", "egress", "secret", "file", "exec", "model", "agent"}


def scalar(v):
    if isinstance(v, str):
        if len(v.encode()) > 4096:
            malformed("value too long")
        return v
    if isinstance(v, bool):
        return v
    return INT64(v)


def pair(v):
    low, high = listed(INT64, 2, 2)(v)
    if low > high:
        malformed("empty range")
    return low, high


def lengths(v):
    low, high = pair(v)
    if low < 0:
        malformed("negative length")
    return low, high


def one_of(*words):
    def check(v):
        if v not in words:
            malformed("unknown word")
        return v

    return check


def pattern(v):
    if not isinstance(v, str) or not 0 < len(v.encode()) <= 4096:
        malformed("pattern")
    return v


def clean_path(p):
    return p == "/" or p.startswith("/") and "\0" not in p and all(s not in ("", ".", "..") for s in p[1:].split("/"))


def under_path(p, base):
    return base == "/" or p == base or p.startswith(base + "/")


def host_name(h):
    labels = h.split(".")
    return (
        0 < len(h) <= 253
        and all(re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", label) for label in labels)
        and not labels[-1][0].isdigit()
    )


def lower(s):
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in s)


def under_host(h, suffix):
    return h == suffix or h.endswith("." + suffix)


def hosts(v):
    for h in listed(pattern)(v):
        if not host_name(h):
            malformed("host")
    return v


PORTS = {"https": 443, "wss": 443, "http": 80, "ws": 80}


def schemes(v):
    for s in listed(pattern)(v):
        if s not in PORTS:
            malformed("scheme")
    return v


def url_hosts(v):
    for h in listed(pattern, 1)(v):
        if not host_name(h[1:] if h.startswith(".") else h) and not re.fullmatch(r"\[?[0-9a-f.:]+\]?", h):
            malformed("host of a URL")
    return v


def path_rule(v):
    if not clean_path(pattern(v)):
        malformed("path is not clean")
    return v


def network(v):
    try:
        net = ipaddress.ip_network(pattern(v))
    except ValueError:
        malformed("network")
    return net


def option(v):
    pattern(v)
    if len(v) < 2 or v[0] != "-" or ("=" in v) != v.endswith("="):
        malformed("option")
    return v


def texts(v):
    """Constraints on a string that is not an argument of its own."""
    out = listed(constraint, 0, 16)(v)
    for name, _ in out:
        if name in ARRAYS or name in ("each", "object", "schema", "cel"):
            malformed("want a constraint on a string")
    return out


def regex(v):
    try:
        return re.compile(pattern(v))
    except re.error:
        malformed("regex")


def glob(v):
    out = ""
    for part in re.split(r"(\*\*|\*|\?)", pattern(v)):
        out += {"**": "(?s:.*)", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return re.compile(out)


def optional_arg(v):
    if arg(v)["optional"]:
        malformed("an element is not optional")
    return arg(v)


CONSTRAINTS = {
    1: ("exact", scalar), 2: ("one_of", listed(scalar)), 3: ("integer", pair), 4: ("decimal", pair), 5: ("prefix", pattern),
    6: ("subpath", path_rule), 7: ("glob", glob), 8: ("regex", regex), 9: ("email_domain", hosts),
    10: ("url", fields({1: ("schemes", schemes), 2: ("hosts", url_hosts), 3: ("ports", listed(integer(1, 65535))), 4: ("path", path_rule)}, (2,))),
    11: ("host_suffix", hosts), 12: ("max_length", LIMIT), 13: ("each", optional_arg), 14: ("object", lambda v: args(v)),
    15: ("not_one_of", listed(scalar)), 16: ("cidr", listed(network)),
    17: ("public_url", fields({1: ("schemes", schemes), 2: ("ports", listed(integer(1, 65535)))})),
    18: ("argv", fields({1: ("programs", listed(pattern, 1)), 2: ("options", listed(option)), 3: ("values", texts), 4: ("operands", texts), 5: ("max", integer(1, 256))}, (1,))),
    19: ("set", listed(scalar)), 20: ("subset", listed(scalar)), 21: ("contains", listed(scalar)), 22: ("count", lengths), 23: ("length", lengths),
    24: ("schema", pattern), 25: ("cel", pattern),
}
ARRAYS = {"set", "subset", "contains", "count", "argv"}


def constraint(v):
    if not isinstance(v, dict) or len(v) != 1:
        malformed("constraint of none or several kinds")
    ((key, value),) = v.items()
    if key not in CONSTRAINTS:
        malformed("unknown constraint")
    name, check = CONSTRAINTS[key]
    return name, check(value)


def arg(v):
    out = fields({1: ("optional", true), 2: ("all", listed(constraint, 0, 16))})(v)
    out = {"optional": out.get("optional", False), "all": out.get("all", [])}
    names = [name for name, _ in out["all"]]
    arrays = [n for n in names if n in ARRAYS or n == "each"]
    scalars = [n for n in names if n not in ARRAYS and n not in ("each", "object", "schema", "cel")]
    if scalars and (arrays or "object" in names) or arrays and "object" in names:
        malformed("constraints of different types")
    if any(n in ("contains", "count") for n in names) and not any(n in ("each", "set", "subset", "argv", "schema", "cel") for n in names):
        malformed("contains and count leave the elements open")
    return out


def tokens(pointer):
    if not isinstance(pointer, str) or len(pointer) < 2 or pointer[0] != "/" or re.search(r"~(?![01])", pointer):
        malformed("no JSON Pointer")
    out = pointer[1:].split("/")
    if len(out) > 8:
        malformed("pointer too deep")
    return [t.replace("~1", "/").replace("~0", "~") for t in out]


def args(v):
    if not isinstance(v, dict) or len(v) > 256:
        malformed("arguments")
    out = {"/".join([""] + [escape(t) for t in tokens(p)]): arg(a) for p, a in v.items()}
    for a in out:
        if any(b.startswith(a + "/") for b in out):
            malformed("one argument inside another")
    return out


def escape(token):
    return token.replace("~", "~0").replace("/", "~1")


SUM = {1: ("kind", text()), 2: ("server", digest), 3: ("name", text(2048)), 4: ("arg", lambda v: tokens(v) and v), 5: ("unit_arg", lambda v: tokens(v) and v), 6: ("unit", text()), 7: ("limit", LIMIT)}


def budgets(v, link=True):
    out = fields({1: ("calls", LIMIT), 2: ("bytes_out", LIMIT), 3: ("sums", listed(fields(SUM, (4, 6, 7)), 1, 32)), 4: ("recipients", LIMIT), 5: ("hosts", LIMIT), 6: ("wall_ms", LIMIT)})(v)
    if not out:
        malformed("budgets without a counter")
    for s in out.get("sums", []):
        if link != ("kind" in s) or link != ("name" in s) or not link and "server" in s or link and (s["kind"] not in KINDS or s["name"] == "*"):
            malformed("sum")
    return out


RULE = fields({1: ("any", true), 2: ("args", args), 3: ("ask", listed(text(), 0, 16)), 4: ("definition", digest), 5: ("budgets", lambda v: budgets(v, False))})


def grants(v):
    if not isinstance(v, dict) or set(v) - KINDS:
        malformed("unknown kind")
    out = {}
    for kind, targets in v.items():
        if not isinstance(targets, dict):
            malformed("targets")
        for t, rule in targets.items():
            if not (isinstance(t, tuple) and len(t) == 2 and is_bytes(t[0], 32) and isinstance(t[1], str) and 0 < len(t[1].encode()) <= 2048):
                malformed("target")
            out[kind, t[0], t[1]] = RULE(rule)
    return out


def holder(v):
    out = fields({1: ("key", Key.from_cose), 2: ("spiffe", text(2048)), 3: ("channel", text()), 4: ("uid", integer(0, (1 << 32) - 1, zero=True)), 5: ("bearer", true)})(v)
    if len(out) != 1 or not out.get("spiffe", "spiffe://").startswith("spiffe://"):
        malformed("holder")
    return out


RISKS = ("low", "medium", "high")
LINK_FIELDS = fields({
    1: ("parent", digest), 2: ("tenant", text()), 3: ("principal", text()), 4: ("agent", text()),
    5: ("task", fields({1: ("id", text(empty=True)), 2: ("file", digest), 3: ("purpose", text(4096, True)), 4: ("inputs", text(32 << 10))}, (1, 3))),
    6: ("audience", text()), 7: ("issued", INSTANT), 8: ("not_before", INSTANT), 9: ("expires", INSTANT), 10: ("depth", integer(0, 15, zero=True)),
    11: ("holder", holder), 12: ("delegates", listed(text())), 13: ("grants", grants), 14: ("budgets", budgets), 15: ("min_grade", integer(1, 4)),
    16: ("may_read", listed(text())), 17: ("may_send_to", listed(text())), 18: ("caveats", listed(text(4096), 0, 16)),
    19: ("third_party", listed(fields({1: ("group", text()), 2: ("audience", text())}, (1, 2)), 0, 16)), 20: ("sign_at", one_of(*RISKS)), 21: ("delegate_keys", listed(digest)),
})
ROOT = {"tenant", "principal", "agent", "task", "audience", "issued", "not_before", "expires", "depth", "holder", "grants", "budgets"}
ROOT_ONLY = {"tenant", "principal", "task", "audience", "issued", "not_before"}


def read_link(message, before):
    """Decodes a link and holds it against those before it."""
    link = LINK_FIELDS(decode(message.payload))
    link["message"] = message
    if not before:
        if not message.kid:
            malformed("root without kid")
        if "parent" in link or ROOT - set(link) or not link["task"]["id"] or "calls" not in link["budgets"] or link["expires"] <= link["not_before"]:
            malformed("root")
        for rule in link["grants"].values():
            if ("any" in rule) == ("args" in rule):
                malformed("a root says args or any")
        return link
    if link.get("parent") != hashlib.sha256(before[-1]["message"].raw).digest():
        malformed("follows another link")
    left = 16
    for b in before:
        left = min(left - 1, b.get("depth", 16))
    if left < 1:
        malformed("deeper than the chain allows")
    if ROOT_ONLY & set(link):
        malformed("only a root says that")
    for (_, _, name), rule in link.get("grants", {}).items():
        if "any" in rule or name == "*":
            malformed("only a root leaves things open")
    held = last(before, "holder")
    if ("key" in held) == bool(message.kid) or "holder" in link and "key" not in link["holder"] and not message.kid:
        malformed("not signed by the holder of the link before")
    if "key" in link.get("holder", {}):
        for b in before:
            if "delegate_keys" in b and link["holder"]["key"].thumbprint() not in b["delegate_keys"]:
                malformed("bound to a key that is no delegate's")
    if link.get("agent", last(before, "agent")) != last(before, "agent"):
        for i, b in enumerate(before):
            if link["agent"] not in b.get("delegates", [] if i == 0 else [link["agent"]]):
                malformed("no delegate")
    return link


def last(links, name):
    return next(b[name] for b in reversed(links) if name in b)


# ---------------------------------------------------------------- chains


class Chain:
    """A chain whose signatures were verified, held against issuers, audience and time."""

    def __init__(self, raw, issuers, audience, now):
        messages = frame(raw)
        issuer = issuers.get(messages[0].kid.decode("latin-1"))
        if issuer is None:
            raise Refused("capability.issuer")
        self.links = []
        for i, m in enumerate(messages):
            key = issuer["key"]
            if i > 0:
                held = last(self.links, "holder")
                other = issuers.get(m.kid.decode("latin-1"))
                if "key" in held:
                    key = held["key"]
                elif other and other["tenant"] == self.links[0]["tenant"]:
                    key = other["key"]
                else:
                    raise Refused("capability.signature")
            if not m.signed_by(key):
                raise Refused("capability.signature")
            self.links.append(read_link(m, self.links))
        root = self.links[0]
        if root["tenant"] != issuer["tenant"]:
            raise Refused("capability.issuer")
        if root["audience"] != audience:
            raise Refused("capability.audience")
        if any(b.get("caveats") for b in self.links) or any(p["audience"] != audience for b in self.links for p in b.get("third_party", [])):
            raise Refused("capability.caveat")
        self.kid = messages[0].kid.decode("latin-1")
        self.ids = [b["message"].id for b in self.links]
        if now >= min(b["expires"] for b in self.links if "expires" in b):
            raise Refused("capability.expired")
        if now + 30_000 < root["not_before"]:
            raise Refused("capability.not_yet")

    def revoked(self, all_of):
        root = self.links[0]
        return any(
            r.get("link") in [i.hex() for i in self.ids]
            or r.get("agent") in [b["agent"] for b in self.links if "agent" in b]
            or r.get("task") == root["task"]["id"]
            or r.get("issuer") == self.kid
            or r.get("everything") and root["issued"] <= instant(r["at"])
            for r in all_of
        )

    def allow(self, kind, server, name, document):
        """What the chain says of a call: its debits, groups and demand for a signature."""
        fixed, variable, ask, sign = [], [], set(), None
        checks = []
        for b in self.links:
            counter = b["message"].id.hex()
            self.count(counter, b.get("budgets"), kind, server, name, True, fixed, variable)
            ask |= {p["group"] for p in b.get("third_party", [])}
            if "sign_at" in b:
                sign = min(sign or "high", b["sign_at"], key=RISKS.index)
            if "grants" not in b:
                continue
            exact = (kind, server, name)
            rule, found = b["grants"].get(exact), name
            if rule is None:
                rule, found = b["grants"].get((kind, server, "*")), "*"
            if rule is None:
                raise Refused("capability.target")
            ask |= set(rule.get("ask", []))
            if "args" in rule:
                checks.append(tree(rule["args"]))
            if "budgets" in rule:
                what = vault_hash("rule", kind.encode(), server, found.encode())[:16].hex()
                self.count(f"{counter}/rule/{what}", rule["budgets"], kind, server, name, False, fixed, variable)
        for members in checks:
            bad = check_object(members, document, "")
            if bad is not None:
                raise Refused("capability.argument", bad)
        for d in fixed:
            if d["amount"] > d["limit"]:
                raise Refused("capability.budget")
        for counter, unit, limit, sum_of in variable:
            amount = len(canonical(document)) if sum_of is None else self.amount(sum_of, document)
            if amount > limit:
                raise Refused("capability.budget", sum_of["arg"] if sum_of else "")
            fixed.append({"counter": counter, "amount": amount, "limit": limit, "unit": unit})
        return fixed, sorted(ask), sign

    @staticmethod
    def amount(s, document):
        d = millionths(at(document, s["arg"]))
        if d is None or d < 0:
            raise Refused("capability.argument", s["arg"])
        if "unit_arg" in s and at(document, s["unit_arg"]) != s["unit"]:
            raise Refused("capability.argument", s["unit_arg"])
        return d

    @staticmethod
    def count(counter, b, kind, server, name, link, fixed, variable):
        if not b:
            return
        if "calls" in b:
            fixed.append({"counter": counter + "/calls", "amount": 1, "limit": b["calls"], "unit": "calls", "kept": True})
        if "bytes_out" in b:
            variable.append((counter + "/bytes_out", "bytes", b["bytes_out"], None))
        for field, unit in (("recipients", "recipients"), ("hosts", "hosts"), ("wall_ms", "ms")):
            if field in b:
                fixed.append({"counter": f"{counter}/{unit}", "amount": 0, "limit": b[field], "unit": unit})
        for i, s in enumerate(b.get("sums", [])):
            if not link or (s["kind"], s.get("server", bytes(32)), s["name"]) == (kind, server, name):
                variable.append((f"{counter}/sum/{i}", s["unit"] + "·10^-6", s["limit"], s))


def vault_hash(what, *parts):
    h = hashlib.sha256(b"vault/" + what.encode() + b"/v1")
    for p in parts:
        h.update(len(p).to_bytes(8, "big") + p)
    return h.digest()


# ---------------------------------------------------------------- arguments

ABSENT = object()


def pairs(items):
    out = {}
    for k, v in items:
        if k.casefold() in {o.casefold() for o in out}:
            raise ValueError("a key twice")
        out[k] = v
    return out


def number(s):
    f = float(s)
    return int(f) if f.is_integer() and abs(f) < 2**53 else f


def load(s):
    return json.loads(s, object_pairs_hook=pairs, parse_float=number)


def canonical(v):
    """RFC 8785 for what the vectors hold: no number needs more than repr says."""
    if isinstance(v, dict):
        items = sorted(v.items(), key=lambda kv: kv[0].encode("utf-16-be"))
        return b"{" + b",".join(canonical(k) + b":" + canonical(e) for k, e in items) + b"}"
    if isinstance(v, list):
        return b"[" + b",".join(canonical(e) for e in v) + b"]"
    return json.dumps(v, ensure_ascii=False).encode()


def at(v, pointer):
    for t in tokens(pointer):
        if not isinstance(v, dict) or t not in v:
            return ABSENT
        v = v[t]
    return v


def tree(named):
    """Named arguments as nested objects; a dict is one that only pointers speak of."""
    root = {}
    for pointer, a in named.items():
        *way, leaf = tokens(pointer)
        node = root
        for t in way:
            node = node.setdefault(t, {"": {}})[""]
        node[leaf] = a
    return root


def is_optional(a):
    return all(is_optional(m) for m in a[""].values()) if "" in a else a["optional"]


def check_object(members, v, where):
    """None if v passes, else the pointer of what does not."""
    if v is not ABSENT and not isinstance(v, dict):
        return where
    v = {} if v is ABSENT else v
    for name in sorted(members):
        m = members[name]
        here = f"{where}/{escape(name)}"
        if name not in v:
            if not is_optional(m):
                return here
            continue
        bad = check_object(m[""], v[name], here) if "" in m else check_arg(m, v[name], here)
        if bad is not None:
            return bad
    for name in sorted(v, key=lambda k: k.encode("utf-16-be")):
        if name not in members:
            return f"{where}/{escape(name)}"
    return None


def check_arg(a, v, where):
    names = {n for n, _ in a["all"]}
    if isinstance(v, (list, dict)) and not names & (ARRAYS | {"each", "object", "schema", "cel"}):
        return where
    for name, rule in a["all"]:
        if name == "each":
            if not isinstance(v, list):
                return where
            for i, e in enumerate(v):
                bad = check_arg(rule, e, f"{where}/{i}")
                if bad is not None:
                    return bad
        elif name == "object":
            bad = check_object(tree(rule), v, where) if isinstance(v, dict) else where
            if bad is not None:
                return bad
        elif not passes(name, rule, v):
            return where
    return None


def same(a, b):
    return type(a) is type(b) and a == b


def within(v, values):
    return any(same(v, e) for e in values)


def millionths(v):
    if isinstance(v, bool) or not isinstance(v, (int, float)):
        return None
    d = Decimal(v) if isinstance(v, int) else Decimal(repr(v))
    scaled = d * 10**6
    return int(scaled) if scaled == int(scaled) and abs(d) < 10**12 else None


def passes(name, rule, v):
    if name == "exact":
        return same(v, rule)
    if name == "one_of":
        return within(v, rule)
    if name == "not_one_of":
        return any(type(v) is type(e) for e in rule) and not within(v, rule)
    if name == "integer":
        return type(v) is int and rule[0] <= v <= rule[1]
    if name == "decimal":
        d = millionths(v)
        return d is not None and rule[0] <= d <= rule[1]
    if name in ARRAYS:
        return isinstance(v, list) and passes_array(name, rule, v)
    if not isinstance(v, str):
        return False
    if name == "prefix":
        return v.startswith(rule)
    if name == "subpath":
        return clean_path(v) and under_path(v, rule)
    if name in ("glob", "regex"):
        return rule.fullmatch(v) is not None
    if name == "email_domain":
        local, sign, domain = v.partition("@")
        return bool(sign) and lower(domain) in rule and len(local) <= 64 and re.fullmatch(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*", local) is not None
    if name == "host_suffix":
        return host_name(lower(v)) and any(under_host(lower(v), s) for s in rule)
    if name == "max_length":
        return len(v) <= rule
    if name == "length":
        return rule[0] <= len(v) <= rule[1]
    if name == "cidr":
        a = address(v)
        return a is not None and any(a.version == n.version and a in n for n in rule)
    if name == "url":
        return url(v, rule, lambda h: any(h != s[1:] and under_host(h, s[1:]) and host_name(h) if s.startswith(".") else h == s for s in rule["hosts"]))
    if name == "public_url":
        return url(v, rule, public_host)
    return False  # schema and cel: nothing here evaluates them


def passes_array(name, rule, v):
    if len(v) > 1024:
        return False
    if name == "count":
        return rule[0] <= len(v) <= rule[1]
    if name == "contains":
        return all(within(e, v) for e in rule)
    if name in ("set", "subset"):
        once = all(within(e, rule) and sum(same(e, o) for o in v) == 1 for e in v)
        return once and (name == "subset" or all(within(e, v) for e in rule))
    if not 1 <= len(v) <= rule.get("max", 64) or not all(isinstance(e, str) and "\0" not in e for e in v) or v[0] not in rule["programs"]:
        return False
    for e in v[1:]:
        if e.startswith("-"):
            opt, sign, value = e.partition("=")
            if sign and (opt + "=" not in rule.get("options", []) or not all_pass(rule.get("values"), value)) or not sign and e not in rule.get("options", []):
                return False
        elif not all_pass(rule.get("operands"), e):
            return False
    return True


def all_pass(rules, v):
    return bool(rules) and all(passes(n, r, v) for n, r in rules)


def address(s):
    if "%" in s or len(s) > 45:
        return None
    try:
        a = ipaddress.ip_address(s)
    except ValueError:
        return None
    mapped = getattr(a, "ipv4_mapped", None)
    return mapped or a


def url(s, rule, host_ok):
    if len(s) > 2048 or any(not " " < c < "\x7f" or c == "\\" for c in s):
        return False
    scheme, sep, rest = s.partition("://")
    if not sep or scheme not in rule.get("schemes", ["https"]) or "#" in rest:
        return False
    end = min((i for i in (rest.find("/"), rest.find("?")) if i >= 0), default=len(rest))
    host, port = lower(rest[:end]), str(PORTS[scheme])
    if ":" in host and not host.endswith("]"):
        host, _, port = host.rpartition(":")
    if port not in ([str(p) for p in rule["ports"]] if "ports" in rule else [str(PORTS[scheme])]) or not host_ok(host):
        return False
    try:
        urlsplit(s)
    except ValueError:
        return False
    path = rest[end:].partition("?")[0] or "/"
    if re.search(r"%(?![0-9a-fA-F]{2})", rest[end:].partition("?")[0]) or re.search(r"(?i)%(00|25|2e|2f|5c)", path):
        return False
    if path != "/" and path.endswith("/"):
        path = path[:-1]
    return clean_path(path) and ("path" not in rule or under_path(path, rule["path"]))


PRIVATE_NAMES = "localhost local internal intranet private corp home lan home.arpa onion test example invalid in-addr.arpa ip6.arpa".split()
NOT_PUBLIC = [ipaddress.ip_network(n) for n in (
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3 "
    "::/128 ::1/128 64:ff9b::/96 64:ff9b:1::/48 100::/64 2001::/23 2001:db8::/32 2002::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8").split()]


def public_host(h):
    if host_name(h):
        return "." in h and not any(under_host(h, p) for p in PRIVATE_NAMES)
    literal = h[1:-1] if h.startswith("[") and h.endswith("]") else h
    a = address(literal)
    if a is None or (":" in literal) != (literal != h):
        return False
    return not any(a.version == n.version and a in n for n in NOT_PUBLIC)


# ---------------------------------------------------------------- the vectors


def instant(s):
    m = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?Z", s)
    whole = datetime.strptime(m[1], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    return int(whole.timestamp()) * 1000 + int(((m[2] or "") + "000")[:3])


def decode_text(token):
    if not token.startswith("vc1.") or re.search(r"[^A-Za-z0-9_-]", token[4:]):
        malformed("text form")
    raw = b64(token[4:])
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != token[4:]:
        malformed("a second way to write the text form")
    return raw


def main(name):
    with open(name, encoding="utf-8") as f:
        v = json.load(f)
    issuers = {i["kid"]: {"key": Key.from_text(i["key"]), "tenant": i["tenant"]} for i in v["issuers"]}
    now = instant(v["now"])
    wrong, checks = [], 0

    def chain(token):
        return Chain(decode_text(token), issuers, v["audience"], now)

    for t in v["accept"]:
        checks += 1
        try:
            c = chain(t["token"])
        except Refused as e:
            wrong.append(f"accept {t['name']}: refused with {e}")
            continue
        if [i.hex() for i in c.ids] != t["link_ids"]:
            wrong.append(f"accept {t['name']}: other link ids")
        if c.revoked(t.get("revoked", [])):
            wrong.append(f"accept {t['name']}: revoked")
        for call in t.get("calls", []):
            checks += 1
            document = load(json.dumps(call["args"]))
            code = path = ""
            try:
                debits, ask, sign = c.allow(call["kind"], bytes.fromhex(call["target"]["server"]), call["target"]["name"], document)
                for field, got in (("debits", debits), ("ask", ask), ("sign_at", sign)):
                    if field in call and call[field] != got:
                        wrong.append(f"accept {t['name']}: {field} {got}, want {call[field]}")
            except Refused as e:
                code, path = e.code, e.path
            if (code, path) != (call.get("code", ""), call.get("path", "")):
                wrong.append(f"accept {t['name']}: {call['args']}: {code} at {path!r}, want {call.get('code', '')} at {call.get('path', '')!r}")
    for t in v["refuse"]:
        checks += 1
        code = ""
        try:
            if chain(t["token"]).revoked(t.get("revoked", [])):
                code = "capability.revoked"
        except Refused as e:
            code = e.code
        if code != t["code"]:
            wrong.append(f"refuse {t['name']}: {code}, want {t['code']}")
    for p in v["proofs"]:
        checks += 1
        c = chain(p["token"])
        digest_of = hashlib.sha256(b"vault/args/v1" + canonical(load(json.dumps(p["args"])))).digest()
        b = encode(["vault/call/v1", v["audience"], bytes.fromhex(p["sid"]), p["seq"], c.ids[-1], p["call_id"], p["kind"],
                    bytes.fromhex(p["target"]["server"]), p["target"]["name"], digest_of, bytes.fromhex(p["nonce"])])
        valid = b.hex() == p["bytes"] and last(c.links, "holder")["key"].verify(b, bytes.fromhex(p["signature"]))
        if valid != p["valid"]:
            wrong.append(f"proof {p['name']}: {valid}")
    for w in wrong:
        print(w)
    print(f"{checks - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "capability/testdata/vectors.json"))
