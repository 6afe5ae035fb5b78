package process

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/pilox/vault/internal/sandbox"
)

// orders is what the runner tells an init, as JSON in a memory file. Both ends
// are the same binary, so the form is nobody's contract; it is decoded strictly
// all the same.
type orders struct {
	Argv   []string `json:"argv"`
	Env    []string `json:"env"`
	Dir    string   `json:"dir"`
	Views  []view   `json:"views"`
	Grants []grant  `json:"grants"`
	Tmp    int64    `json:"tmp"`
	Extra  int      `json:"extra"` // files after the guest's stdio
	Proxy  bool     `json:"proxy"`
	Limits rlimits  `json:"limits"`

	Landlock int  `json:"landlock"` // ABI to enforce; 0 = this host has none
	Seccomp  bool `json:"seccomp"`
	Probe    bool `json:"probe"` // a self-test: try each layer before the guest runs
}

// A view is one mount. File is the descriptor of a detached mount that the
// runner made because it may, or 0: init clones Host itself.
type view struct {
	Host     string `json:"host"`
	Guest    string `json:"guest"`
	File     int    `json:"file,omitempty"`
	Writable bool   `json:"writable,omitempty"`
	Device   bool   `json:"device,omitempty"`
	IsDir    bool   `json:"is_dir,omitempty"`
}

// A grant is one Landlock rule. A view without a grant is visible and closed.
type grant struct {
	Path  string `json:"path"`
	Write bool   `json:"write,omitempty"`
	Exec  bool   `json:"exec,omitempty"`
}

// rlimits are the per-process bounds; 0 leaves one alone.
type rlimits struct {
	CPU       uint64 `json:"cpu"` // seconds
	FileSize  uint64 `json:"file_size"`
	OpenFiles uint64 `json:"open_files"`
	Data      uint64 `json:"data"`
	Tasks     uint64 `json:"tasks"`
}

// maxOrders bounds the orders: 256 KiB of arguments, environment and mounts,
// twice for JSON escapes, and room for the rest.
const maxOrders = 1 << 20

func readOrders(r io.Reader) (orders, error) {
	var o orders
	b, err := io.ReadAll(io.LimitReader(r, maxOrders+1))
	if err != nil {
		return o, fmt.Errorf("read orders: %w", err)
	}
	if len(b) > maxOrders {
		return o, fmt.Errorf("orders exceed %d bytes", maxOrders)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return o, fmt.Errorf("decode orders: %w", err)
	}
	return o, nil
}

// A message is what init says on the control socket.
type message struct {
	Error    string          `json:"error,omitempty"`
	Probes   []sandbox.Check `json:"probes,omitempty"`
	Started  bool            `json:"started,omitempty"`
	Exit     *exitMessage    `json:"exit,omitempty"`
	Listener bool            `json:"listener,omitempty"` // a descriptor comes with it
	Timing   *timingMessage  `json:"timing,omitempty"`
}

type exitMessage struct {
	Code   int    `json:"code"`
	Signal int    `json:"signal"`
	Name   string `json:"name"`
}

type timingMessage struct {
	MountsNS   int64 `json:"mounts_ns"`
	RestrictNS int64 `json:"restrict_ns"`
}

// maxMessage bounds one message: a failed self-test names two dozen checks.
const maxMessage = 64 << 10
