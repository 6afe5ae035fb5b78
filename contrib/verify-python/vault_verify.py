#!/usr/bin/env python3
"""Verify a Vault evidence bundle offline: the second, independent verifier.

It is written from the formats in the package comment of evidence/ and the
standards named there (RFC 6962 and 9162, RFC 8785, C2SP signed notes, checkpoints,
cosignatures and witness policies, DSSE 1, in-toto statements, Rekor v2 and v1, RFC 3161 with
RFC 5652 and RFC 5280), with the standard library and `cryptography`. It reads the bundle whole, so it is for bundles
that fit into memory several times.

    vault_verify.py BUNDLE --key NAME+HASH+KEY [--since FILE] [--run T] [--newer-than X]
                    [--policy FILE] [--rekor-key KEY] [--tsa-roots FILE] [--json]

Exit codes are those of `pvault audit verify`. `--table DIR` runs the table that
the Go tests write and fails if one answer differs.
"""

import argparse
import base64
import binascii
import datetime
import hashlib
import hmac
import json
import re
import struct
import sys
import zlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key, load_pem_public_key

EXIT = {
    "ok": 0, "altered": 10, "dropped": 11, "swapped": 12, "truncated": 13, "disclosure": 14,
    "malformed": 15, "statement": 16, "wrong_key": 20, "unpinned": 21, "unwitnessed": 22,
    "unanchored": 23, "unstamped": 24, "rollback": 30, "split_view": 31, "unrelated": 32, "other_run": 33,
    "stale": 34, "incomplete": 40,
}
DOUBT_SIGNER = 20  # codes from here on are not about the records
MAX_BUNDLE = 1 << 30
MAX_SMALL = 64 << 10
MAX_STATEMENT = 1 << 20
MAX_NOTE = 16 << 10
MAX_TOKEN = 32 << 10
MAX_TSA_CERTS = 16
MAX_LEAF = (1 << 16) - 1
MAX_LINE = 384 << 10
MAX_INT = 2**53 - 1
FIELDS = {
    "call": ["args", "caller", "context", "note", "result", "target"],
    "task": ["agent", "by", "capability", "inputs", "principal", "purpose"],
    "approval": ["answer", "approver", "question"],
    "revocation": ["by", "note", "what"],
    "server": ["definition", "note"],
    "daemon": ["note"],
    "access": ["note"],
    "erasure": ["basis", "by", "what"],
    "recovery": ["by", "predecessor", "signature", "why"],
}
PHASES = "refused asked intent released done failed cancelled unknown opened closed noted".split()
PROOFS = ["", "signature", "session", "channel", "peer", "svid", "bearer"]
KINDS = ["", "tool", "resource", "prompt", "server_request", "egress", "secret", "file", "exec", "model", "agent"]
GRADES = ["none", "D", "C", "B", "A"]
README_SHA256 = "6219f0d4393b0f79ccc075d4d2bcdc3aedd116eaa9cde93fc10f5e42bbc6cdd8"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


class Finding(Exception):
    """Ends verification with an answer."""

    def __init__(self, problem, detail, record=None):
        super().__init__(detail)
        self.problem, self.detail, self.record = problem, detail, record


class Refused(Exception):
    """What the verifier itself brought makes no sense."""


# --- bytes ---------------------------------------------------------------------


def sha256(*parts):
    h = hashlib.sha256()
    for p in parts:
        h.update(p)
    return h.digest()


def b64(text):
    """Decodes standard base64 in its one form."""
    if not isinstance(text, str):
        raise ValueError("no base64")
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError("base64 not in its one form")
    return raw


def digest_of(text):
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("no digest")
    return bytes.fromhex(text)


def no_twice(pairs):
    d = dict(pairs)
    if len(d) != len(pairs):
        raise ValueError("a member twice")
    return d


def refuse(_):
    raise ValueError("not an integer")


def strict(raw):
    """JSON without duplicate members, floats or lone surrogates."""
    text = raw.decode("utf-8")
    v = json.loads(text, object_pairs_hook=no_twice, parse_float=refuse, parse_constant=refuse)
    dump(v).encode("utf-8")
    return v


def dump(v):
    return json.dumps(v, separators=(",", ":"), ensure_ascii=False)


def go_dump(v):
    """As Go's encoder writes a line: it escapes two characters more."""
    return dump(v).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def line_of(raw, members):
    """One line of JSON: exactly these members, in this order, canonical."""
    raw = raw[:-1] if raw.endswith(b"\n") else raw
    try:
        v = strict(raw)
        if not isinstance(v, dict) or list(v) != members or go_dump(v).encode() != raw:
            raise ValueError("not in canonical form")
    except (ValueError, RecursionError) as e:
        raise ValueError(str(e)) from None
    return v


def index_of(v):
    if type(v) is not int or not 0 <= v < 2**64:
        raise ValueError("no index")
    return v


def path_of(v):
    return [] if v is None else [digest_of(d) for d in v]


# --- RFC 6962 -------------------------------------------------------------------


def leaf_hash(raw):
    return sha256(b"\x00", raw)


def node_hash(a, b):
    return sha256(b"\x01", a, b)


def root_of(hashes):
    """Merkle tree hash over leaf hashes, level by level: an odd node moves up."""
    if not hashes:
        return sha256()
    level = list(hashes)
    while len(level) > 1:
        up = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            up.append(level[-1])
        level = up
    return level[0]


def included(index, size, h, path, root):
    """RFC 9162 section 2.1.3.2."""
    if index >= size:
        return False
    fn, sn, r = index, size - 1, h
    for p in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def continues(old, new, path):
    """RFC 9162 section 2.1.4.2, for checkpoints."""
    first, second = old.size, new.size
    if first > second:
        return False
    if first == second:
        return not path and old.root == new.root
    if first == 0 or not path:
        return False
    path = ([old.root] if first & (first - 1) == 0 else []) + path
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == old.root and sr == new.root


# --- signed notes ---------------------------------------------------------------


class Key:
    """A verifier key, NAME+HASH+KEY; kind 1 is Ed25519, 4 a witness."""

    def __init__(self, text, kinds=(1,)):
        name, _, rest = text.partition("+")
        hash_, _, key = rest.partition("+")
        try:
            raw = b64(key)
            if not re.fullmatch(r"[0-9a-fA-F]{8}", hash_) or not name or re.search(r"[\s+]", name):
                raise ValueError("form")
            if len(raw) != 33 or raw[0] not in kinds or sha256(name.encode(), b"\n", raw)[:4] != bytes.fromhex(hash_):
                raise ValueError("hash")
        except ValueError as e:
            raise Refused(f"key {text!r}: want NAME+HASH+KEY: {e}") from None
        self.text, self.name, self.raw = text, name, raw[1:]
        self.hash = bytes.fromhex(hash_)
        if 4 in kinds:
            self.hash = sha256(name.encode(), b"\n\x04", self.raw)[:4]
        self.public = ed25519.Ed25519PublicKey.from_public_bytes(self.raw)

    def signed(self, message, sig):
        try:
            self.public.verify(sig, message)
        except InvalidSignature:
            return False
        return True


def signatures(note):
    """Splits a signed note into its text and (name, hash, signature)."""
    at = note.rfind(b"\n\n")
    if at < 0 or len(note) > MAX_NOTE or not note.endswith(b"\n"):
        raise ValueError("not a signed note")
    decoded = note.decode("utf-8")
    if any(ord(c) < 32 and c != "\n" for c in decoded):
        raise ValueError("control characters")
    sigs = []
    for line in note[at + 2 :].decode().removesuffix("\n").split("\n"):
        m = re.fullmatch(r"— ([^\s+]+) (\S+)", line)
        raw = b64(m.group(2)) if m else b""
        if len(raw) < 5 or len(sigs) == 100:
            raise ValueError("a bad signature line")
        sigs.append((m.group(1), raw[:4], raw[4:]))
    return note[: at + 1], sigs


class Checkpoint:
    def __init__(self, text):
        lines = text.decode().split("\n")
        if len(lines) != 4 or lines[3] or not lines[0] or len(lines[0].encode()) > 1024:
            raise ValueError("want three lines")
        if not re.fullmatch(r"0|[1-9][0-9]*", lines[1]) or int(lines[1]) > MAX_INT:
            raise ValueError("size")
        self.origin, self.size, self.root = lines[0], int(lines[1]), b64(lines[2])
        if len(self.root) != 32:
            raise ValueError("root")
        self.text = text
        self.digest = sha256(text)

    def __eq__(self, other):
        return self.text == other.text


class WrongKey(Exception):
    pass


def open_checkpoint(note, keys):
    """Returns checkpoint and key, raises WrongKey, or ValueError for a bad note."""
    text, sigs = signatures(note)
    good = []
    for name, hash_, sig in sigs:
        for k in keys:
            if k.name == name and k.hash == hash_:
                if not k.signed(text, sig):
                    raise ValueError("the signature does not match the text")
                good.append(k)
                break
    if not good:
        raise WrongKey()
    cp = Checkpoint(text)
    for k in good:
        if k.name == cp.origin:
            return cp, k
    raise WrongKey()


# --- witnesses and Rekor --------------------------------------------------------


class Policy:
    """C2SP tlog-policy, with each key and each member once."""

    def __init__(self, text):
        self.logs, self.witnesses, self.groups, self.quorum = [], {}, {}, None
        grouped, raws = set(), set()
        known = lambda n: n in self.witnesses or n in self.groups
        for line in text.decode().split("\n"):
            f = line.split()
            if not f or f[0].startswith("#"):
                continue
            if f[0] == "log" and len(f) in (2, 3):
                self.logs.append(f[1])
            elif f[0] == "witness" and len(f) in (3, 4) and not known(f[1]) and f[1] != "none":
                k = Key(f[2], (1, 4))
                if k.raw in raws:
                    raise Refused("witness policy: a key twice")
                raws.add(k.raw)
                self.witnesses[f[1]] = k
            elif f[0] == "group" and len(f) >= 4 and not known(f[1]) and f[1] != "none":
                members = f[3:]
                need = {"any": 1, "all": len(members)}.get(f[2])
                if need is None:
                    if not re.fullmatch(r"[1-9][0-9]*", f[2]):
                        raise Refused("witness policy: threshold")
                    need = int(f[2])
                if need > len(members) or len(set(members)) != len(members) or any(not known(m) or m in grouped for m in members):
                    raise Refused("witness policy: group")
                grouped.update(members)
                self.groups[f[1]] = (need, members)
            elif f[0] == "quorum" and len(f) == 2 and self.quorum is None and known(f[1]):
                self.quorum = f[1]
            else:
                raise Refused(f"witness policy: {line!r}")
        if self.quorum is None:
            raise Refused("witness policy: no quorum")

    def met(self, name, by):
        if name in self.witnesses:
            return name in by
        need, members = self.groups[name]
        return sum(self.met(m, by) for m in members) >= need

    def cosigned(self, note):
        """Names of the quorum and the latest time one states, or None."""
        text, sigs = signatures(note)
        by, latest = set(), 0
        for who, k in self.witnesses.items():
            for name, hash_, sig in sigs:
                if name != k.name or hash_ != k.hash or len(sig) != 72:
                    continue
                at = struct.unpack(">Q", sig[:8])[0]
                if 0 < at <= 253402300799 and k.signed(b"cosignature/v1\ntime %d\n" % at + text, sig[8:]):
                    by.add(who)
                    latest = max(latest, at)
        return (sorted(by), latest) if self.met(self.quorum, by) else None


def in_rekor(entry, cp, key):
    """A TransparencyLogEntry of Rekor v2 whose leaf is rebuilt from the checkpoint."""
    try:
        e = json.loads(entry)
        spec = json.loads(b64(e["canonicalizedBody"]))["spec"]["hashedRekordV002"]
        sig = b64(spec["signature"]["content"])
        der = b64(spec["signature"]["verifier"]["publicKey"]["rawBytes"])
        public = load_der_public_key(der)
        if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
            return False
        public.verify(sig, cp.digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        enc = lambda b: base64.b64encode(b).decode()
        leaf = dump({
            "apiVersion": "0.0.2", "kind": "hashedrekord", "spec": {"hashedRekordV002": {
                "data": {"algorithm": "SHA2_256", "digest": enc(cp.digest)},
                "signature": {"content": enc(sig), "verifier": {
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256", "publicKey": {"rawBytes": enc(der)}}}}},
        }).encode()
        p = e["inclusionProof"]
        text, sigs = signatures(p["checkpoint"]["envelope"].encode())
        if not any(n == key.name and h == key.hash and key.signed(text, s) for n, h, s in sigs):
            return False
        lines = text.decode().split("\n")
        if lines[0] != key.name or lines[1] != p["treeSize"] or not re.fullmatch(r"[0-9]+", p["logIndex"]):
            return False
        return included(int(p["logIndex"]), int(lines[1]), leaf_hash(leaf), [b64(h) for h in p["hashes"]], b64(lines[2]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, InvalidSignature, RecursionError):
        return False


class RekorV1Key:
    """The public key of a Rekor v1 log, ECDSA P-256 in PEM."""

    def __init__(self, text):
        try:
            self.public, self.der = pem_key(text)
        except (ValueError, UnsupportedAlgorithm) as e:
            raise Refused(f"Rekor key: {e}") from None
        self.id = sha256(self.der)

    def signed(self, message, sig):
        try:
            self.public.verify(sig, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    def holds(self, entry, cp):
        """Host name and time of a LogEntry whose leaf is rebuilt from the checkpoint."""
        try:
            e = json.loads(entry)
            s = json.loads(b64(e["body"]))["spec"]["signature"]
            sig, pem = b64(s["content"]), b64(s["publicKey"]["content"])
            pem_key(pem.decode())[0].verify(sig, cp.digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
            enc = lambda b: base64.b64encode(b).decode()
            leaf = dump({
                "apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
                    "data": {"hash": {"algorithm": "sha256", "value": cp.digest.hex()}},
                    "signature": {"content": enc(sig), "publicKey": {"content": enc(pem)}}},
            }).encode()
            at, index, v = e["integratedTime"], e["logIndex"], e["verification"]
            p = v["inclusionProof"]
            if any(type(n) is not int for n in (at, index, p["logIndex"], p["treeSize"])) or not 0 < at <= 253402300799:
                return None
            promise = dump({"body": enc(leaf), "integratedTime": at, "logID": self.id.hex(), "logIndex": index}).encode()
            if e["logID"] != self.id.hex() or not self.signed(promise, b64(v["signedEntryTimestamp"])):
                return None
            host = p["checkpoint"].split(" - ")[0]
            text, sigs = signatures(p["checkpoint"].encode())
            if not any(n == host and h == self.id[:4] and self.signed(text, s) for n, h, s in sigs):
                return None
            lines = text.decode().split("\n")
            if lines[1] != str(p["treeSize"]) or p["logIndex"] < 0:
                return None
            path = [digest_of(h) for h in p["hashes"]]
            if not included(p["logIndex"], p["treeSize"], leaf_hash(leaf), path, b64(lines[2])):
                return None
            return plain_name(host), at
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, InvalidSignature, UnsupportedAlgorithm, RecursionError):
            return None


def pem_key(text):
    if not re.fullmatch(r"-----BEGIN PUBLIC KEY-----\s[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----\s*", text):
        raise ValueError("want one PUBLIC KEY in PEM")
    key = load_pem_public_key(text.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ValueError("want an ECDSA key on P-256")
    return key, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def plain_name(name):
    return re.sub(r"[^A-Za-z0-9 ._-]", "?", name)[:64] or "without a name"


# --- timestamps -----------------------------------------------------------------


def der(data):
    """The elements in DER bytes, as (tag, content, whole element)."""
    out, at = [], 0
    while at < len(data):
        head = at
        if len(data) - at < 2 or data[at] & 31 == 31:
            raise ValueError("DER: tag")
        tag, size, at = data[at], data[at + 1], at + 2
        if size >= 0x80:
            n = size & 0x7F
            size = int.from_bytes(data[at : at + n], "big")
            if not 1 <= n <= 4 or at + n > len(data) or data[at] == 0 or size < 0x80:
                raise ValueError("DER: length")
            at += n
        if size > len(data) - at:
            raise ValueError("DER: cut short")
        out.append((tag, data[at : at + size], data[head : at + size]))
        at += size
    return out


def inside(data, tag=0x30):
    """The elements in the one element of data, which has this tag."""
    (t, content, _), *more = der(data)
    if t != tag or more:
        raise ValueError(f"DER: want one element {tag:#x}")
    return der(content)


def dotted(element):
    tag, b, _ = element
    if tag != 6 or not b or b[-1] & 0x80:
        raise ValueError("DER: no object identifier")
    parts, n = [], 0
    for c in b:
        n = n << 7 | c & 0x7F
        if not c & 0x80:
            parts.append(n)
            n = 0
    first = min(parts[0] // 40, 2)
    return ".".join(map(str, [first, parts[0] - 40 * first] + parts[1:]))


def number(element, tag=2):
    if element[0] != tag or not element[1]:
        raise ValueError("DER: no integer")
    return int.from_bytes(element[1], "big", signed=True)


CMS_SIGNED, TST_INFO = "1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.4"
ATTR_TYPE, ATTR_DIGEST, ATTR_CERTS = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4", "1.2.840.113549.1.9.16.2.47"
SHA2 = {"2.16.840.1.101.3.4.2.1": "sha256", "2.16.840.1.101.3.4.2.2": "sha384", "2.16.840.1.101.3.4.2.3": "sha512"}
SIGNATURES = {
    "1.2.840.113549.1.1.1": (rsa.RSAPublicKey, None),
    "1.2.840.113549.1.1.11": (rsa.RSAPublicKey, "sha256"),
    "1.2.840.113549.1.1.12": (rsa.RSAPublicKey, "sha384"),
    "1.2.840.113549.1.1.13": (rsa.RSAPublicKey, "sha512"),
    "1.2.840.10045.4.3.2": (ec.EllipticCurvePublicKey, "sha256"),
    "1.2.840.10045.4.3.3": (ec.EllipticCurvePublicKey, "sha384"),
    "1.2.840.10045.4.3.4": (ec.EllipticCurvePublicKey, "sha512"),
    "1.3.101.112": (ed25519.Ed25519PublicKey, None),
}
KNOWN_EXTENSIONS = {"2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.32", "2.5.29.37"}  # may be critical
TIMESTAMPING, ANY_PURPOSE = "1.3.6.1.5.5.7.3.8", "2.5.29.37.0"


def check_signature(cert, algorithm, hash_, sig, message):
    kind, named = SIGNATURES.get(algorithm, (None, None))
    key, hash_ = cert.public_key(), named or hash_
    if kind is None or not isinstance(key, kind):
        raise ValueError(f"signature algorithm {algorithm}")
    if kind is ed25519.Ed25519PublicKey:
        key.verify(sig, message)
        return
    hash_ = {"sha256": hashes.SHA256, "sha384": hashes.SHA384, "sha512": hashes.SHA512}[hash_]()
    if kind is ec.EllipticCurvePublicKey:
        key.verify(sig, message, ec.ECDSA(hash_))
    else:
        key.verify(sig, message, padding.PKCS1v15(), hash_)


def extension(cert, kind):
    try:
        return cert.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def purposes(cert):
    e = extension(cert, x509.ExtendedKeyUsage)
    return None if e is None else [p.dotted_string for p in e.value]


def valid_at(cert, ns):
    utc = lambda t: t.replace(tzinfo=datetime.timezone.utc)
    start = getattr(cert, "not_valid_before_utc", None) or utc(cert.not_valid_before)
    end = getattr(cert, "not_valid_after_utc", None) or utc(cert.not_valid_after)
    if any(e.critical and e.oid.dotted_string not in KNOWN_EXTENSIONS for e in cert.extensions):
        return False
    key = cert.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048:
        return False
    may = purposes(cert)
    if may is not None and TIMESTAMPING not in may and ANY_PURPOSE not in may:
        return False
    return int(start.timestamp()) * 10**9 <= ns <= int(end.timestamp()) * 10**9


def issued(child, parent, below):
    """Whether parent may have issued child, with so many CAs below, and did."""
    ca, usage = extension(parent, x509.BasicConstraints), extension(parent, x509.KeyUsage)
    if child.issuer != parent.subject or ca is None or not ca.value.ca or usage and not usage.value.key_cert_sign:
        return False
    if ca.value.path_length is not None and below > ca.value.path_length:
        return False
    # Name constraints would have to be understood; no authority's root has needed them.
    if any(e.oid.dotted_string == "2.5.29.30" for e in parent.extensions):
        return False
    algorithm = child.signature_algorithm_oid.dotted_string
    if algorithm == "1.2.840.113549.1.1.1":
        return False
    try:
        check_signature(parent, algorithm, None, child.signature, child.tbs_certificate_bytes)
    except (ValueError, KeyError, InvalidSignature):
        return False
    return True


class TSARoots:
    def __init__(self, text):
        block = r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\s*"
        try:
            text = text.decode().strip()
            if not re.fullmatch(f"(?:{block}){{1,{MAX_TSA_CERTS}}}", text):
                raise ValueError(f"want 1 to {MAX_TSA_CERTS} certificates in PEM and nothing else")
            self.certs = [x509.load_pem_x509_certificate(b.encode()) for b in re.findall(block, text)]
        except ValueError as e:
            raise Refused(f"TSA roots: {e}") from None

    def lead_to(self, cert, others, ns, below=0):
        """Whether cert was valid then up to a root. RFC 5280 section 6, without policies."""
        if not valid_at(cert, ns) or below > MAX_TSA_CERTS:
            return False
        if cert in self.certs:
            return True
        if any(valid_at(r, ns) and issued(cert, r, below) for r in self.certs):
            return True
        rest = [o for o in others if o != cert]
        self.tried += len(rest)
        if self.tried > 100:
            raise ValueError("too many ways up")
        return any(issued(cert, o, below) and self.lead_to(o, rest, ns, below + 1) for o in rest)

    def timestamp(self, token, cp):
        """Who stamped the checkpoint, and the second by which; None if none of ours did."""
        self.tried = 0
        try:
            return self.read(token, cp)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, InvalidSignature, UnsupportedAlgorithm,
                x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType):
            return None

    def read(self, token, cp):
        if len(token) > MAX_TOKEN:
            raise ValueError("too long")
        kind, wrapped, *_ = inside(token)
        if dotted(kind) != CMS_SIGNED or wrapped[0] != 0xA0:
            raise ValueError("not signed data")
        _, _, content, *rest = inside(wrapped[1])
        kind, wrapped, *_ = der(content[1])
        (tag, info, _), *more = der(wrapped[1])
        if dotted(kind) != TST_INFO or wrapped[0] != 0xA0 or tag != 4 or more:
            raise ValueError("no TSTInfo")
        certs = []
        if rest and rest[0][0] == 0xA0:
            certs = [x509.load_der_x509_certificate(c[2]) for c in der(rest.pop(0)[1])]
        if rest and rest[0][0] == 0xA1:
            rest.pop(0)
        (tag, signers, _), *_ = rest
        signers = der(signers)
        if tag != 0x31 or len(signers) != 1 or len(certs) > MAX_TSA_CERTS:
            raise ValueError("want one signer")
        cert = self.signer(inside(signers[0][2]), info, certs)
        ns, before = self.stated(info, cp)
        use, ca, usage = extension(cert, x509.ExtendedKeyUsage), extension(cert, x509.BasicConstraints), extension(cert, x509.KeyUsage)
        if use is None or not use.critical or purposes(cert) != [TIMESTAMPING] or ca and ca.value.ca:
            raise ValueError("not for timestamping alone")
        if usage and not (usage.value.digital_signature or usage.value.content_commitment):
            raise ValueError("not for signing")
        if not self.lead_to(cert, certs, ns):
            raise ValueError("no chain")
        names = cert.subject.get_attributes_for_oid(x509.oid.NameOID.COMMON_NAME)
        return plain_name(names[-1].value if names else ""), before

    def signer(self, fields, info, certs):
        _, who, digest_by, signed, signed_by, sig, *_ = fields
        hash_ = SHA2[dotted(der(digest_by[1])[0])]
        if signed[0] != 0xA0 or sig[0] != 4:
            raise ValueError("no signed attributes")
        message = b"\x31" + signed[2][1:]
        attrs = {}
        for a in der(signed[1]):
            kind, values = inside(a[2])
            attrs.setdefault(dotted(kind), []).extend(inside(values[2], 0x31))
        (kind,), (digest,), (ids,) = attrs[ATTR_TYPE], attrs[ATTR_DIGEST], attrs[ATTR_CERTS]
        if dotted(kind) != TST_INFO or digest[0] != 4 or digest[1] != hashlib.new(hash_, info).digest():
            raise ValueError("another content than the signed one")
        first = inside(inside(inside(ids[2])[0][2])[0][2])
        named = SHA2[dotted(der(first.pop(0)[1])[0])] if first[0][0] == 0x30 else "sha256"
        for c in certs + self.certs:
            raw = c.public_bytes(Encoding.DER)
            if first[0][0] == 4 and hashlib.new(named, raw).digest() == first[0][1] and self.called(who, c):
                check_signature(c, dotted(der(signed_by[1])[0]), hash_, sig[1], message)
                return c
        raise ValueError("its certificate is not there")

    def called(self, who, cert):
        if who[0] == 0x80:
            e = extension(cert, x509.SubjectKeyIdentifier)
            return e is not None and e.value.digest == who[1]
        issuer, serial, *_ = inside(who[2])
        return issuer[2] == cert.issuer.public_bytes() and number(serial) == cert.serial_number

    def stated(self, info, cp):
        version, _, imprint, _, at, *rest = inside(info)
        algorithm, digest, *_ = inside(imprint[2])
        if number(version) != 1 or SHA2[dotted(der(algorithm[1])[0])] != "sha256" or digest[0] != 4 or digest[1] != cp.digest:
            raise ValueError("not of this checkpoint")
        m = re.fullmatch(r"(\d{14})(?:\.(\d{0,8}[1-9]))?Z", at[1].decode("ascii"))
        if at[0] != 0x18 or not m:
            raise ValueError("no time in UTC")
        when = datetime.datetime.strptime(m[1], "%Y%m%d%H%M%S").replace(tzinfo=datetime.timezone.utc)
        ns = int(when.timestamp()) * 10**9 + int((m[2] or "").ljust(9, "0"))
        off = 0
        for tag, content, _ in rest:
            if tag == 0x30:
                units = {2: (10**9, 86400), 0x80: (10**6, 999), 0x81: (10**3, 999)}
                for e in der(content):
                    unit, most = units.pop(e[0])
                    if not 0 <= number(e, e[0]) <= most:
                        raise ValueError("no accuracy of a clock")
                    off += unit * number(e, e[0])
            for x in der(content) if tag == 0xA1 else ():
                _, critical, *_ = inside(x[2])
                if critical[0] == 1 and critical[1] != b"\0":
                    raise ValueError("a critical extension that is not known")
        if ns < 0:
            raise ValueError("a time before 1970")
        return ns, -(-(ns + off) // 10**9)


# --- the zip ---------------------------------------------------------------------


def unzip(data):
    """Files stored one after the other with fixed headers, a directory, the end.

    What the directory must be follows from names, sizes and checksums, and so does
    each local header: rebuild and compare.
    """
    bad = Finding("malformed", "not a zip as Vault writes them")
    if len(data) > MAX_BUNDLE or len(data) < 22:
        raise bad
    count, dir_len, dir_at = struct.unpack("<HII", data[-12:-2])
    if count > 11 or dir_at + dir_len + 22 != len(data):
        raise bad
    files, at, want_dir, rest = [], 0, b"", data[dir_at:-22]
    while rest:
        if len(rest) < 46 or len(files) == count:
            raise bad
        crc, size = struct.unpack("<I4xI", rest[16:28])
        n = struct.unpack("<H", rest[28:30])[0]
        name = rest[46 : 46 + n]
        if n > 32 or len(name) != n:
            raise bad
        common = struct.pack("<HHHHHIIIHH", 20, 1 << 11, 0, 0, 33, crc, size, size, n, 0)
        want_dir += b"PK\x01\x02\x14\x00" + common + bytes(6) + struct.pack("<II", 0, at) + name
        local = b"PK\x03\x04" + common + name
        if data[at : at + len(local)] != local or at + len(local) + size > dir_at:
            raise bad
        files.append((name, data[at + len(local) : at + len(local) + size], crc))
        at += len(local) + size
        rest = rest[46 + n :]
    want_dir += b"PK\x05\x06" + bytes(4) + struct.pack("<HHIIH", len(files), len(files), len(want_dir), at, 0)
    if at != dir_at or data[dir_at:] != want_dir:
        raise bad
    return files


# --- leaves ---------------------------------------------------------------------


LEAF = ("any_args call_id class debits epoch fields grade idx intent_idx kind log phase policy prev_run_leaf proof "
        "reason refund run run_seq same_uid server tool ts v verdict").split()


def parse_leaf(raw):
    """Reads a leaf; its bytes are the RFC 8785 form of a fixed set of members."""
    if len(raw) > MAX_LEAF:
        raise ValueError("too long")
    l = strict(raw)
    if not isinstance(l, dict) or list(l) != LEAF or dump(l).encode() != raw:
        raise ValueError("not the members of a leaf in canonical form")
    idx = lambda v: type(v) is int and 0 <= v <= MAX_INT
    dig = lambda v: v is None or isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) and v != "0" * 64
    name = lambda v: isinstance(v, str) and len(v.encode()) <= 1024
    debits = l["debits"]
    ok = (
        all(type(l[m]) is bool for m in ("any_args", "refund", "same_uid"))
        and all(name(l[m]) for m in ("call_id", "log", "tool")) and l["log"]
        and l["class"] in FIELDS and l["phase"] in PHASES and l["proof"] in PROOFS and l["kind"] in KINDS
        and l["grade"] in GRADES and l["verdict"] in ("allow", "ask", "deny") and l["v"] == 1 and type(l["v"]) is int
        and all(idx(l[m]) for m in ("epoch", "idx", "run_seq"))
        and (l["intent_idx"] is None or idx(l["intent_idx"]) and l["intent_idx"] < l["idx"])
        and all(dig(l[m]) for m in ("policy", "prev_run_leaf", "server"))
        and isinstance(l["run"], str) and re.fullmatch("[a-zA-Z0-9_-]{0,64}", l["run"])
        and isinstance(l["reason"], str) and re.fullmatch("[a-z0-9_.]{0,64}", l["reason"])
        and l["run_seq"] <= l["idx"] and (l["run_seq"] == 0) == (l["prev_run_leaf"] is None)
        and isinstance(l["fields"], dict) and list(l["fields"]) == ["n", "root"]
        and type(l["fields"]["n"]) is int and l["fields"]["n"] == len(FIELDS[l["class"]])
        and l["fields"]["root"] and dig(l["fields"]["root"])
        and isinstance(debits, list) and len(debits) <= 128 and all(debit(d, name) for d in debits)
        and isinstance(l["ts"], str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", l["ts"], re.ASCII)
    )
    if not ok:
        raise ValueError("a member that a leaf cannot have")
    datetime.datetime.strptime(l["ts"], "%Y-%m-%dT%H:%M:%S.%fZ")
    return l


def debit(d, name):
    def whole(v):
        if type(v) is int:
            return abs(v) <= MAX_INT
        return (isinstance(v, str) and re.fullmatch(r"-?[1-9][0-9]*", v, re.ASCII)
                and MAX_INT < abs(int(v)) and -(2**63) <= int(v) < 2**63)

    return (isinstance(d, dict) and list(d) == ["amount", "counter", "kept", "limit", "unit"] and whole(d["amount"])
            and whole(d["limit"]) and type(d["kept"]) is bool and name(d["counter"]) and name(d["unit"]))


def opens(d, leaf):
    """Whether a disclosure opens a field of a leaf: commitment, path, root."""
    names = FIELDS[leaf["class"]]
    if d["field"] not in names:
        return False
    salt, name = b64(d["salt"]), d["field"].encode()
    if len(salt) != 32:
        return False
    message = b"vault/field/v1" + struct.pack(">Q", len(name)) + name
    if d["value"] is None:
        message += b"\xff" * 8
    else:
        value = b64(d["value"])
        message += struct.pack(">Q", len(value)) + value
    commitment = hmac.new(salt, message, hashlib.sha256).digest()
    return included(names.index(d["field"]), len(names), leaf_hash(commitment), path_of(d["path"]), bytes.fromhex(leaf["fields"]["root"]))


# --- what ran -------------------------------------------------------------------


def what_ran(scope, cp, run, leaves, hashes_, opened):
    """Derives the in-toto statement from the records and the opened fields."""
    first = leaves[0] if leaves else None
    task = first if first and scope == "run" and first["class"] == "task" and first["phase"] == "opened" else None
    closed = bool(leaves) and scope == "run" and leaves[-1]["class"] == "task" and leaves[-1]["phase"] == "closed"
    grades, phases, proofs, policies, tools, more = {}, {}, {}, [], {}, 0
    for l in leaves:
        if l["class"] != "call":
            continue
        full = False
        phases[l["phase"]] = phases.get(l["phase"], 0) + 1
        if l["policy"] is not None and l["policy"] not in policies:
            full = len(policies) == 256
            if not full:
                policies.append(l["policy"])
        if l["phase"] in ("intent", "refused"):
            proofs[l["proof"]] = proofs.get(l["proof"], 0) + 1
            if l["phase"] == "intent":
                grades[l["grade"]] = grades.get(l["grade"], 0) + 1
            key = (l["kind"], l["server"] or "0" * 64, l["tool"])
            if key not in tools and len(tools) == 256:
                full = True
            else:
                t = tools.setdefault(key, [0, 0])
                t[l["phase"] == "refused"] += 1
        more += full
    who = dict.fromkeys(("agent", "by", "principal", "purpose"))
    grants = None
    for d in opened:
        if task is None or d["idx"] != task["idx"] or d["value"] is None:
            continue
        value = b64(d["value"])
        if d["field"] in who and len(value) <= 1024:
            try:
                who[d["field"]] = value.decode()
            except UnicodeDecodeError:
                pass
        if d["field"] == "capability":
            try:
                view = json.loads(value)
                chain, links = view["digest"], [x["id"] for x in view["links"] or []]
                if len(links) <= 64:
                    grants = {"chain": digest_of(chain).hex(), "links": [digest_of(x).hex() for x in links]}
            except (ValueError, KeyError, TypeError):
                pass
    order = lambda d: {k: d[k] for k in sorted(d)}
    subject = [{"digest": {"sha256": cp.digest.hex()}, "name": cp.origin}]
    if scope == "run":
        subject.append({"digest": {"sha256": hashes_[-1].hex() if hashes_ else "0" * 64}, "name": "run " + run})
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "predicate": {
            "closed": closed, "first": first["idx"] if first else 0, "grades": order(grades), "grants": grants,
            "identities": who, "last": leaves[-1]["idx"] if leaves else 0, "log": cp.origin, "more": more,
            "opened": {"fields": task["fields"]["root"], "idx": task["idx"]} if task else None,
            "phases": order(phases), "policies": policies, "proofs": order(proofs), "records": len(leaves), "run": run,
            "same_uid": any(l["same_uid"] for l in leaves),
            "tools": [{"intents": n[0], "kind": k[0], "refused": n[1], "server": k[1], "tool": k[2]} for k, n in tools.items()],
        },
        "predicateType": "https://pilox.dev/vault/what-ran/v1",
        "subject": subject,
    }


# --- the bundle -----------------------------------------------------------------


class Verifier:
    def __init__(self, keys=(), since=None, run="", newer_than=None, policy=None, rekor=(), tsa=None):
        self.policy = Policy(policy) if policy is not None else None
        self.keys = [Key(k) for k in [*keys, *(self.policy.logs if self.policy else [])]]
        self.rekor = [RekorV1Key(k) if k.startswith("-----BEGIN") else Key(k) for k in rekor]
        self.tsa = TSARoots(tsa) if tsa is not None else None
        self.run, self.since, self.newer = run, None, newer_than
        if since is not None:
            try:
                self.since = open_checkpoint(since, self.keys)[0] if self.keys else Checkpoint(since[: since.index(b"\n\n") + 1])
            except (ValueError, WrongKey) as e:
                raise Refused(f"since: {e or 'not signed by the key'}") from None

    def verify(self, data):
        self.rep = r = {
            "problem": "ok", "exit": 0, "detail": "", "record": None, "log": "", "scope": "", "run": "", "size": 0, "records": 0,
            "disclosed": 0, "intact": False, "complete": False, "pinned": False, "key": "", "anchored_by": [], "anchored": 0,
            "before": None, "window": "", "ran": None,
        }
        found = None
        try:
            self.open(data)
            wrong = self.digests()
            try:
                self.contents()
            except Finding as f:
                found = f
            if wrong and (found is None or EXIT[found.problem] >= DOUBT_SIGNER):
                r["intact"], found = False, wrong
        except Finding as f:
            found = f
        if found:
            r.update(problem=found.problem, detail=found.detail, record=found.record)
        r["exit"] = EXIT[r["problem"]]
        return r

    def open(self, data):
        self.list = unzip(data)
        names = [n.decode("latin-1") for n, _, _ in self.list]
        self.files = {n: c for n, (_, c, _) in zip(names, self.list)}
        if not names or names[0] != "manifest.json":
            raise Finding("malformed", "no manifest.json")
        if len(self.files["manifest.json"]) > MAX_SMALL:
            raise Finding("malformed", "manifest.json: too long")
        try:
            m = line_of(self.files["manifest.json"], ["count", "files", "log", "run", "scope", "size", "type", "v"])
            index_of(m["count"]), index_of(m["size"])
            for f in m["files"]:
                if list(f) != ["name", "sha256", "size"]:
                    raise ValueError("files")
                digest_of(f["sha256"])
        except (ValueError, TypeError) as e:
            raise Finding("malformed", f"manifest.json: {e}") from None
        if m["type"] != "vault/bundle" or m["v"] != 1 or m["scope"] not in ("run", "log") or not isinstance(m["run"], str) or not re.fullmatch("[a-zA-Z0-9_-]{0,64}", m["run"]):
            raise Finding("malformed", "not a bundle of version 1")
        maybe = lambda n: [n] if n in names else []
        want = ["README.txt", "checkpoint", "keys.txt", "leaves.jsonl", "proofs.jsonl" if m["scope"] == "run" else "hashes.bin",
                *maybe("consistency.json"), "disclosures.jsonl", *maybe("anchors.jsonl"), *maybe("witnesses.txt"), "statement.json"]
        if names[1:] != want or [(f["name"], f["size"]) for f in m["files"]] != [(n, len(self.files[n])) for n in want]:
            raise Finding("malformed", "want exactly the files " + ", ".join(want))
        if sha256(self.files["README.txt"]).hex() != README_SHA256:
            raise Finding("malformed", "README.txt: not the one of version 1")
        for n in ("checkpoint", "keys.txt"):
            if len(self.files[n]) > MAX_SMALL:
                raise Finding("malformed", f"{n}: too long")
        self.man = m

    def digests(self):
        for i, (name, content, crc) in enumerate(self.list):
            if zlib.crc32(content) != crc or i and sha256(content).hex() != self.man["files"][i - 1]["sha256"]:
                return Finding("altered", f"file {name.decode()} is not the one that was exported")
        return None

    def lines(self, name):
        """Yields the lines; one without an end or too long is a finding when it is reached."""
        text = self.files[name]
        at = 0
        while at < len(text):
            end = text.find(b"\n", at)
            if end < 0 or end - at > MAX_LINE:
                raise Finding("malformed", f"file {name}: a line without an end")
            yield text[at:end]
            at = end + 1

    def signer(self):
        """Sets the checkpoint; returns what is wrong with its key, if it can be read."""
        note = self.files["checkpoint"]
        answer = Finding("unpinned", "no key given: anyone could have made it; give the ledger's key with --key")
        if self.keys:
            try:
                self.cp, self.key = open_checkpoint(note, self.keys)
                self.rep["pinned"] = True
                return None
            except WrongKey:
                answer = Finding("wrong_key", "the checkpoint is signed, and not by the key you pinned")
            except ValueError as e:
                raise Finding("altered", f"checkpoint: {e}") from None
        try:
            hints = self.files["keys.txt"].decode().removesuffix("\n").split("\n")
            if len(hints) > 16:
                raise Finding("malformed", "keys.txt: more than 16 keys")
            self.cp, self.key = open_checkpoint(note, [Key(k) for k in hints])
        except (ValueError, WrongKey, Refused) as e:
            raise Finding("altered", f"checkpoint: {e}") from None
        return answer

    def contents(self):
        r, m = self.rep, self.man
        signer = self.signer()
        r.update(log=self.cp.origin, scope=m["scope"], run=m["run"], size=self.cp.size, key=self.key.text)
        if m["log"] != self.cp.origin or m["size"] != self.cp.size:
            raise Finding("malformed", "manifest.json: not of this checkpoint")
        self.leaves, self.hashes, self.opened, self.bad = [], [], [], None
        self.pending = self.disclosures()
        self.next = next(self.pending, None)
        later = None
        try:
            self.run_scope() if m["scope"] == "run" else self.log_scope()
        except Finding as f:
            if EXIT[f.problem] < DOUBT_SIGNER:
                raise
            later = f
        if self.bad:
            raise self.bad
        if self.next:
            raise Finding("malformed", f"disclosures.jsonl: record {self.next['idx']} is not in the bundle or out of order")
        r["intact"] = True
        if signer and signer.problem == "wrong_key":
            raise signer
        try:
            self.statement()
        except Finding:
            r["intact"] = r["complete"] = False
            raise
        self.history()
        self.anchors()
        self.new_enough()
        if self.run and m["scope"] == "run" and m["run"] != self.run:
            raise Finding("other_run", f"this is run {m['run']}")
        if later or signer:
            raise later or signer

    def disclosures(self):
        for raw in self.lines("disclosures.jsonl"):
            try:
                d = line_of(raw, ["idx", "field", "value", "salt", "path"])
                index_of(d["idx"]), path_of(d["path"])
                if d["value"] is not None:
                    b64(d["value"])
                if not isinstance(d["field"], str):
                    raise ValueError("field")
                b64(d["salt"])
            except (ValueError, TypeError) as e:
                raise Finding("malformed", f"disclosures.jsonl: {e}") from None
            yield d

    def accept(self, leaf, h):
        """Takes a record that is in its place, and the fields opened of it."""
        self.leaves.append(leaf)
        self.hashes.append(h)
        while self.next and self.next["idx"] == leaf["idx"]:
            d = self.next
            if opens(d, leaf):
                self.opened.append(d)
                self.rep["disclosed"] += 1
            elif self.bad is None:
                self.bad = Finding("disclosure", f"field {d['field']}: not the value that was recorded", leaf["idx"])
            self.next = next(self.pending, None)
            if self.next and self.next["idx"] == leaf["idx"] and self.next["field"].encode() <= d["field"].encode():
                raise Finding("malformed", f"disclosures.jsonl: fields of record {leaf['idx']} out of order")
        self.rep["records"] += 1

    # One run.

    def proof_of(self, raw):
        try:
            p = line_of(raw, ["idx", "path"])
            return index_of(p["idx"]), path_of(p["path"])
        except (ValueError, TypeError) as e:
            raise Finding("malformed", f"proofs.jsonl: {e}") from None

    def under(self, h, proof):
        return included(proof[0], self.cp.size, h, proof[1], self.cp.root)

    def run_scope(self):
        leaves, proofs = self.lines("leaves.jsonl"), self.lines("proofs.jsonl")
        prev, closed, seq = None, False, 0
        for raw in leaves:
            line = next(proofs, None)
            if line is None:
                raise Finding("malformed", "proofs.jsonl: a record has no proof")
            proof, h = self.proof_of(line), leaf_hash(raw)
            leaf, why = try_leaf(raw)
            at = proof[0]
            if not self.under(h, proof):
                # A sound record in another's place is told from one that is altered.
                if leaf and leaf["idx"] != at and self.belongs(leaf, h):
                    raise self.misplaced(leaves, leaf, seq, "run_seq", leaf["idx"], leaf["idx"])
                raise Finding("altered", "the record is not the one under the checkpoint", at)
            if leaf is None:
                raise Finding("malformed", why, at)
            if leaf["log"] != self.cp.origin or leaf["idx"] != at or leaf["run"] != self.man["run"]:
                raise Finding("malformed", "the record is of another ledger, place or run", at)
            if leaf["run_seq"] != seq:
                raise self.misplaced(leaves, leaf, seq, "run_seq", at, at)
            if leaf["prev_run_leaf"] != prev:
                raise Finding("altered", "it does not follow the record before it", at)
            if closed:
                raise Finding("malformed", "a record after the run was closed", at)
            prev, seq = h.hex(), seq + 1
            closed = leaf["class"] == "task" and leaf["phase"] == "closed"
            self.accept(leaf, h)
        if seq != self.man["count"] or seq == 0:
            raise Finding("truncated", f"{seq} records, the manifest says {self.man['count']}")
        if next(proofs, None) is not None:
            raise Finding("truncated", f"there are proofs of more records than the {seq} that are there")
        if not closed:
            raise Finding("incomplete", f"run {self.man['run']} is open: later records may exist")
        self.rep["complete"] = True

    def belongs(self, leaf, h):
        try:
            return any(p[0] == leaf["idx"] and self.under(h, p) for p in map(self.proof_of, self.lines("proofs.jsonl")))
        except Finding:
            return False

    def misplaced(self, rest, leaf, place, member, if_dropped, if_swapped):
        """Says whether what belongs at place comes later or is not there."""
        if leaf[member] > place:
            for raw in rest:
                other, _ = try_leaf(raw)
                if other and other[member] == place:
                    break
            else:
                return Finding("dropped", f"number {place} is missing before number {leaf[member]}", if_dropped)
        return Finding("swapped", f"number {leaf[member]} stands where number {place} belongs", if_swapped)

    # A whole ledger.

    def log_scope(self):
        raw_hashes = self.files["hashes.bin"]
        if len(raw_hashes) % 32 or self.man["run"]:
            raise Finding("malformed", "hashes.bin: not a list of hashes")
        want = [raw_hashes[i : i + 32] for i in range(0, len(raw_hashes), 32)]
        n, cp = len(want), self.cp
        if n != cp.size or root_of(want) != cp.root:
            self.structure(n)
        leaves, runs = self.lines("leaves.jsonl"), {}
        for i in range(n):
            raw = next(leaves, None)
            if raw is None:
                raise Finding("truncated", f"{i} records of {n}", i)
            h = leaf_hash(raw)
            leaf, why = try_leaf(raw)
            if h != want[i]:
                if leaf and leaf["idx"] != i and leaf["idx"] < n and want[leaf["idx"]] == h:
                    raise self.misplaced(leaves, leaf, i, "idx", i, i)
                raise Finding("altered", "the record is not the one under the checkpoint", i)
            if leaf is None:
                raise Finding("malformed", why, i)
            if leaf["log"] != cp.origin or leaf["idx"] != i:
                raise Finding("malformed", "the record is of another ledger or place", i)
            if not follows(runs, leaf, h):
                raise Finding("altered", "it does not follow the record before it in its run", i)
            self.accept(leaf, h)
        if next(leaves, None) is not None or self.man["count"] != n:
            raise Finding("malformed", "leaves.jsonl: more records than the checkpoint has")
        self.rep["complete"] = True
        if self.run:
            self.rep["run"] = self.run
            if self.run not in runs:
                self.rep["complete"] = False
                raise Finding("other_run", f"no record of run {self.run}")
            if not runs[self.run][2]:
                self.rep["complete"] = False
                raise Finding("incomplete", f"run {self.run} is open")

    def structure(self, n):
        """The hashes are not those under the checkpoint: look for what is wrong."""
        runs, last, i = {}, {}, 0
        leaves = self.lines("leaves.jsonl")
        for raw in leaves:
            leaf, why = try_leaf(raw)
            if leaf is None:
                raise Finding("altered", why, i)
            if leaf["idx"] != i:
                raise self.misplaced(leaves, leaf, i, "idx", i, i)
            if not follows(runs, leaf, leaf_hash(raw)):
                raise Finding("altered", f"the next record of its run, {i}, does not follow it", last.get(leaf["run"], 0))
            last[leaf["run"]] = i
            i += 1
        if i < self.cp.size:
            raise Finding("truncated", f"{i} records of {self.cp.size}", i)
        raise Finding("altered", f"the {n} leaf hashes are not those under the checkpoint")

    # What the verifier holds, and others.

    def statement(self):
        raw = self.files["statement.json"]
        if len(raw) > MAX_STATEMENT:
            raise Finding("malformed", "statement.json: too long")
        try:
            e = line_of(raw, ["payload", "payloadType", "signatures"])
            payload = b64(e["payload"])
            sigs = [(s["keyid"], b64(s["sig"])) for s in e["signatures"] if list(s) == ["keyid", "sig"] or refuse(s)]
        except (ValueError, TypeError, KeyError) as err:
            raise Finding("malformed", f"statement.json: {err}") from None
        pae = b"DSSEv1 %d %s %d " % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload)) + payload
        keyid = f"{self.key.name}+{self.key.hash.hex()}"
        signed = len(sigs) == 1 and sigs[0][0] == keyid and self.key.signed(pae, sigs[0][1])
        want = what_ran(self.man["scope"], self.cp, self.man["run"], self.leaves, self.hashes, self.opened)
        if e["payloadType"] != PAYLOAD_TYPE or payload != go_dump(want).encode() + b"\n":
            try:
                told = json.loads(payload)["predicate"] if signed else {}
                if told.get("run") == self.man["run"] and told.get("records", 0) > len(self.leaves):
                    raise Finding("truncated", f"{len(self.leaves)} records, the ledger exported {told['records']}")
            except (ValueError, TypeError, KeyError, AttributeError):
                pass
            raise Finding("statement", "the records say otherwise than statement.json")
        if not signed:
            raise Finding("statement", "statement.json: not signed by the key of the checkpoint")
        self.rep["ran"] = want["predicate"]

    def history(self):
        old, cp = self.since, self.cp
        if old is None:
            return
        if old.origin != cp.origin:
            raise Finding("unrelated", f"the checkpoint you hold is of another ledger, {old.origin}")
        if old.size > cp.size:
            raise Finding("rollback", f"you hold a checkpoint of {old.size} records, this one has {cp.size}")
        if old.size == cp.size:
            if old.root != cp.root:
                raise Finding("split_view", "you hold another checkpoint of the same size")
            return
        if old.size == 0:
            return
        if self.man["scope"] == "log":
            if root_of(self.hashes[: old.size]) != old.root:
                raise Finding("split_view", f"its first {old.size} records are not the ones of the checkpoint you hold")
            return
        if "consistency.json" not in self.files:
            raise Finding("unrelated", f"no consistency proof inside; export again with --since {old.size}")
        try:
            c = line_of(self.files["consistency.json"], ["from", "path"])
            start, path = index_of(c["from"]), path_of(c["path"])
        except (ValueError, TypeError) as e:
            raise Finding("malformed", f"consistency.json: {e}") from None
        if start != old.size:
            raise Finding("unrelated", f"the consistency proof starts at {start}; export again with --since {old.size}")
        if not continues(old, cp, path):
            raise Finding("split_view", "it does not continue the checkpoint you hold")

    def anchors(self):
        cp, r = self.cp, self.rep
        listed = [{"checkpoint": self.files["checkpoint"].decode(), "kind": "witness", "path": [], "proof": None}]
        for raw in self.lines("anchors.jsonl") if "anchors.jsonl" in self.files else ():
            try:
                a = line_of(raw, ["checkpoint", "kind", "path", "proof"])
                path_of(a["path"])
                if a["kind"] not in ("witness", "rekor", "rekor_v1", "tsa") or (a["kind"] == "witness") != (a["proof"] is None) or len(listed) > 64:
                    raise ValueError("want at most 64 anchors of a known kind")
            except (ValueError, TypeError) as e:
                raise Finding("malformed", f"anchors.jsonl: {e}") from None
            listed.append(a)
        good = []
        self.newest = 0
        last = self.leaves[-1]["idx"] if self.leaves else 0
        for a in listed:
            note, path = a["checkpoint"].encode(), path_of(a["path"])
            try:
                old, _ = open_checkpoint(note, [self.key])
            except (ValueError, WrongKey):
                raise Finding("altered", "anchors.jsonl: a checkpoint that this ledger has not signed") from None
            if not (old == cp and not path):
                if old.size == 0 or old.size > cp.size or not continues(old, cp, path):
                    raise Finding("split_view", f"it does not continue the anchored checkpoint of {old.size} records")
            if a["kind"] == "witness" and self.policy:
                done = self.policy.cosigned(note)
                if done:
                    good.append(("witness", "witness " + ", ".join(done[0]), old.size, done[1]))
            if a["kind"] == "rekor":
                for k in self.rekor:
                    if isinstance(k, Key) and in_rekor(b64(a["proof"]), old, k):
                        good.append(("rekor", "rekor " + k.name, old.size, 0))
                        break
            if a["kind"] == "rekor_v1":
                for k in self.rekor:
                    done = isinstance(k, RekorV1Key) and k.holds(b64(a["proof"]), old)
                    if done:
                        good.append(("rekor", "rekor " + done[0], old.size, done[1]))
                        break
            if a["kind"] == "tsa" and self.tsa:
                done = self.tsa.timestamp(b64(a["proof"]), old)
                if done:
                    good.append(("tsa", "tsa " + done[0], old.size, done[1]))
        before = 0
        for kind, by, size, at in good:
            text = f"{by} at {size}"
            if text not in r["anchored_by"]:
                r["anchored_by"].append(text)
            r["anchored"] = max(r["anchored"], size)
            if at and size > last and (not before or at < before):
                before = at
            if size == cp.size and kind == "witness":  # an authority stamps what is old, too
                self.newest = max(self.newest, at)
        if before:
            r["before"] = stamp(before)
        r["window"] = f"{cp.size - r['anchored']} of {cp.size} records that nobody outside has vouched for"
        kinds = {k for k, *_ in good}
        if self.policy and "witness" not in kinds:
            raise Finding("unwitnessed", "the quorum of your witness policy has signed no checkpoint of it")
        if self.rekor and "rekor" not in kinds:
            raise Finding("unanchored", "no entry of the Rekor log whose key you gave")
        if self.tsa and "tsa" not in kinds:
            raise Finding("unstamped", "no timestamp that leads to the TSA roots you gave")

    def new_enough(self):
        if self.newer is None:
            return
        if re.fullmatch("[0-9]+", self.newer):
            if int(self.newer) and self.cp.size <= int(self.newer):
                raise Finding("stale", f"its checkpoint has {self.cp.size} records, you asked for more than {self.newer}")
            return
        try:
            asked = datetime.datetime.fromisoformat(self.newer)
            asked = asked.timestamp() * 1_000_000 if asked.tzinfo else refuse(asked)
        except ValueError:
            raise Refused(f"newer than {self.newer!r}: want a time or a number of records") from None
        at = self.newest * 1_000_000
        if not at and self.leaves:
            at = datetime.datetime.fromisoformat(self.leaves[-1]["ts"]).timestamp() * 1_000_000
        if not at > asked:
            raise Finding("stale", f"it is not newer than {self.newer}")


def try_leaf(raw):
    try:
        return parse_leaf(raw), ""
    except (ValueError, RecursionError) as e:
        return None, str(e)


def follows(runs, leaf, h):
    seq, prev, closed = runs.get(leaf["run"], (0, None, False))
    if closed or leaf["run_seq"] != seq or leaf["prev_run_leaf"] != prev:
        return False
    runs[leaf["run"]] = (seq + 1, h.hex(), leaf["class"] == "task" and leaf["phase"] == "closed")
    return True


def stamp(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- the command ----------------------------------------------------------------


def tell(r):
    # What somebody else wrote must not drive the terminal of who reads it.
    safe = lambda v: "".join(c if c.isprintable() else "\ufffd" for c in v) if isinstance(v, str) else v
    r = {k: safe(v) for k, v in r.items()}
    yes = lambda ok: "yes" if ok else "no"
    head = "OK" if r["problem"] == "ok" else f"{r['problem'].upper()} (exit {r['exit']})"
    if r["record"] is not None:
        head += f" at record {r['record']}"
    print(head + (f": {r['detail']}" if r["detail"] else ""))
    if not r["log"]:
        return
    print(f"  what       {'run ' + r['run'] if r['scope'] == 'run' else 'the whole ledger'} of {r['log']}, {r['records']} records, checkpoint {r['size']}")
    print(f"  intact     {yes(r['intact'])}")
    print(f"  complete   {yes(r['complete']) if r['intact'] else 'not known'}")
    print(f"  signed by  {'the pinned key ' if r['pinned'] else 'no key you pinned; inside the bundle: '}{r['key']}")
    print(f"  anchored   {'by ' + '; '.join(r['anchored_by']) if r['anchored_by'] else 'not anchored: nobody but the ledger vouches for it'}")
    print(f"  existed    {'before ' + r['before'] if r['before'] else 'not proven by anyone outside'}")
    print(f"  window     {r['window']}")
    for t in (r["ran"] or {}).get("tools", []):
        print(f"  ran        {t['kind']} {json.dumps(t['tool'])}: {t['intents']} allowed to run, {t['refused']} refused")


def table(directory):
    with open(f"{directory}/table.json", encoding="utf-8") as f:
        rows = json.load(f)
    failed = 0
    for row in rows:
        with open(f"{directory}/{row['bundle']}", "rb") as f:
            data = f.read()
        enc = lambda m: row[m].encode() if m in row else None
        r = Verifier(row["keys"] or (), enc("since"), row.get("run", ""), row.get("newer_than"), enc("policy"), row.get("rekor", ()), enc("tsa")).verify(data)
        members = ["problem", "exit", "record", "intact", "complete", "pinned"]
        if row["exit"] == 0:
            members += ["anchored_by", "disclosed"]
            if r["before"] != row.get("before"):
                members.append("before")
        wrong = [f"{m}: {r[m]!r}, want {row.get(m)!r}" for m in members if r[m] != row.get(m)]
        if wrong:
            failed += 1
            print(f"{row['bundle']} {row['name']}: {'; '.join(wrong)} ({r['detail']})")
    print(f"{len(rows)} rows, {failed} wrong")
    return 1 if failed or not rows else 0


def main():
    p = argparse.ArgumentParser(description="Verify a Vault evidence bundle offline.")
    p.add_argument("bundle", nargs="?")
    p.add_argument("--key", action="append", default=[], help="verifier key of the ledger, NAME+HASH+KEY, or @FILE")
    p.add_argument("--since", help="file with a checkpoint you already hold")
    p.add_argument("--run", default="", help="the run that you asked for")
    p.add_argument("--newer-than", help="time, or number of records, that it must be newer than")
    p.add_argument("--policy", help="file with your witness policy")
    p.add_argument("--rekor-key", action="append", default=[], help="verifier key of a Rekor v2 log, or @FILE, which can be the PEM of a v1 log")
    p.add_argument("--tsa-roots", help="file with root certificates of time-stamp authorities, PEM")
    p.add_argument("--json", action="store_true")
    p.add_argument("--table", metavar="DIR", help="run the table of the Go tests")
    a = p.parse_args()
    if a.table:
        return table(a.table)
    if not a.bundle:
        p.error("say which: BUNDLE")

    def read(path, most):
        with open(path, "rb") as f:
            b = f.read(most + 1)
        if len(b) > most:
            raise OSError(f"{path}: more than {most} bytes")
        return b

    try:
        keys = lambda l: [read(k[1:], 4096).decode().strip() if k.startswith("@") else k for k in l]
        v = Verifier(keys(a.key), read(a.since, MAX_NOTE) if a.since else None, a.run, a.newer_than,
                     read(a.policy, MAX_SMALL) if a.policy else None, keys(a.rekor_key), read(a.tsa_roots, MAX_SMALL) if a.tsa_roots else None)
        r = v.verify(read(a.bundle, MAX_BUNDLE))
    except (OSError, Refused, UnicodeDecodeError, binascii.Error) as e:
        print(f"vault_verify: {e}", file=sys.stderr)
        return 1
    print(json.dumps(r)) if a.json else tell(r)
    return r["exit"]


if __name__ == "__main__":
    sys.exit(main())
