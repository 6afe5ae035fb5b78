package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"strings"
	"testing"
)

// bench runs pvault bench and returns what it prints.
func runBench(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	dir := t.TempDir()
	getenv := func(name string) string {
		if name == "HOME" {
			return dir
		}
		return ""
	}
	code = run(t.Context(), append([]string{"bench"}, args...), strings.NewReader(""), &stdout, &stderr, getenv)
	return code, stdout.String(), stderr.String()
}

func TestBenchPrintsWhatItMeasured(t *testing.T) {
	code, out, errs := runBench(t, "flow", "--json")
	var list []measured
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&list); err != nil || code != exitOK {
		t.Fatalf("exit %d, %v: %s%s", code, err, out, errs)
	}
	if len(list) != 1 || list[0].Name != "flow.check" || list[0].Value <= 0 || list[0].Unit != unitTime {
		t.Errorf("got %+v", list)
	}
	if !strings.Contains(errs, "load ") {
		t.Errorf("the load of the machine is not printed: %q", errs)
	}
}

func TestBenchOfAnUnknownAreaIsAUsageError(t *testing.T) {
	if code, _, errs := runBench(t, "speed"); code != exitUsage || !strings.Contains(errs, "gateway") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestMissed(t *testing.T) {
	for _, tt := range []struct {
		name string
		m    measured
		want bool
	}{
		{"no goal", measured{Value: 5, Unit: unitTime}, false},
		{"a time below", measured{Value: 5, Unit: unitTime, Goal: 6}, false},
		{"a time above", measured{Value: 7, Unit: unitTime, Goal: 6}, true},
		{"a size above", measured{Value: 7, Unit: unitSize, Goal: 6}, true},
		{"a rate above", measured{Value: 7, Unit: unitRate, Goal: 6}, false},
		{"a rate below", measured{Value: 5, Unit: unitRate, Goal: 6}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.m.missed(); got != tt.want {
				t.Errorf("missed = %v", got)
			}
		})
	}
}

func TestStub(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- serveStub(l) }()
	w, err := dialWire(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	call := stubRequest(l.Addr().String())
	for range 3 {
		body, err := w.send(call)
		if err != nil {
			t.Fatal(err)
		}
		var r struct {
			ID     int
			Result struct{ StructuredContent map[string]any }
		}
		if err := json.Unmarshal(body, &r); err != nil || r.ID != 1 || len(r.Result.StructuredContent) == 0 {
			t.Fatalf("%v: %s", err, body)
		}
	}
	if _, err := w.send(bytes.Replace(call, []byte("Mcp-Method: tools/call"), []byte("Mcp-Method: tools/none"), 1)); err == nil {
		t.Error("an unknown method is answered")
	}
	l.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzHead(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"))
	f.Add([]byte("POST /mcp HTTP/1.1\r\nMcp-Method: tools/call\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h httpHead
		if err := h.read(bufio.NewReader(bytes.NewReader(b))); err == nil && h.length < -1 {
			t.Errorf("length %d", h.length)
		}
	})
}
