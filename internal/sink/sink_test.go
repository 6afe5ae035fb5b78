package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

const origin = "vault.test/default/cluster-1"

// canary stands in every sensitive field of the test's events.
const canary = "canary-4711"

// A ledger is a source in memory.
type ledger struct {
	mu    sync.Mutex
	list  []Event
	grown chan struct{}
	fail  error // of Events, if set
	open  int   // times that fields were asked for
}

func newLedger(n int) *ledger {
	l := &ledger{grown: make(chan struct{})}
	l.grow(n)
	return l
}

// grow adds events, of all classes in turn.
func (l *ledger) grow(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range n {
		i := uint64(len(l.list))
		leaf := &evidence.Leaf{
			Log: origin, Index: i, Time: time.Date(2026, 11, 28, 8, 0, int(i%60), 0, time.UTC), Run: "t-1", RunSeq: i, Call: fmt.Sprintf("c-%d <&>\u2028", i),
			Phase: vault.PhaseNoted, Class: classes[i%uint64(len(classes))], Verdict: vault.Allow, Kind: vault.KindTool, Tool: "say",
		}
		if i > 0 {
			leaf.PrevRunLeaf = vault.Hash("test")
		}
		l.list = append(l.list, event(leaf))
	}
	close(l.grown)
	l.grown = make(chan struct{})
}

// event completes a leaf: its fields are those of its class, each with the canary.
func event(leaf *evidence.Leaf) Event {
	leaf.Fields = evidence.Fields{N: len(vault.FieldsOf(leaf.Class)), Root: vault.Hash("root")}
	raw, err := leaf.Append(nil)
	if err != nil {
		panic(err)
	}
	e := Event{Leaf: leaf, Raw: raw, Hash: evidence.HashLeaf(raw)}
	for _, name := range vault.FieldsOf(leaf.Class) {
		e.Fields = append(e.Fields, evidence.Opened{Name: name, Value: []byte(canary)})
	}
	return e
}

func (l *ledger) Size() (uint64, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.list)), l.grown
}

func (l *ledger) Events(_ context.Context, from, to uint64, open bool) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		l.mu.Lock()
		list, fail := l.list[from:to], l.fail
		if open {
			l.open++
		}
		l.mu.Unlock()
		if fail != nil {
			yield(Event{}, fail)
			return
		}
		for _, e := range list {
			if !open {
				e.Fields = nil
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// A receiver is a target in memory that can fail before or after it keeps a batch.
type receiver struct {
	mu     sync.Mutex
	got    []uint64
	sizes  []int
	at     []time.Time
	before []error // of the next attempts
	after  []error // of the next attempts that got past before
	limit  int     // batches beyond it are too large
}

func (r *receiver) send(ctx context.Context, batch []View) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = append(r.at, time.Now())
	if r.limit > 0 && len(batch) > r.limit {
		return errTooLarge
	}
	if len(r.before) > 0 {
		err := r.before[0]
		if r.before = r.before[1:]; err != nil {
			return err
		}
	}
	for _, v := range batch {
		r.got = append(r.got, v.Leaf.Index)
	}
	r.sizes = append(r.sizes, len(batch))
	if len(r.after) > 0 {
		err := r.after[0]
		r.after = r.after[1:]
		return err
	}
	return ctx.Err()
}

// wantAll fails unless every event below n arrived, in order but for batches that
// came again.
func (r *receiver) wantAll(t *testing.T, n uint64) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	next := uint64(0)
	for _, idx := range r.got {
		if idx > next {
			t.Fatalf("event %d came before %d", idx, next)
		}
		next = max(next, idx+1)
	}
	if next != n {
		t.Fatalf("%d events arrived, want %d", next, n)
	}
}

func options(dir string) Options {
	return Options{Dir: filepath.Join(dir, "sinks"), Log: origin, Key: evidence.Salt{1}, Version: "0.0.0"}
}

// openWith opens a sink whose other end is r.
func openWith(t *testing.T, l *ledger, dir string, r target, c Config) *Sinks {
	t.Helper()
	c.Name, c.Kind, c.File = "test", File, filepath.Join(dir, "unused")
	s, err := Open(l, []Config{c}, options(dir))
	if err != nil {
		t.Fatal(err)
	}
	s.list[0].target = r
	return s
}

// running runs s until the function it returns is called.
func running(t *testing.T, s *Sinks) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		s.Run(ctx)
		close(done)
	}()
	return func() {
		cancel()
		<-done
	}
}

// TestNothingIsLost: whatever goes wrong, and however often, every event arrives, in
// order, and the ledger grows meanwhile.
func TestNothingIsLost(t *testing.T) {
	down := errors.New("connection refused")
	for name, r := range map[string]*receiver{
		"all is well":              {},
		"down for a while":         {before: []error{down, down, down, down}},
		"failed, but it happened":  {after: []error{down, down}},
		"both in turn":             {before: []error{down, nil, down}, after: []error{down, nil, down}},
		"takes only small batches": {limit: 3},
		"small, and down at times": {limit: 7, before: []error{nil, down, nil, nil, down}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLedger(1500)
				s := openWith(t, l, t.TempDir(), r, Config{})
				stop := running(t, s)
				for range 10 {
					time.Sleep(time.Second)
					l.grow(20)
				}
				time.Sleep(10 * time.Minute)
				stop()
				r.wantAll(t, 1700)
				if st := s.Status()[0]; st.Next != 1700 || st.Error != "" || st.At.IsZero() {
					t.Errorf("status %+v", st)
				}
				if n := slices.Max(r.sizes); n > maxBatch || r.limit > 0 && n > r.limit {
					t.Errorf("a batch of %d", n)
				}
			})
		})
	}
}

// TestDownHoldsUpNobody: a receiver that is down for hours costs an attempt a
// minute, and no more memory than one batch; its error is in the status, once in
// the log.
func TestDownHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{before: slices.Repeat([]error{errors.New("no route")}, 250)}
		l := newLedger(1)
		s := openWith(t, l, t.TempDir(), r, Config{})
		stop := running(t, s)
		defer stop()
		for range 4 {
			time.Sleep(time.Hour)
			l.grow(1000)
		}
		r.mu.Lock()
		if n := len(r.at); n < 230 || n > 250 {
			t.Errorf("%d attempts in four hours, want one a minute", n)
		}
		for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			if got := r.at[i+1].Sub(r.at[i]).Round(time.Second); got != want*time.Second {
				t.Errorf("pause %d is %v, want %vs", i, got, want)
			}
		}
		r.mu.Unlock()
		if st := s.Status()[0]; st.Error != "no route" || st.Next != 0 {
			t.Errorf("status %+v", st)
		}
		time.Sleep(time.Hour)
		r.wantAll(t, 4001)
	})
}

// TestSlowReceiver: one that takes a batch and does not answer is left after a
// while, and holds up no other sink.
func TestSlowReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(10)
		dir := t.TempDir()
		s, err := Open(l, []Config{{Name: "slow", Kind: File, File: dir + "/a"}, {Name: "quick", Kind: File, File: dir + "/b"}}, options(dir))
		if err != nil {
			t.Fatal(err)
		}
		slow, quick := make(stuck), &receiver{}
		s.list[0].target, s.list[1].target = slow, quick
		stop := running(t, s)
		time.Sleep(5 * time.Second)
		quick.wantAll(t, 10)
		time.Sleep(time.Minute)
		if st := s.Status()[0]; !strings.Contains(st.Error, context.DeadlineExceeded.Error()) {
			t.Errorf("status of the slow one: %+v", st)
		}
		stop() // and it does not hold up the end either
	})
}

type stuck chan struct{}

func (s stuck) send(ctx context.Context, _ []View) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestRestart: after a restart a sink goes on where it was, and after a crash it
// sends again what it had not noted.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, dir, r := newLedger(100), t.TempDir(), &receiver{}
		stop := running(t, openWith(t, l, dir, r, Config{}))
		time.Sleep(time.Second)
		stop()
		before, err := os.ReadFile(filepath.Join(dir, "sinks", "test.cursor"))
		if err != nil {
			t.Fatal(err)
		}
		l.grow(50)
		stop = running(t, openWith(t, l, dir, r, Config{}))
		time.Sleep(time.Second)
		stop()
		r.wantAll(t, 150)
		if len(r.got) != 150 {
			t.Errorf("%d deliveries of 150 events", len(r.got))
		}
		// A crash lost the second note.
		if err := os.WriteFile(filepath.Join(dir, "sinks", "test.cursor"), before, 0o600); err != nil {
			t.Fatal(err)
		}
		stop = running(t, openWith(t, l, dir, r, Config{}))
		time.Sleep(time.Second)
		stop()
		r.wantAll(t, 150)
		if len(r.got) != 200 {
			t.Errorf("%d deliveries, want the last 50 twice", len(r.got))
		}
	})
}

// TestClasses: a sink gets the classes that it names, and its cursor passes over the
// others.
func TestClasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, dir, r := newLedger(3*maxScan), t.TempDir(), &receiver{}
		s := openWith(t, l, dir, r, Config{Classes: []vault.Class{vault.ClassApproval}})
		stop := running(t, s)
		time.Sleep(10 * time.Minute)
		stop()
		want := 0
		for _, e := range l.list {
			if e.Leaf.Class == vault.ClassApproval {
				want++
			}
		}
		if len(r.got) != want || s.Status()[0].Next != 3*maxScan {
			t.Errorf("%d events, want %d; %+v", len(r.got), want, s.Status()[0])
		}
		c, err := openCursor(filepath.Join(dir, "sinks", "test.cursor"), origin)
		if err != nil || c.next != 3*maxScan {
			t.Errorf("cursor %d, %v", c.next, err)
		}
	})
}

// TestLedgerFails: what the ledger cannot give now, the sink asks for again.
func TestLedgerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := newLedger(5), &receiver{}
		l.fail = errors.New("disk")
		s := openWith(t, l, t.TempDir(), r, Config{})
		stop := running(t, s)
		defer stop()
		time.Sleep(3 * time.Second)
		if st := s.Status()[0]; !strings.Contains(st.Error, "disk") {
			t.Errorf("%+v", st)
		}
		l.mu.Lock()
		l.fail = nil
		l.mu.Unlock()
		time.Sleep(time.Minute)
		r.wantAll(t, 5)
	})
}

// TestCursorRefuses: what cannot be a cursor of this ledger is not guessed about.
func TestCursorRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":           "",
		"no JSON":           "7",
		"half of it":        `{"v":1,"log":"` + origin + `","ne`,
		"another version":   `{"v":2,"log":"` + origin + `","next":1}`,
		"another ledger":    `{"v":1,"log":"vault.test/default/cluster-2","next":1}`,
		"beyond the ledger": `{"v":1,"log":"` + origin + `","next":9}`,
		"an unknown member": `{"v":1,"log":"` + origin + `","next":1,"x":1}`,
		"trailing data":     `{"v":1,"log":"` + origin + `","next":1}{}`,
		"less than nothing": `{"v":1,"log":"` + origin + `","next":-1}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := options(dir)
			if err := os.MkdirAll(o.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(o.Dir, "test.cursor"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(newLedger(8), []Config{{Name: "test", Kind: File, File: dir + "/out"}}, o); err == nil || !strings.Contains(err.Error(), "test.cursor") {
				t.Errorf("err = %v", err)
			}
		})
	}
}

// TestFieldsStayHome: by default the sensitive fields of an event stay, and those
// that name somebody leave as a pseudonym, in every form. What is named leaves.
func TestFieldsStayHome(t *testing.T) {
	l := newLedger(len(classes))
	for _, f := range []Format{Leaf, JSON, CloudEvents, OCSF, "otlp", "syslog"} {
		for _, tt := range []struct {
			name              string
			fields            []string
			canary, pseudonym bool
		}{
			{"nothing said", nil, false, true},
			{"none", []string{NoFields}, false, false},
			{"one that is asked for", []string{"args"}, true, true},
		} {
			t.Run(string(f)+"/"+tt.name, func(t *testing.T) {
				form := f
				if f == "otlp" || f == "syslog" {
					form = JSON
				}
				sel := newFields(tt.fields, form, &evidence.Salt{1})
				var out strings.Builder
				for i := range l.list {
					e := l.list[i]
					v := sel.view(&e)
					switch f {
					case "otlp":
						out.WriteString(logRecord(&v, 0).String())
					case "syslog":
						b, err := AppendSyslog(nil, &v, JSON)
						if err != nil {
							t.Fatal(err)
						}
						out.Write(b)
					default:
						b, err := f.Append(nil, &v)
						if err != nil {
							t.Fatal(err)
						}
						out.Write(b)
					}
				}
				stands := pseudonym(&evidence.Salt{1}, []byte(canary))
				if got := strings.Contains(out.String(), canary); got != (tt.canary && f != Leaf) {
					t.Errorf("the value of a field is in it: %v", got)
				}
				if got := strings.Contains(out.String(), stands); got != (tt.pseudonym && f != Leaf) {
					t.Errorf("a pseudonym is in it: %v", got)
				}
			})
		}
	}
	sel, names := newFields(nil, JSON, &evidence.Salt{1}), map[string]bool{}
	for i := range l.list {
		v := sel.view(&l.list[i])
		for _, f := range v.Fields {
			names[f.Name] = true
			if !f.Pseudonym {
				t.Errorf("%s leaves as it is", f.Name)
			}
		}
	}
	if got := slices.Sorted(maps.Keys(names)); !slices.Equal(got, []string{"agent", "approver", "by", "caller", "principal"}) {
		t.Errorf("pseudonyms of %v", got)
	}
	if a, b := pseudonym(&evidence.Salt{1}, []byte("x")), pseudonym(&evidence.Salt{2}, []byte("x")); a == b {
		t.Error("a pseudonym does not depend on the key")
	}
	if sel := newFields([]string{NoFields}, JSON, &evidence.Salt{1}); sel.any() {
		t.Error("fields are opened that never leave")
	}
}

// TestErasedFields: what was erased, or was too large to keep, is in no event.
func TestErasedFields(t *testing.T) {
	e := event(&evidence.Leaf{Log: origin, Time: time.Unix(1, 0), Class: vault.ClassCall, Phase: vault.PhaseDone, Verdict: vault.Allow})
	e.Fields = []evidence.Opened{{Name: "args", Erased: true, Value: []byte(canary)}, {Name: "caller", NotKept: true}, {Name: "note"}, {Name: "result", Value: []byte{0xff, 0}}}
	sel := newFields([]string{"args", "caller", "note", "result"}, JSON, new(evidence.Salt))
	v := sel.view(&e)
	if len(v.Fields) != 1 || v.Fields[0].Value != "base64:/wA=" {
		t.Errorf("%+v", v.Fields)
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name string
		conf Config
		want string // part of the error; "" for none
	}{
		{"a file", Config{Name: "a", Kind: File, File: "/x"}, ""},
		{"https", Config{Name: "a", Kind: HTTP, URL: "https://siem.example/in"}, ""},
		{"http on loopback", Config{Name: "a", Kind: OTLP, URL: "http://127.0.0.1:4318"}, ""},
		{"syslog over TLS", Config{Name: "a", Kind: Syslog, Address: "tls://log.example:6514"}, ""},
		{"no name", Config{Kind: File, File: "/x"}, "name"},
		{"a name that is a path", Config{Name: "../x", Kind: File, File: "/x"}, "name"},
		{"no kind", Config{Name: "a"}, "kind"},
		{"no file", Config{Name: "a", Kind: File}, "file is missing"},
		{"a relative file", Config{Name: "a", Kind: File, File: "x"}, "absolute"},
		{"a URL for a file", Config{Name: "a", Kind: File, File: "/x", URL: "https://x.example"}, "no use"},
		{"headers for syslog", Config{Name: "a", Kind: Syslog, Address: "tls://x:1", Headers: "/h"}, "no use"},
		{"http to another host", Config{Name: "a", Kind: HTTP, URL: "http://siem.example/"}, "https"},
		{"a password in the URL", Config{Name: "a", Kind: HTTP, URL: "https://u:hunter2@siem.example/"}, "headers"},
		{"a token in the query", Config{Name: "a", Kind: HTTP, URL: "https://siem.example/?t=hunter2"}, "headers"},
		{"another scheme", Config{Name: "a", Kind: HTTP, URL: "file:///etc/passwd"}, "https"},
		{"plain syslog to another host", Config{Name: "a", Kind: Syslog, Address: "tcp://log.example:514"}, "only on loopback"},
		{"no port", Config{Name: "a", Kind: Syslog, Address: "tls://log.example"}, "tls://host:port"},
		{"a form the kind does not write", Config{Name: "a", Kind: Syslog, Address: "tls://x:1", Format: CloudEvents}, "format"},
		{"a form of OTLP", Config{Name: "a", Kind: OTLP, URL: "https://x.example", Format: OCSF}, "format"},
		{"a class that is none", Config{Name: "a", Kind: File, File: "/x", Classes: []vault.Class{"calls"}}, "no class"},
		{"a field that is none", Config{Name: "a", Kind: File, File: "/x", Fields: []string{"password"}}, "no event has"},
		{"none and another", Config{Name: "a", Kind: File, File: "/x", Fields: []string{"none", "args"}}, "alone"},
		{"fields in the leaf", Config{Name: "a", Kind: File, File: "/x", Format: Leaf, Fields: []string{"args"}}, "format json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.conf.Check()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error says the secret: %v", err)
			}
		})
	}
	a := Config{Name: "a", Kind: File, File: "/x"}
	for name, list := range map[string][]Config{
		"a name twice": {a, {Name: "a", Kind: File, File: "/y"}},
		"a file twice": {a, {Name: "b", Kind: File, File: "/x"}},
		"too many":     slices.Repeat([]Config{a}, maxSinks+1),
	} {
		if CheckAll(list) == nil {
			t.Errorf("%s passes", name)
		}
	}
	if err := new(Config).Check(); err == nil {
		t.Error("the zero Config passes")
	}
}

// TestForms: from each form the exact leaf can be had back, and it is one line.
func TestForms(t *testing.T) {
	for _, e := range newLedger(len(classes)).list {
		v := View{Leaf: e.Leaf, Raw: e.Raw, Hash: e.Hash, Fields: []Field{{Name: "args", Value: "a\nb"}}}
		for _, f := range []Format{Leaf, JSON, CloudEvents, OCSF} {
			b, err := f.Append(nil, &v)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.ContainsAny(b, "\n\r") {
				t.Errorf("%s: more than a line: %s", f, b)
			}
			var got []byte
			var doc struct {
				Leaf, Data json.RawMessage
				RawData    string `json:"raw_data"`
			}
			switch err := json.Unmarshal(b, &doc); {
			case err != nil:
				t.Fatalf("%s: %v", f, err)
			case f == Leaf:
				got = b
			case f == JSON:
				got = doc.Leaf
			case f == CloudEvents:
				got = doc.Data
			case f == OCSF:
				got = []byte(doc.RawData)
			}
			if !bytes.Equal(got, e.Raw) {
				t.Errorf("%s: the leaf came back as %s", f, got)
			}
		}
		b, err := AppendSyslog(nil, &v, Leaf)
		if err != nil || !bytes.HasSuffix(b, e.Raw) || !bytes.HasPrefix(b, []byte("<110>1 2026-11-28T08:00:")) {
			t.Errorf("syslog: %s, %v", b, err)
		}
	}
}

// FuzzParse: whatever an event holds, a form of it is one line or an error.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"leaf":{},"hash":""}`))
	b, err := JSON.Append(nil, &View{Leaf: newLedger(1).list[0].Leaf, Raw: newLedger(1).list[0].Raw})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := Parse(raw)
		if err != nil {
			return
		}
		for _, form := range []Format{Leaf, JSON, CloudEvents, OCSF} {
			b, err := AppendSyslog(nil, &v, form)
			if err == nil && bytes.ContainsAny(b, "\n") {
				t.Fatalf("%s: %q", form, b)
			}
		}
	})
}

// FuzzCursor: what is read as a cursor is written as one.
func FuzzCursor(f *testing.F) {
	f.Add([]byte(`{"v":1,"log":"x","next":7}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCursor(b)
		if err != nil {
			return
		}
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseCursor(out); err != nil || back != c {
			t.Fatalf("%+v came back as %+v: %v", c, back, err)
		}
	})
}

// FuzzHeaders: what is read from the file can be sent, and is not ours to say.
func FuzzHeaders(f *testing.F) {
	f.Add([]byte("Authorization: Bearer x\n# no\nX-Scope-OrgID: 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeaders(b)
		if err != nil {
			return
		}
		for _, name := range ours {
			if h.Get(name) != "" {
				t.Fatalf("%s from %q", name, b)
			}
		}
		var out bytes.Buffer
		if err := h.Write(&out); err != nil {
			t.Fatal(err)
		}
	})
}
