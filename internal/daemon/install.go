package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/pilox/vault/internal/sandbox"
	"github.com/pilox/vault/internal/sandbox/process"
	"github.com/pilox/vault/internal/tool"
)

// An installer runs npm in a jail whose network is the registry and nothing else.
type installer struct{ d *Daemon }

// Run runs spec to its end.
func (i installer) Run(ctx context.Context, spec tool.InstallSpec) error {
	hosts := spec.Hosts
	s := sandbox.Spec{
		Argv:     spec.Argv,
		Dir:      spec.Dir,
		Env:      map[string]string{"https_proxy": "http://" + sandbox.ProxyAddr, "http_proxy": "http://" + sandbox.ProxyAddr},
		MinGrade: i.d.minGrade(),
		Limits:   sandbox.Limits{Memory: 2 << 30, Pids: 128, OpenFiles: 4096},
		Proxy: process.ConnectProxy(func(host string, port int) bool {
			return slices.Contains(hosts, net.JoinHostPort(host, strconv.Itoa(port)))
		}, new(net.Dialer).DialContext),
	}
	for _, e := range spec.Env {
		k, v, _ := strings.Cut(e, "=")
		s.Env[k] = v
	}
	for _, p := range spec.ReadOnly {
		s.ReadOnly = append(s.ReadOnly, sandbox.Mount{Host: p})
	}
	for _, p := range spec.ReadWrite {
		s.ReadWrite = append(s.ReadWrite, sandbox.Mount{Host: p})
	}
	if err := give(spec.ReadWrite, guestUID); err != nil {
		return fmt.Errorf("hand the directory to the installer: %w", err)
	}
	p, err := i.d.jail.Start(ctx, s)
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }() // by then it has ended or must
	done := make(chan error, 2)
	for _, r := range []io.Reader{p.Stdout, p.Stderr} {
		go func() {
			_, err := io.Copy(spec.Log, r)
			done <- err
		}()
	}
	_ = p.Stdin.Close() // the installer has nothing to read
	e := p.Wait()
	for range 2 {
		if err := <-done; err != nil && ctx.Err() == nil {
			i.d.log.DebugContext(ctx, "installer output lost", "err", err)
		}
	}
	if e.Reason != process.Exited || e.Code != 0 {
		return fmt.Errorf("%s ended: %s, code %d %s", filepath.Base(spec.Argv[0]), e.Reason, e.Code, e.Signal)
	}
	// Nothing of the installer runs any more: what it wrote becomes ours.
	if err := give(spec.ReadWrite, os.Getuid()); err != nil {
		return fmt.Errorf("take the directory back: %w", err)
	}
	return ctx.Err()
}

// guestUID is the host's uid of guests when the daemon is root. A plain user's
// guests have its own uid, and nothing has to change hands.
const guestUID = 65534

// give changes the owner of everything below dirs, links themselves and not what
// they point to. It does nothing unless the daemon is root.
func give(dirs []string, uid int) error {
	if os.Getuid() != 0 {
		return nil
	}
	for _, dir := range dirs {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		err = fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return root.Lchown(path, uid, uid)
		})
		if err := errors.Join(err, root.Close()); err != nil {
			return err
		}
	}
	return nil
}

// tail keeps the end of what an installer prints, for its error. Both of the
// installer's streams are written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const maxTail = 4096

// Write keeps the last bytes.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > maxTail {
		t.b = append(t.b[:0], t.b[len(t.b)-maxTail:]...)
	}
	return len(p), nil
}

func (t *tail) quoted() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := bytes.TrimSpace(t.b)
	if len(b) == 0 {
		return ""
	}
	return fmt.Sprintf(" (it printed: %q)", b)
}
