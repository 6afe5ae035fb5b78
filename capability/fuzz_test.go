package capability

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/pilox/vault"
)

// seeds returns chains of every shape that the vectors have.
func seeds(f *testing.F) [][]byte {
	var list [][]byte
	for _, v := range makeVectors(f).Accept {
		c, err := ParseText(v.Token)
		if err != nil {
			f.Fatal(err)
		}
		list = append(list, c.raw)
	}
	return list
}

// FuzzParse holds that a chain that parses is written in the only way there is.
func FuzzParse(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Add([]byte{0x81, 0x84, 0x43, 0xa1, 1, 0x32, 0xa0, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := Parse(raw)
		if err != nil {
			return
		}
		again := appendHead(nil, majorArray, uint64(len(c.links)))
		for i := range c.links {
			l := &c.links[i]
			payload, err := det.enc.Marshal(&l.Link)
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, majorArray<<5|4)
			again = appendBytes(again, appendHeader(nil, l.alg, l.kid, typLink))
			again = appendBytes(append(again, 0xa0), payload)
			again = appendBytes(again, l.signature)
		}
		if !bytes.Equal(again, raw) {
			t.Fatalf("parsed %x\nwrites %x", raw, again)
		}
		if _, err := json.Marshal(Inspect(c)); err != nil {
			t.Fatal(err)
		}
		if text, err := DecodeText(c.Text()); err != nil || !bytes.Equal(text, raw) {
			t.Fatalf("text form: %v", err)
		}
	})
}

// FuzzLink reaches the decoder behind the signature.
func FuzzLink(f *testing.F) {
	for _, s := range seeds(f) {
		c, err := Parse(s)
		if err != nil {
			f.Fatal(err)
		}
		for _, l := range c.links {
			f.Add(l.payload)
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		var c Chain
		m := message{protected: appendHeader(nil, algEd25519, []byte("k1"), typLink), payload: payload, alg: algEd25519, kid: []byte("k1")}
		if err := c.decode(m); err != nil {
			return
		}
		again, err := det.enc.Marshal(&c.links[0].Link)
		if err != nil || !bytes.Equal(again, payload) {
			t.Fatalf("parsed %x\nwrites %x, %v", payload, again, err)
		}
		// Whatever was decoded compiles for every target that it names.
		a := &authority{chain: c, issuer: &RootIssuer{Tenant: c.links[0].Tenant}}
		if err := a.bind(&trust{audience: c.links[0].Audience}); err != nil {
			return
		}
		for kind, targets := range c.links[0].Grants {
			for target := range targets {
				a.authorise(&vault.Call{Kind: kind, Target: target, Args: vault.MustArgs(`{"path":"/a","n":[1,"x",{}]}`)}, testStart)
			}
		}
	})
}

// FuzzOpenSession is the first message of a caller that nobody knows yet.
func FuzzOpenSession(f *testing.F) {
	w := newWorld(f)
	v := w.verifier()
	s := &Session{Chain: w.mint(w.root(Rule{Any: true})), Key: w.agent, Gateway: v.SessionKey()}
	request, err := s.Open()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request)
	f.Add([]byte{0x82, 0x40, 0x84, 0x40, 0xa0, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, b []byte) {
		answer, err := v.OpenSession(t.Context(), b, vault.Binding{})
		if (answer == nil) != (err != nil) || code(err) == vault.CodeInternal {
			t.Fatalf("answer %x, %v", answer, err)
		}
		// The limit on sessions is not what is tested here.
		clear(v.sessions)
	})
}

// FuzzFinish is what a client takes from a gateway.
func FuzzFinish(f *testing.F) {
	w := newWorld(f)
	s := &Session{Chain: w.mint(w.root(Rule{Any: true})), Key: w.agent, Gateway: keyOf(f, w.session)}
	if _, err := s.Open(); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0x84, 0x40, 0xa0, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := s.Finish(b); err == nil {
			t.Fatal("finished with an answer that nobody signed")
		}
	})
}

// FuzzText is the text form, as it stands in a header or on a command line.
func FuzzText(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(textPrefix + string(s))
	}
	f.Add("vc1.AA")
	f.Fuzz(func(t *testing.T, s string) {
		raw, err := DecodeText(s)
		if err == nil && (Chain{raw: raw}).Text() != s {
			t.Fatalf("%q is a second way to write %q", s, Chain{raw: raw}.Text())
		}
	})
}

// FuzzConstraints feeds values to every matcher that parses.
func FuzzConstraints(f *testing.F) {
	var tests []test
	for _, c := range []Constraint{
		{SubPath: ptr("/srv")},
		{EmailDomain: []string{"a.example"}},
		{HostSuffix: []string{"a.example"}},
		{URL: &URL{Hosts: []string{"a.example", ".b.example", "127.0.0.1"}, Path: "/v1"}},
		{Glob: ptr("a*/**?")},
		{Decimal: &DecimalRange{Min: -1e9, Max: 1e9}},
		{Int: &IntRange{Min: -5, Max: 5}},
		{CIDR: []string{"10.0.0.0/8", "fd00::/8"}},
		{PublicURL: &PublicURL{Ports: []int{443, 8443}}},
		{Length: &IntRange{Min: 1, Max: 5}},
	} {
		compiled, _, err := c.compile(nil)
		if err != nil {
			f.Fatal(err)
		}
		tests = append(tests, compiled)
	}
	f.Add("/srv/../x")
	f.Add("a@a.example")
	f.Add("https://a.example:443/v1/%2e")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := vault.ParseValue(vault.AppendQuoted(nil, s))
		if err != nil {
			return
		}
		for _, pass := range tests {
			pass(a.Root())
		}
		if n, err := ParseDecimal(s); err == nil {
			if again, err := ParseDecimal(n.String()); err != nil || again != n {
				t.Fatalf("%q is %v", s, n)
			}
		}
	})
}
