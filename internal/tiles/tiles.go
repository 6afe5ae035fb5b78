// Package tiles serves a ledger as a tiled transparency log over HTTP, in the form
// of C2SP tlog-tiles (https://c2sp.org/tlog-tiles):
//
//	GET /checkpoint                  the last signed checkpoint
//	GET /tile/<L>/<N>[.p/<W>]        1 to 256 hashes of level 8*L
//	GET /tile/entries/<N>[.p/<W>]    1 to 256 leaves, each after its length (16 bits, big-endian)
//
// The checkpoint is for everybody. A leaf says when which tool was called, so all
// tiles need a bearer token of a [Reader]; without one the answer is 401 whatever
// the path is. Nothing beyond the last signed checkpoint is served: 404. What does
// not have the exact form of the specification is 404 as well.
//
// Only the form comes from here. The hashes and leaves are those of the ledger, which
// does not change what it once gave: full tiles may be cached for ever.
package tiles

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// height is the height of a tile, fixed by the specification.
const height = 8

// A Log is what is served.
type Log interface {
	// Published returns the last signed checkpoint and its size; no note if there is none.
	Published() (note []byte, size uint64)
	// HashTile returns a tile of height 8.
	HashTile(ctx context.Context, tile tlog.Tile) ([]byte, error)
	// Leaves returns the leaves in [from, to).
	Leaves(ctx context.Context, from, to uint64) ([][]byte, error)
}

// A Reader may read tiles: whoever sends the token with this SHA-256. Nothing of
// low entropy makes a good token; 32 random bytes do.
type Reader struct {
	Name  string
	Token vault.Digest
}

// Handler serves log to readers. It neither checks Host nor Origin.
func Handler(log Log, readers []Reader, logger *slog.Logger) http.Handler {
	return &handler{log: log, readers: readers, logger: logger}
}

type handler struct {
	log     Log
	readers []Reader
	logger  *slog.Logger
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	open := r.URL.Path == "/checkpoint"
	name, ok := h.reader(r)
	if !ok && !open {
		w.Header().Set("Www-Authenticate", `Bearer realm="vault ledger"`)
		http.Error(w, "tiles need the token of a reader", http.StatusUnauthorized)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "tiles are read", http.StatusMethodNotAllowed)
		return
	}
	if open {
		h.checkpoint(w, r)
		return
	}
	h.tile(w, r, name)
}

func (h *handler) checkpoint(w http.ResponseWriter, r *http.Request) {
	note, _ := h.log.Published()
	if len(note) == 0 {
		http.Error(w, "no checkpoint was signed yet", http.StatusNotFound)
		return
	}
	w.Header().Set("Cache-Control", "no-cache")
	h.send(w, r, "text/plain; charset=utf-8", note)
}

// reader returns who sent the request.
func (h *handler) reader(r *http.Request) (name string, ok bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	sum := sha256.Sum256([]byte(token))
	for _, k := range h.readers { // all of them, in the same time for each
		if subtle.ConstantTimeCompare(sum[:], k.Token[:]) == 1 {
			name, ok = k.Name, true
		}
	}
	return name, ok
}

func (h *handler) tile(w http.ResponseWriter, r *http.Request, name string) {
	t, err := parse(r.URL.Path)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	if _, size := h.log.Published(); !within(t, size) {
		http.Error(w, "beyond the last checkpoint", http.StatusNotFound)
		return
	}
	b, err := h.read(r.Context(), t)
	if err != nil {
		h.logger.ErrorContext(r.Context(), "tile not read", "tile", r.URL.Path, "reader", name, "err", err)
		http.Error(w, "the tile cannot be read; the log says why", http.StatusInternalServerError)
		return
	}
	// A partial tile does not change either, but nobody wants it for long.
	age := "private, max-age=60"
	if t.W == 1<<height {
		age = "private, max-age=31536000, immutable"
	}
	w.Header().Set("Cache-Control", age)
	h.send(w, r, "application/octet-stream", b)
}

func (h *handler) read(ctx context.Context, t tlog.Tile) ([]byte, error) {
	if t.L >= 0 {
		return h.log.HashTile(ctx, t)
	}
	from := uint64(t.N) << height
	leaves, err := h.log.Leaves(ctx, from, from+uint64(t.W))
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, leaf := range leaves {
		if len(leaf) > evidence.MaxLeaf { // its length has 16 bits
			return nil, errors.New("a leaf is too long for an entry bundle")
		}
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(leaf))), leaf...)
	}
	return out, nil
}

func (h *handler) send(w http.ResponseWriter, r *http.Request, kind string, b []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if r.Method == http.MethodHead {
		return
	}
	if _, err := w.Write(b); err != nil {
		h.logger.DebugContext(r.Context(), "tile not sent", "err", err)
	}
}

// errPath says that a path names no tile.
var errPath = errors.New("not the path of a tile")

// parse reads the path of a tile. The specification has the height fixed and
// otherwise the form of the Go checksum database, which [tlog] reads.
func parse(path string) (tlog.Tile, error) {
	rest, ok := strings.CutPrefix(path, "/tile/")
	if !ok || strings.HasPrefix(rest, "data/") {
		return tlog.Tile{}, errPath
	}
	if n, ok := strings.CutPrefix(rest, "entries/"); ok {
		rest = "data/" + n
	}
	t, err := tlog.ParseTilePath(fmt.Sprintf("tile/%d/%s", height, rest))
	if err != nil {
		return tlog.Tile{}, errPath
	}
	return t, nil
}

// within reports whether a log of size records has all that t covers.
func within(t tlog.Tile, size uint64) bool {
	shift := uint(max(t.L, 0)) * height
	if shift >= 64 {
		return false
	}
	have := size >> shift // complete nodes of the tile's level
	first := uint64(t.N) << height
	return uint64(t.N) <= have>>height && first+uint64(t.W) <= have
}
