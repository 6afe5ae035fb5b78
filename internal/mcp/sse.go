package mcp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"time"
)

// An event is one server-sent event (WHATWG HTML, section 9.2).
type event struct {
	data []byte // valid until the next call of next
	id   string
	has  bool // it had a data field
}

// An eventReader reads server-sent events with bounds.
type eventReader struct {
	r      *bufio.Reader
	limit  int // bytes of one event
	data   []byte
	line   []byte
	lastID string        // id of the last event that had one
	retry  time.Duration // as the server last asked
}

var errEventTooLarge = errors.New("event is larger than the limit")

// maxEventID bounds an event id: it is sent back in a header.
const maxEventID = 1024

func newEventReader(r io.Reader, limit int) *eventReader {
	return &eventReader{r: bufio.NewReaderSize(r, 8<<10), limit: limit}
}

// next returns the next event, io.EOF at the end of the stream. An event that the
// end cuts short is dropped, as the specification says.
func (e *eventReader) next() (event, error) {
	e.data = e.data[:0]
	var ev event
	size := 0
	for {
		line, err := e.readLine()
		if err != nil {
			return event{}, err
		}
		if size += len(line) + 1; size > e.limit {
			return event{}, errEventTooLarge
		}
		if len(line) == 0 {
			if !ev.has && ev.id == "" {
				size = 0
				continue
			}
			ev.data = e.data
			return ev, nil
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "data":
			if ev.has {
				e.data = append(e.data, '\n')
			}
			e.data = append(e.data, value...)
			ev.has = true
		case "id":
			if len(value) <= maxEventID && printable(value) {
				ev.id = string(value)
				e.lastID = ev.id
			}
		case "retry":
			if ms, err := strconv.ParseUint(string(value), 10, 31); err == nil {
				e.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
}

// printable reports whether b can stand in a header.
func printable(b []byte) bool {
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return true
}

// readLine returns one line without its end, which may be LF, CR LF or, unlike in
// the specification, nothing but these two: no MCP server ends lines with a bare CR.
func (e *eventReader) readLine() ([]byte, error) {
	e.line = e.line[:0]
	for {
		part, err := e.r.ReadSlice('\n')
		if len(e.line)+len(part) > e.limit {
			return nil, errEventTooLarge
		}
		if err == nil && len(e.line) == 0 {
			return bytes.TrimSuffix(part[:len(part)-1], []byte("\r")), nil
		}
		e.line = append(e.line, part...)
		switch {
		case err == nil:
			return bytes.TrimSuffix(e.line[:len(e.line)-1], []byte("\r")), nil
		case errors.Is(err, bufio.ErrBufferFull):
		default:
			return nil, err
		}
	}
}
