package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/sandbox"
)

// A Process is a running guest. Its methods are safe for concurrent use. Whoever
// started it calls Close, or Wait and closes the pipes.
type Process struct {
	// Stdin, Stdout and Stderr are the other ends of the guest's, unless the Spec
	// gave files; nil then. They are pipes: a guest that floods one blocks, and
	// nothing is buffered here. Read Stdout and Stderr, or the guest hangs.
	Stdin  io.WriteCloser
	Stdout io.ReadCloser
	Stderr io.ReadCloser

	log       *slog.Logger
	grade     vault.Grade
	proc      *os.Process
	control   *net.UnixConn
	group     *cgroup // nil on a host without
	cancel    context.CancelFunc
	proxies   sync.WaitGroup
	startTook time.Duration
	timing    timingMessage

	waited chan struct{} // closed when init is reaped
	done   chan struct{} // closed when nothing is left

	mu    sync.Mutex
	cause Reason // why we killed it; the first wins
	exit  Exit   // set before done is closed
	last  Stats  // of the groups before they went
}

// makePipes fills in the pipes and returns the guest's ends.
func (p *Process) makePipes(spec *Spec, inherited *files) ([3]*os.File, error) {
	ends := [3]*os.File{spec.Stdin, spec.Stdout, spec.Stderr}
	for i := range ends {
		if ends[i] != nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return ends, fmt.Errorf("pipe: %w", err)
		}
		switch i {
		case 0:
			ends[i], p.Stdin = r, w
		case 1:
			ends[i], p.Stdout = w, r
		case 2:
			ends[i], p.Stderr = w, r
		}
		*inherited = append(*inherited, ends[i])
	}
	return ends, nil
}

func (p *Process) closePipes() {
	for _, c := range []io.Closer{p.Stdin, p.Stdout, p.Stderr} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// handshake lets the init go and waits until it says that the guest runs.
func (p *Process) handshake(ctx context.Context, spec *Spec, timeout time.Duration) ([]sandbox.Check, error) {
	if p.group != nil {
		if err := p.group.add(p.proc.Pid); err != nil {
			return nil, err
		}
	}
	if err := p.control.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := p.control.Write([]byte{1}); err != nil {
		return nil, fmt.Errorf("let init go: %w", err)
	}
	for {
		m, l, err := p.receive()
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, fmt.Errorf("init did not answer: %w", err)
		case m.Error != "":
			return nil, errors.New(m.Error)
		case l != nil && spec.Proxy != nil:
			p.proxies.Go(func() { p.serveProxy(ctx, l, spec.Proxy) })
		case l != nil:
			l.Close()
			return nil, errors.New("init sent a listener nobody asked for")
		case m.Started:
			if m.Timing != nil {
				p.timing = *m.Timing
			}
			if !stop() {
				return nil, context.Cause(ctx)
			}
			return m.Probes, p.control.SetDeadline(time.Time{})
		}
	}
}

// receive reads one message, with the listener that came along.
func (p *Process) receive() (m message, l net.Listener, err error) {
	b := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := p.control.ReadMsgUnix(b, oob)
	if err != nil {
		return m, nil, err
	}
	if n == 0 {
		return m, nil, io.EOF
	}
	if oobn > 0 {
		if l, err = listenerOf(oob[:oobn]); err != nil {
			return m, nil, err
		}
	}
	if err := json.Unmarshal(b[:n], &m); err != nil {
		if l != nil {
			l.Close()
		}
		return m, nil, fmt.Errorf("decode message: %w", err)
	}
	return m, l, nil
}

func listenerOf(oob []byte) (net.Listener, error) {
	cms, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(cms) != 1 {
		return nil, errors.New("malformed control message")
	}
	fds, err := unix.ParseUnixRights(&cms[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("malformed descriptor message")
	}
	f := os.NewFile(uintptr(fds[0]), "proxy")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("proxy listener: %w", err)
	}
	return l, nil
}

// maxProxied bounds the connections a guest may have open at once. npm opens 15.
const maxProxied = 64

// serveProxy accepts what the guest sends to sandbox.ProxyAddr until it is gone.
func (p *Process) serveProxy(ctx context.Context, l net.Listener, serve func(context.Context, net.Conn)) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	slots := make(chan struct{}, maxProxied)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil {
				p.log.ErrorContext(ctx, "accept from guest", "err", err)
			}
			return
		}
		select {
		case slots <- struct{}{}:
		default: // more than it may have
			conn.Close()
			continue
		}
		p.proxies.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			serve(ctx, conn)
		})
	}
}

// supervise watches over the guest until nothing of it is left.
func (p *Process) supervise(ctx context.Context, wall time.Duration) {
	go func() {
		stop := context.AfterFunc(ctx, func() { p.kill(Killed) })
		timer := time.AfterFunc(wall, func() { p.kill(TimedOut) })
		var said *exitMessage
		for {
			m, l, err := p.receive()
			if l != nil {
				l.Close() // only a handshake expects one
			}
			if err != nil {
				break // init is gone
			}
			if m.Exit != nil {
				said = m.Exit
			}
		}
		// An init that closed its socket and lives on is not one of ours.
		_ = p.proc.Kill()
		<-p.waited
		stop()
		timer.Stop()
		p.control.Close()
		p.cancel()
		p.proxies.Wait()
		p.finish(said)
		close(p.done)
	}()
}

// finish notes how the guest ended and removes its groups.
func (p *Process) finish(said *exitMessage) {
	oom := p.group != nil && p.group.oomKills() > 0
	p.mu.Lock()
	if p.group != nil {
		p.last = p.group.stats()
	}
	switch {
	case said != nil && said.Signal == int(unix.SIGKILL) && oom, said == nil && p.cause == "" && oom:
		p.exit = Exit{Reason: OOM, Code: -1, Signal: "SIGKILL"}
	case said != nil && said.Signal != 0:
		p.exit = Exit{Reason: Signaled, Code: -1, Signal: said.Name}
	case said != nil:
		p.exit = Exit{Reason: Exited, Code: said.Code}
	case p.cause != "":
		p.exit = Exit{Reason: p.cause, Code: -1, Signal: "SIGKILL"}
	default:
		p.exit = Exit{Reason: Killed, Code: -1, Signal: "SIGKILL"}
	}
	p.mu.Unlock()
	if err := p.removeGroup(); err != nil {
		p.log.Error("clean up after jail", "err", err)
	}
}

func (p *Process) removeGroup() error {
	if p.group == nil {
		return nil
	}
	return p.group.remove()
}

func (p *Process) kill(why Reason) {
	p.mu.Lock()
	if p.cause == "" {
		p.cause = why
	}
	p.mu.Unlock()
	// The only error is that it is gone already. The handle is a pidfd, so no
	// other process can be hit.
	_ = p.proc.Kill()
}

// Kill ends the guest and everything it started: the kernel kills a whole pid
// namespace with its init. It does not wait; see Wait.
func (p *Process) Kill() { p.kill(Killed) }

// Wait blocks until the guest and everything of it is gone, and returns how it
// ended. It may be called any number of times. What is still in the pipes stays
// readable.
func (p *Process) Wait() Exit {
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// Done returns a channel that is closed when Wait would not block.
func (p *Process) Done() <-chan struct{} { return p.done }

// Close kills the guest, waits until it is gone and closes the pipes.
func (p *Process) Close() error {
	p.Kill()
	p.Wait()
	p.closePipes()
	return nil
}

// Pid returns the host's id of the guest's init.
func (p *Process) Pid() int { return p.proc.Pid }

// Grade returns what isolation the guest runs under.
func (p *Process) Grade() vault.Grade { return p.grade }

// Stats returns what the guest uses, or had used at its end.
func (p *Process) Stats() Stats {
	p.mu.Lock()
	s := p.last
	p.mu.Unlock()
	if !s.Known && p.group != nil {
		select {
		case <-p.done:
		default:
			s = p.group.stats()
		}
	}
	s.Mounts = time.Duration(p.timing.MountsNS)
	s.Restrict = time.Duration(p.timing.RestrictNS)
	s.Start = p.startTook
	return s
}
