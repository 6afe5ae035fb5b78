package vault

import (
	"slices"
	"unicode/utf8"
)

// emit appends the canonical form of input node i to p.out and its index to d.
func (p *parser) emit(d *doc, i uint32) {
	in := &p.nodes[i]
	at := len(d.nodes)
	d.nodes = append(d.nodes, node{kind: in.kind, start: uint32(len(p.out)), children: in.children})
	switch in.kind {
	case Object:
		p.emitObject(d, i)
	case Array:
		p.out = append(p.out, '[')
		child := i + 1
		for n := range in.children {
			if n > 0 {
				p.out = append(p.out, ',')
			}
			p.emit(d, child)
			child = p.nodes[child].next
		}
		p.out = append(p.out, ']')
	case String:
		p.out = appendQuoted(p.out, in.text)
	default:
		p.out = append(p.out, in.text...)
	}
	d.nodes[at].end = uint32(len(p.out))
	d.nodes[at].next = uint32(len(d.nodes))
}

func (p *parser) emitObject(d *doc, i uint32) {
	base := len(p.order)
	child := i + 1
	for range p.nodes[i].children {
		p.order = append(p.order, child)
		child = p.nodes[child].next
	}
	members := p.order[base:]
	slices.SortFunc(members, func(a, b uint32) int { return compareUTF16(p.nodes[a].key, p.nodes[b].key) })
	p.out = append(p.out, '{')
	for n := range len(members) {
		m := p.order[base+n] // p.order may move while children are written
		if n > 0 {
			p.out = append(p.out, ',')
		}
		keyStart := len(p.out) + 1
		p.out = appendQuoted(p.out, p.nodes[m].key)
		keyEnd := len(p.out) - 1
		p.out = append(p.out, ':')
		at := len(d.nodes)
		p.emit(d, m)
		d.nodes[at].keyStart, d.nodes[at].keyEnd = uint32(keyStart), uint32(keyEnd)
	}
	p.out = append(p.out, '}')
	p.order = p.order[:base]
}

// compareUTF16 orders strings by UTF-16 code units, as RFC 8785 section 3.2.3
// asks. It differs from byte order only between U+E000–U+FFFF and what lies above.
func compareUTF16(a, b string) int {
	for a != "" && b != "" {
		ra, na := utf8.DecodeRuneInString(a)
		rb, nb := utf8.DecodeRuneInString(b)
		if ra != rb {
			ha, hb := ra >= 0x10000, rb >= 0x10000
			if ha != hb {
				// A surrogate (0xD800–0xDFFF) stands for the higher rune.
				if ha && rb >= 0xE000 {
					return -1
				}
				if hb && ra >= 0xE000 {
					return 1
				}
			}
			return int(ra - rb)
		}
		a, b = a[na:], b[nb:]
	}
	return len(a) - len(b)
}

const hexDigits = "0123456789abcdef"

// AppendQuoted appends s as a canonical JSON string (RFC 8785 section 3.2.2.2).
// s must be valid UTF-8.
func AppendQuoted(b []byte, s string) []byte { return appendQuoted(b, s) }

func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\t':
			b = append(b, '\\', 't')
		case '\n':
			b = append(b, '\\', 'n')
		case '\f':
			b = append(b, '\\', 'f')
		case '\r':
			b = append(b, '\\', 'r')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(append(b, s[from:]...), '"')
}
