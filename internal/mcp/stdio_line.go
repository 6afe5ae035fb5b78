package mcp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

var errLineTooLong = errors.New("line longer than the limit")

// readLine returns the next non-empty line without its end, in bytes of its own.
// A line of more than limit bytes is errLineTooLong, of which no more than limit
// bytes were ever held; after it the stream has no frames any more. A last line
// without an end is io.ErrUnexpectedEOF: it may be half a message.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit+2 { // two for the end
			return nil, errLineTooLong
		}
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			if len(bytes.TrimSpace(line)) > 0 {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, io.EOF
		case err != nil:
			return nil, err
		}
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(line) > limit {
			return nil, errLineTooLong
		}
		if len(line) > 0 {
			return line, nil
		}
		line = nil
	}
}

// Bounds on what is kept of a server's standard error.
const (
	stderrLine  = 2 << 10 // bytes of one line; the rest of it is dropped
	stderrLines = 40      // the end of a stack trace
)

// A stderrRing keeps the last lines a server wrote to its standard error.
type stderrRing struct {
	mu    sync.Mutex
	lines []string // at most stderrLines, oldest first
}

// read takes lines from r until it ends and gives each to log.
func (s *stderrRing) read(r io.Reader, log func(line string)) {
	br := bufio.NewReaderSize(r, stderrLine)
	for {
		part, err := br.ReadSlice('\n')
		rest := err
		for errors.Is(rest, bufio.ErrBufferFull) {
			// The buffer is overwritten by reading on, so keep what there is first.
			if part != nil {
				s.add(visible(part), log)
				part = nil
			}
			_, rest = br.ReadSlice('\n')
		}
		if len(part) > 0 {
			s.add(visible(part), log)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) || rest != nil && !errors.Is(rest, bufio.ErrBufferFull) {
			return
		}
	}
}

func (s *stderrRing) add(line string, log func(string)) {
	if line == "" {
		return
	}
	log(line)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) == stderrLines {
		s.lines = append(s.lines[:0], s.lines[1:]...)
	}
	s.lines = append(s.lines, line)
}

// tail returns the lines kept, for an operator to read behind an error.
func (s *stderrRing) tail() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) == 0 {
		return ""
	}
	return "; stderr: " + strings.Join(s.lines, " | ")
}

// visible returns b without characters that could steer a terminal or forge a
// line of a log.
func visible(b []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029':
			return -1
		}
		return r
	}, string(b)))
}
