package mcp

// A scanner walks over JSON text and checks it on the way.
type scanner struct {
	b     []byte
	i     int
	depth int
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

// value skips one value and returns it.
func (s *scanner) value() ([]byte, error) {
	s.space()
	start := s.i
	if s.i >= len(s.b) {
		return nil, errMalformed
	}
	var err error
	switch c := s.b[s.i]; {
	case c == '{':
		err = s.object(nil)
	case c == '[':
		err = s.array()
	case c == '"':
		err = s.str()
	case c == '-' || c >= '0' && c <= '9':
		err = s.number()
	case c == 't':
		err = s.literal("true")
	case c == 'f':
		err = s.literal("false")
	case c == 'n':
		err = s.literal("null")
	default:
		err = errMalformed
	}
	if err != nil {
		return nil, err
	}
	return s.b[start:s.i:s.i], nil
}

func (s *scanner) literal(word string) error {
	if len(s.b)-s.i < len(word) || string(s.b[s.i:s.i+len(word)]) != word {
		return errMalformed
	}
	s.i += len(word)
	return nil
}

func (s *scanner) digits() bool {
	from := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > from
}

func (s *scanner) at(c byte) bool { return s.i < len(s.b) && s.b[s.i] == c }

func (s *scanner) number() error {
	if s.at('-') {
		s.i++
	}
	if s.at('0') {
		s.i++
	} else if !s.digits() {
		return errMalformed
	}
	if s.at('.') {
		s.i++
		if !s.digits() {
			return errMalformed
		}
	}
	if s.at('e') || s.at('E') {
		s.i++
		if s.at('+') || s.at('-') {
			s.i++
		}
		if !s.digits() {
			return errMalformed
		}
	}
	return nil
}

// str skips a string. Lone surrogates are left to whoever decodes it: they become
// U+FFFD in every decoder we know.
func (s *scanner) str() error {
	for s.i++; s.i < len(s.b); s.i++ {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return nil
		case c < 0x20:
			return errMalformed
		case c == '\\':
			s.i++
			if s.i >= len(s.b) {
				return errMalformed
			}
			switch s.b[s.i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if len(s.b)-s.i < 5 {
					return errMalformed
				}
				for range 4 {
					s.i++
					if !isHex(s.b[s.i]) {
						return errMalformed
					}
				}
			default:
				return errMalformed
			}
		}
	}
	return errMalformed
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func (s *scanner) array() error {
	if s.depth++; s.depth > maxDepth {
		return errMalformed
	}
	s.i++
	s.space()
	if s.at(']') {
		s.i++
		s.depth--
		return nil
	}
	for {
		if _, err := s.value(); err != nil {
			return err
		}
		s.space()
		switch {
		case s.at(','):
			s.i++
		case s.at(']'):
			s.i++
			s.depth--
			return nil
		default:
			return errMalformed
		}
	}
}

// object skips an object and calls fn, if it is not nil, for each member with the
// decoded key.
func (s *scanner) object(fn func(key, val []byte) error) error {
	s.space()
	if !s.at('{') {
		return errMalformed
	}
	if s.depth++; s.depth > maxDepth {
		return errMalformed
	}
	s.i++
	s.space()
	if s.at('}') {
		s.i++
		s.depth--
		return nil
	}
	var keys keySet
	for {
		s.space()
		start := s.i
		if !s.at('"') {
			return errMalformed
		}
		if err := s.str(); err != nil {
			return err
		}
		key := s.b[start+1 : s.i-1]
		for _, c := range key {
			if c == '\\' {
				decoded, ok := plainString(s.b[start:s.i])
				if !ok {
					return errMalformed
				}
				key = []byte(decoded)
				break
			}
		}
		if !keys.add(key) {
			return errMalformed
		}
		s.space()
		if !s.at(':') {
			return errMalformed
		}
		s.i++
		val, err := s.value()
		if err != nil {
			return err
		}
		if fn != nil {
			if err := fn(key, val); err != nil {
				return err
			}
		}
		s.space()
		switch {
		case s.at(','):
			s.i++
		case s.at('}'):
			s.i++
			s.depth--
			return nil
		default:
			return errMalformed
		}
	}
}

// A keySet finds a key that stands twice in an object. Comparing all pairs is
// cheaper than a map for as many keys as most objects have.
type keySet struct {
	few  [12][]byte
	n    int
	many map[string]struct{}
}

// add reports whether key is new.
func (k *keySet) add(key []byte) bool {
	if k.many != nil {
		if _, ok := k.many[string(key)]; ok {
			return false
		}
		k.many[string(key)] = struct{}{}
		return true
	}
	for _, old := range k.few[:k.n] {
		if string(old) == string(key) {
			return false
		}
	}
	if k.n < len(k.few) {
		k.few[k.n] = key
		k.n++
		return true
	}
	k.many = make(map[string]struct{}, 2*len(k.few))
	for _, old := range k.few {
		k.many[string(old)] = struct{}{}
	}
	k.many[string(key)] = struct{}{}
	return true
}
