package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/console"
	"github.com/pilox/vault/internal/tiles"
)

// Tiles says where the ledger is served as a tiled transparency log.
type Tiles struct {
	Address string        `yaml:"address"` // loopback host:port, or the absolute path of a Unix socket; "" means none
	Readers []TilesReader `yaml:"readers"` // who may read more than the checkpoint
}

// A TilesReader may read tiles with a bearer token.
type TilesReader struct {
	Name   string `yaml:"name"`
	SHA256 string `yaml:"sha256"` // of the token, in hex
}

func (t *Tiles) check() error {
	if t.Address == "" && len(t.Readers) > 0 {
		return errors.New("tiles.readers: there is no tiles.address to read from")
	}
	_, err := t.readers()
	return err
}

func (t *Tiles) readers() ([]tiles.Reader, error) {
	out := make([]tiles.Reader, len(t.Readers))
	for i, r := range t.Readers {
		b, err := hex.DecodeString(r.SHA256)
		if r.Name == "" || err != nil || len(b) != len(vault.Digest{}) || strings.ToLower(r.SHA256) != r.SHA256 {
			return nil, fmt.Errorf("tiles.readers[%d]: want a name, and in sha256 the output of: printf %%s \"$TOKEN\" | sha256sum", i)
		}
		out[i] = tiles.Reader{Name: r.Name, Token: vault.Digest(b)}
	}
	return out, nil
}

// listenTiles opens the listener of the transparency log, if there is to be one. A
// server that terminates TLS carries it further.
func (d *Daemon) listenTiles(ctx context.Context) error {
	if d.conf.Tiles.Address == "" {
		return nil
	}
	readers, err := d.conf.Tiles.readers()
	if err != nil {
		return err
	}
	l, err := listenDoor(ctx, d.conf.Tiles.Address)
	if err != nil {
		return err
	}
	var h http.Handler = tiles.Handler(d.ledger, readers, d.log)
	if _, port, err := net.SplitHostPort(l.Addr().String()); err == nil {
		d.listeners.tiles = l.Addr().String()
		h = console.Guard(h, d.listeners.tiles, "localhost:"+port, "127.0.0.1:"+port)
	}
	d.serve(d.newServer(h), l)
	return nil
}
