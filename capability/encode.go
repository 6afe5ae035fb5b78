package capability

import (
	"bytes"
	"errors"
	"fmt"

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

// targetKey is a vault.Target as a map key: [server id, name].
type targetKey struct {
	_      struct{} `cbor:",toarray"`
	Server vault.ServerID
	Name   string
}

// MarshalCBOR returns {kind: {[server id, name]: rule}}.
func (g Grants) MarshalCBOR() ([]byte, error) {
	out := make(map[vault.Kind]map[targetKey]Rule, len(g))
	for kind, targets := range g {
		out[kind] = make(map[targetKey]Rule, len(targets))
		for t, r := range targets {
			out[kind][targetKey{Server: t.Server, Name: t.Name}] = r
		}
	}
	return det.enc.Marshal(out)
}

// UnmarshalCBOR parses the form of [Grants.MarshalCBOR].
func (g *Grants) UnmarshalCBOR(b []byte) error {
	var in map[vault.Kind]map[targetKey]Rule
	if err := det.dec.Unmarshal(b, &in); err != nil {
		return err
	}
	if in == nil {
		return errors.New("grants: null")
	}
	*g = make(Grants, len(in))
	for kind, targets := range in {
		if targets == nil {
			return fmt.Errorf("grants of kind %q: null", kind)
		}
		(*g)[kind] = make(map[vault.Target]Rule, len(targets))
		for t, r := range targets {
			(*g)[kind][vault.Target{Server: t.Server, Name: t.Name}] = r
		}
	}
	return nil
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
	majorUint  = 0
	majorBytes = 2
	majorText  = 3
	majorArray = 4
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
