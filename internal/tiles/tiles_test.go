package tiles

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// memory is a log that sumdb/tlog keeps.
type memory struct {
	leaves [][]byte
	hashes []tlog.Hash
	size   uint64 // what the checkpoint covers
	broken bool
}

func newMemory(t testing.TB, n int) *memory {
	t.Helper()
	m := &memory{size: uint64(n)}
	for i := range n + 3 { // three that no checkpoint covers yet
		leaf := fmt.Appendf(nil, `{"idx":%d}`, i)
		h, err := tlog.StoredHashes(int64(i), leaf, m.reader())
		if err != nil {
			t.Fatal(err)
		}
		m.leaves, m.hashes = append(m.leaves, leaf), append(m.hashes, h...)
	}
	return m
}

func (m *memory) reader() tlog.HashReaderFunc {
	return func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, x := range indexes {
			out = append(out, m.hashes[x])
		}
		return out, nil
	}
}

func (m *memory) Published() ([]byte, uint64) {
	if m.size == 0 {
		return nil, 0
	}
	return fmt.Appendf(nil, "size %d\n", m.size), m.size
}

func (m *memory) HashTile(_ context.Context, t tlog.Tile) ([]byte, error) {
	if m.broken {
		return nil, errors.New("disk gone")
	}
	return tlog.ReadTileData(t, m.reader())
}

func (m *memory) Leaves(_ context.Context, from, to uint64) ([][]byte, error) {
	return m.leaves[from:to], nil
}

const token = "a token of the auditor"

func serve(log Log) http.Handler {
	return Handler(log, []Reader{{Name: "other", Token: sha256.Sum256([]byte("x"))}, {Name: "auditor", Token: sha256.Sum256([]byte(token))}}, slog.New(slog.DiscardHandler))
}

func get(h http.Handler, method, path, authorization string) *http.Response {
	r := httptest.NewRequest(method, "http://127.0.0.1/", nil)
	r.URL.Path = path
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) []byte {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// over reads tiles over HTTP, as a client of the Go checksum database does.
type over struct{ h http.Handler }

func (over) Height() int                         { return height }
func (over) SaveTiles(_ []tlog.Tile, _ [][]byte) {}
func (o over) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, t := range tiles {
		res := get(o.h, http.MethodGet, "/tile/"+strings.TrimPrefix(t.Path(), "tile/8/"), "Bearer "+token)
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s: %d: %w", t.Path(), res.StatusCode, err)
		}
		out = append(out, b)
	}
	return out, nil
}

// TestSumDBReadsTiles: sumdb/tlog proves every kind of record from what is served.
func TestSumDBReadsTiles(t *testing.T) {
	for _, n := range []int{1, 2, 255, 256, 257, 700, 256 * 256, 256*256 + 300} {
		m := newMemory(t, n)
		root, err := tlog.TreeHash(int64(n), m.reader())
		if err != nil {
			t.Fatal(err)
		}
		hashes := tlog.TileHashReader(tlog.Tree{N: int64(n), Hash: root}, over{serve(m)})
		for _, i := range []int{0, n / 2, n - 1} {
			p, err := tlog.ProveRecord(int64(n), int64(i), hashes)
			if err != nil {
				t.Fatalf("size %d: %v", n, err)
			}
			if err := tlog.CheckRecord(p, int64(n), root, int64(i), tlog.RecordHash(m.leaves[i])); err != nil {
				t.Errorf("size %d, record %d: %v", n, i, err)
			}
		}
	}
}

func TestEntryBundles(t *testing.T) {
	m := newMemory(t, 300)
	for path, want := range map[string][][]byte{"/tile/entries/000": m.leaves[:256], "/tile/entries/001.p/44": m.leaves[256:300], "/tile/entries/001.p/3": m.leaves[256:259]} {
		res := get(serve(m), http.MethodGet, path, "bearer "+token)
		b := body(t, res)
		if res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d", path, res.StatusCode)
		}
		for i, leaf := range want {
			n := int(binary.BigEndian.Uint16(b))
			if !bytes.Equal(b[2:2+n], leaf) {
				t.Fatalf("%s: entry %d is %q", path, i, b[2:2+n])
			}
			b = b[2+n:]
		}
		if len(b) > 0 {
			t.Errorf("%s: %d bytes are left over", path, len(b))
		}
	}
}

// TestRefused: who may read what, and which paths are none.
func TestRefused(t *testing.T) {
	m := newMemory(t, 300)
	h := serve(m)
	const auth = "Bearer " + token
	for _, c := range []struct {
		method, path, authorization string
		want                        int
	}{
		{"GET", "/checkpoint", "", 200},
		{"HEAD", "/checkpoint", "", 200},
		{"POST", "/checkpoint", auth, 405},
		{"GET", "/tile/0/000", auth, 200},
		{"HEAD", "/tile/0/000", auth, 200},
		{"GET", "/tile/1/000.p/1", auth, 200},
		{"GET", "/tile/0/001.p/44", auth, 200},
		{"PUT", "/tile/0/000", auth, 405},

		{"GET", "/tile/0/000", "", 401},
		{"GET", "/tile/0/000", token, 401},
		{"GET", "/tile/0/000", "Bearer " + token + " ", 401},
		{"GET", "/tile/0/000", "Bearer", 401},
		{"GET", "/tile/0/000", "Basic " + token, 401},
		{"GET", "/tile/entries/000", "Bearer ", 401},
		{"POST", "/tile/0/000", "", 401},
		{"GET", "/", "", 401},
		{"GET", "//checkpoint", "", 401},
		{"GET", "/nothing", "", 401},

		{"GET", "/tile/0/001.p/45", auth, 404}, // no checkpoint covers it
		{"GET", "/tile/0/001", auth, 404},
		{"GET", "/tile/0/002", auth, 404},
		{"GET", "/tile/1/000.p/2", auth, 404},
		{"GET", "/tile/7/000.p/1", auth, 404},
		{"GET", "/tile/8/000.p/1", auth, 404},
		{"GET", "/tile/63/000.p/1", auth, 404},
		{"GET", "/tile/entries/001.p/45", auth, 404},
		{"GET", "/tile/0/x999/x999/x999/x999/x999/x999/999", auth, 404},
		{"GET", "/tile/0/x036/x028/x797/x018/x963/968", auth, 404}, // 2^55: times 256 it is zero again
		{"GET", "/tile/0/0", auth, 404},
		{"GET", "/tile/00/000", auth, 404},
		{"GET", "/tile/0/000.p/0", auth, 404},
		{"GET", "/tile/0/000.p/256", auth, 404},
		{"GET", "/tile/0/000.p/+1", auth, 404},
		{"GET", "/tile/-1/000", auth, 404},
		{"GET", "/tile/data/000", auth, 404},
		{"GET", "/tile/8/0/000", auth, 404},
		{"GET", "/tile/entries/0/000", auth, 404},
		{"GET", "/tile/0/../0/000", auth, 404},
		{"GET", "/tile", auth, 404},
		{"GET", "/", auth, 404},
		{"GET", "//checkpoint", auth, 404},
	} {
		if res := get(h, c.method, c.path, c.authorization); res.StatusCode != c.want {
			t.Errorf("%s %s with %q: %d, want %d", c.method, c.path, c.authorization, res.StatusCode, c.want)
		}
	}
	if res := get(serve(newMemory(t, 0)), "GET", "/checkpoint", ""); res.StatusCode != http.StatusNotFound {
		t.Errorf("a checkpoint that nobody signed: %d", res.StatusCode)
	}
	m.broken = true
	if res := get(h, "GET", "/tile/0/000", auth); res.StatusCode != http.StatusInternalServerError || strings.Contains(string(body(t, res)), "disk gone") {
		t.Errorf("a store that fails: %d", res.StatusCode)
	}
}

// FuzzParse: what parses is written in one way, and nothing beyond the log is within.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"/tile/0/000", "/tile/entries/x001/234.p/5", "/tile/63/000.p/255", "/tile/data/000", "/tile/0/x999/x999/x999/x999/x999/x999/999"} {
		f.Add(s, uint64(70_000))
	}
	f.Fuzz(func(t *testing.T, path string, size uint64) {
		tile, err := parse(path)
		if err != nil {
			return
		}
		want := strings.Replace(strings.TrimPrefix(tile.Path(), "tile/8"), "/data/", "/entries/", 1)
		if path != "/tile"+want {
			t.Fatalf("%q parses as %q", path, want)
		}
		if size >>= 1; !within(tile, size) {
			return
		}
		shift := uint(max(tile.L, 0)) * height
		if last := (uint64(tile.N)<<height + uint64(tile.W)) << shift; last > size || last>>shift>>height < uint64(tile.N) {
			t.Fatalf("%q ends at %d of %d", path, last, size)
		}
	})
}
