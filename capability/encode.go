package capability

import (
	"bytes"
	"errors"
	"slices"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"github.com/pilox/vault"
)

// A codec is the deterministic encoder and the strict decoder. Both are immutable.
type codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

var det = newCodec()

func newCodec() codec {
	opts := cbor.CoreDetEncOptions()
	opts.TagsMd = cbor.TagsForbidden
	enc, err := opts.EncMode()
	if err != nil {
		panic(err) // the options above are constant
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		IntDec:            cbor.IntDecConvertSignedOrFail,
		UTF8:              cbor.UTF8RejectInvalid,
		MaxNestedLevels:   4 * maxNesting,
		MaxArrayElements:  maxSet,
		MaxMapPairs:       maxSet,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return codec{enc, dec}
}

var errNotDeterministic = errors.New("encoding is not the deterministic one")

// decode parses b into v, which must encode to exactly b again. That refuses
// every second way to write the same thing, also those that the decoder is
// lenient about.
func (c codec) decode(b []byte, v any) error {
	if err := c.dec.Unmarshal(b, v); err != nil {
		return err
	}
	again, err := c.enc.Marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, again) {
		return errNotDeterministic
	}
	return nil
}

// MarshalCBOR returns {kind: {[server id, name]: rule}}. It is written by hand, as
// its opposite is, because a root is mostly grants.
func (g Grants) MarshalCBOR() ([]byte, error) {
	b := appendHead(make([]byte, 0, 512), majorMap, uint64(len(g)))
	return appendSorted(b, g, appendKind, func(b []byte, targets map[vault.Target]Rule) ([]byte, error) {
		b = appendHead(b, majorMap, uint64(len(targets)))
		return appendSorted(b, targets, appendTarget, func(b []byte, r Rule) ([]byte, error) {
			rule, err := det.enc.Marshal(&r)
			return append(b, rule...), err
		})
	})
}

func appendKind(b []byte, k vault.Kind) []byte { return appendText(b, string(k)) }

func appendTarget(b []byte, t vault.Target) []byte {
	return appendText(appendBytes(appendHead(b, majorArray, 2), t.Server[:]), t.Name)
}

// appendSorted appends the entries of m in the order of their encoded keys (RFC 8949,
// section 4.2.1).
func appendSorted[K comparable, V any](b []byte, m map[K]V, key func([]byte, K) []byte, value func([]byte, V) ([]byte, error)) ([]byte, error) {
	type entry struct {
		key   []byte
		value V
	}
	entries := make([]entry, 0, len(m))
	for k, v := range m {
		entries = append(entries, entry{key(nil, k), v})
	}
	slices.SortFunc(entries, func(a, b entry) int { return bytes.Compare(a.key, b.key) })
	for _, e := range entries {
		var err error
		if b, err = value(append(b, e.key...), e.value); err != nil {
			return nil, err
		}
	}
	return b, nil
}

var errGrants = errors.New("grants: want {kind: {[server id, name]: rule}}")

// UnmarshalCBOR parses the form of [Grants.MarshalCBOR]. Whether keys are sorted and
// single is for whoever encodes again and compares.
func (g *Grants) UnmarshalCBOR(b []byte) error {
	n, b, ok := readMap(b)
	if !ok {
		return errGrants
	}
	*g = make(Grants)
	for range n {
		kind, rest, ok := readText(b)
		if !ok {
			return errGrants
		}
		targets, rest, err := readTargets(rest)
		if err != nil {
			return err
		}
		(*g)[vault.Kind(kind)], b = targets, rest
	}
	if len(b) != 0 {
		return errGrants
	}
	return nil
}

// readTargets reads the map below a kind.
func readTargets(b []byte) (map[vault.Target]Rule, []byte, error) {
	n, b, ok := readMap(b)
	if !ok {
		return nil, nil, errGrants
	}
	targets := make(map[vault.Target]Rule)
	for range n {
		major, two, rest, ok := readHead(b)
		if !ok || major != majorArray || two != 2 {
			return nil, nil, errGrants
		}
		server, rest, ok := readBytes(rest)
		if !ok || len(server) != len(vault.ServerID{}) {
			return nil, nil, errGrants
		}
		name, rest, ok := readText(rest)
		if !ok {
			return nil, nil, errGrants
		}
		var r Rule
		var err error
		if b, err = det.dec.UnmarshalFirst(rest, &r); err != nil {
			return nil, nil, err
		}
		targets[vault.Target{Server: vault.ServerID(server), Name: name}] = r
	}
	return targets, b, nil
}

// appendHead appends the head of a CBOR item in its shortest form.
func appendHead(b []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return append(b, major|25, byte(n>>8), byte(n))
	case n < 1<<32:
		return append(b, major|26, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	b = append(b, major|27)
	for shift := 56; shift >= 0; shift -= 8 {
		b = append(b, byte(n>>shift))
	}
	return b
}

const (
	majorUint     = 0
	majorNegative = 1
	majorBytes    = 2
	majorText     = 3
	majorArray    = 4
	majorMap      = 5

	simpleFalse = 0xf4
	simpleTrue  = 0xf5
)

func appendBytes(b, s []byte) []byte { return append(appendHead(b, majorBytes, uint64(len(s))), s...) }

func appendText(b []byte, s string) []byte {
	return append(appendHead(b, majorText, uint64(len(s))), s...)
}

// readHead reads a head in its shortest form and nothing else. Frames are read by
// hand so that garbage costs nanoseconds.
func readHead(b []byte) (major byte, n uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, 0, nil, false
	}
	major, low := b[0]>>5, b[0]&31
	b = b[1:]
	if low < 24 {
		return major, uint64(low), b, true
	}
	size := 1 << (low - 24)
	if low > 27 || len(b) < size {
		return 0, 0, nil, false
	}
	for _, c := range b[:size] {
		n = n<<8 | uint64(c)
	}
	if size == 1 && n < 24 || size > 1 && n < 1<<(4*size) {
		return 0, 0, nil, false // fits a shorter head
	}
	return major, n, b[size:], true
}

// readBytes reads a byte string.
func readBytes(b []byte) (s, rest []byte, ok bool) {
	major, n, b, ok := readHead(b)
	if !ok || major != majorBytes || n > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

// readText reads a text string.
func readText(b []byte) (s string, rest []byte, ok bool) {
	major, n, b, ok := readHead(b)
	if !ok || major != majorText || n > uint64(len(b)) || !utf8.Valid(b[:n]) {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}

// readMap reads the head of a map with at most maxSet entries.
func readMap(b []byte) (n int, rest []byte, ok bool) {
	major, size, b, ok := readHead(b)
	if !ok || major != majorMap || size > maxSet {
		return 0, nil, false
	}
	return int(size), b, true
}
