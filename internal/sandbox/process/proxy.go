package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Bounds of one proxied connection.
const (
	maxRequestHead = 8 << 10          // a CONNECT with its headers is some 200 bytes
	requestTimeout = 10 * time.Second // to send it; a guest has no reason to dawdle
	dialTimeout    = 15 * time.Second
)

// A DialFunc opens the connection that a guest asked for.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// ConnectProxy returns a [Spec].Proxy that speaks HTTP CONNECT (RFC 9110, section
// 9.3.6) and nothing else: plain requests get 405, a host and port that allow
// does not approve 403, a failed dial 502. host is lower case without a trailing
// dot and may be an IP literal; allow decides about those too. A nil allow
// refuses everything.
//
// A nil dial is [DialPublic]. The bytes inside the tunnel are not looked at: that
// the TLS name is the CONNECT name is for egress to check.
func ConnectProxy(allow func(host string, port int) bool, dial DialFunc) func(context.Context, net.Conn) {
	if dial == nil {
		dial = DialPublic
	}
	return func(ctx context.Context, conn net.Conn) {
		defer conn.Close()
		// The end of the guest ends the tunnel, also while it is idle.
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		_ = conn.SetDeadline(time.Now().Add(requestTimeout))
		br := bufio.NewReaderSize(conn, maxRequestHead)
		host, port, status := readConnect(br)
		if status == 0 && (allow == nil || !allow(host, port)) {
			status = http.StatusForbidden
		}
		var up net.Conn
		if status == 0 {
			dctx, cancel := context.WithTimeout(ctx, dialTimeout)
			var err error
			up, err = dial(dctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
			cancel()
			if err != nil {
				status = http.StatusBadGateway
				if errors.Is(err, ErrAddress) {
					status = http.StatusForbidden
				}
			}
		}
		if status != 0 {
			fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status, http.StatusText(status))
			return
		}
		defer up.Close()
		stopUp := context.AfterFunc(ctx, func() { up.Close() })
		defer stopUp()
		_ = conn.SetDeadline(time.Time{})
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			return
		}
		tunnel(conn, br, up)
	}
}

// readConnect reads the request head. A status other than 0 refuses it.
func readConnect(br *bufio.Reader) (host string, port, status int) {
	var head *bufio.Reader
	// Find the end of the head in the buffer, so that no byte behind it is lost
	// and none beyond the bound is read.
	for n := 1; ; n = br.Buffered() + 1 {
		b, err := br.Peek(n)
		if len(b) < br.Buffered() {
			b, _ = br.Peek(br.Buffered())
		}
		if i := strings.Index(string(b), "\r\n\r\n"); i >= 0 {
			head = bufio.NewReader(strings.NewReader(string(b[:i+4])))
			if _, err := br.Discard(i + 4); err != nil {
				return "", 0, http.StatusBadRequest
			}
			break
		}
		if errors.Is(err, bufio.ErrBufferFull) || n > maxRequestHead {
			return "", 0, http.StatusRequestHeaderFieldsTooLarge
		}
		if err != nil {
			return "", 0, http.StatusBadRequest
		}
	}
	req, err := http.ReadRequest(head)
	if err != nil {
		return "", 0, http.StatusBadRequest
	}
	if req.Method != http.MethodConnect {
		return "", 0, http.StatusMethodNotAllowed
	}
	host, port, err = splitTarget(req.RequestURI)
	if err != nil || req.ContentLength > 0 || len(req.TransferEncoding) > 0 {
		return "", 0, http.StatusBadRequest
	}
	return host, port, 0
}

// splitTarget parses the authority form "host:port" of a CONNECT target.
func splitTarget(s string) (string, int, error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil || port == 0 || strconv.FormatUint(port, 10) != p {
		return "", 0, fmt.Errorf("port %q", p)
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return "", 0, fmt.Errorf("zone in %q", host)
		}
		return a.Unmap().String(), int(port), nil
	}
	if host == "" || len(host) > 253 {
		return "", 0, fmt.Errorf("host %q", host)
	}
	for _, r := range host {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_' {
			return "", 0, fmt.Errorf("host %q", host)
		}
	}
	// A host whose last label is a number is an IP address to some resolvers
	// (2130706433, 0x7f.1) and a name to others. No public name looks so.
	last := host[strings.LastIndexByte(host, '.')+1:]
	if last == "" || last[0] >= '0' && last[0] <= '9' {
		return "", 0, fmt.Errorf("host %q looks like an address", host)
	}
	return host, int(port), nil
}

func tunnel(conn net.Conn, fromConn io.Reader, up net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(up, fromConn)
		closeWrite(up)
	})
	_, _ = io.Copy(conn, up)
	closeWrite(conn)
	wg.Wait()
}

// closeWrite passes an end of file on. What cannot be half closed is closed: the
// other copy then ends too.
func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
		return
	}
	_ = c.Close()
}

// ErrAddress says that an address may never be reached from a sandbox.
var ErrAddress = errors.New("address is not public")

// DialPublic dials address and refuses every one that is not public unicast:
// loopback, private, link-local with the cloud metadata service, shared and
// documentation ranges. It looks at the address the socket connects to, after
// name resolution, so that a name cannot lead inside.
func DialPublic(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil || !public(ap.Addr()) {
			return ErrAddress
		}
		return nil
	}}
	return d.DialContext(ctx, network, address)
}

// public reports whether a is a global unicast address that no registry reserves
// (IANA special-purpose address registries).
func public(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.Zone() != "" {
		return false
	}
	for _, s := range [...]string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16",
	} {
		if netip.MustParsePrefix(s).Contains(a) {
			return false
		}
	}
	return true
}
