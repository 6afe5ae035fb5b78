package console

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// A Peer is the process at the other end of a Unix socket when it connected. The
// pid can be another process's by now; decide on the uid.
type Peer struct{ UID, PID int }

type peerKey struct{}

// PeerOf returns the credentials that the kernel recorded for a Unix socket
// connection. For any other connection, or on a system without them, it fails.
func PeerOf(conn net.Conn) (uid, pid int, err error) {
	sc, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, 0, errors.New("peer credentials: not a Unix socket")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, 0, fmt.Errorf("peer credentials: %w", err)
	}
	var perr error
	if err := raw.Control(func(fd uintptr) { uid, pid, perr = peerCred(int(fd)) }); err != nil {
		perr = err
	}
	if perr != nil {
		return 0, 0, fmt.Errorf("peer credentials: %w", perr)
	}
	return uid, pid, nil
}

// ConnContext is for [net/http.Server]: it keeps the peer of a Unix connection in
// the context of its requests. Without credentials the context is unchanged, and
// [PeerFrom] says so.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	uid, pid, err := PeerOf(conn)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, Peer{uid, pid})
}

// PeerFrom returns what [ConnContext] found.
func PeerFrom(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}
