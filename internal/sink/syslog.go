package sink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// A syslogTarget sends messages to a syslog server, one connection for a batch. Syslog
// has no acknowledgement, but a server that has read to the end of a connection
// closes it: a batch counts as delivered when it has.
type syslogTarget struct {
	address string
	tls     *tls.Config // nil: plain, on loopback
	format  Format
}

// parseAddress reads tls://host:port or tcp://host:port.
func parseAddress(s string) (address string, secure bool, err error) {
	scheme, address, ok := strings.Cut(s, "://")
	host, port, splitErr := net.SplitHostPort(address)
	if _, err := strconv.ParseUint(port, 10, 16); !ok || splitErr != nil || host == "" || err != nil {
		return "", false, fmt.Errorf("address %q: want tls://host:port", s)
	}
	switch {
	case scheme == "tls":
		return address, true, nil
	case scheme == "tcp" && loopback(host):
		return address, false, nil
	}
	return "", false, fmt.Errorf("address %q: want tls://host:port; tcp:// only on loopback", s)
}

func newSyslog(address, ca string, f Format) (*syslogTarget, error) {
	addr, secure, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	t := &syslogTarget{address: addr, format: f}
	if !secure {
		return t, nil
	}
	if t.tls, err = tlsConfig(ca); err != nil {
		return nil, err
	}
	t.tls.ServerName, _, _ = net.SplitHostPort(addr)
	return t, nil
}

func (t *syslogTarget) send(ctx context.Context, batch []View) error {
	b, err := frames(batch, t.format)
	if err != nil {
		return err
	}
	var c net.Conn
	if t.tls != nil {
		c, err = (&tls.Dialer{Config: t.tls}).DialContext(ctx, "tcp", t.address)
	} else {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", t.address)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })() // a dead context ends what waits
	if _, err := c.Write(b); err != nil {
		return err
	}
	end, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return errors.New("a connection that cannot be closed on one side")
	}
	if err := end.CloseWrite(); err != nil {
		return err
	}
	// It has nothing to say; what it says all the same is bounded.
	n, err := io.Copy(io.Discard, io.LimitReader(c, maxAnswer))
	switch {
	case err != nil:
		return fmt.Errorf("the receiver did not close the connection, so it is not known what it read: %w", err)
	case n == maxAnswer:
		return errors.New("the receiver talks, and syslog goes one way")
	}
	return nil
}

// frames are messages with their length before them (RFC 6587, section 3.4.1).
func frames(batch []View, f Format) (b []byte, err error) {
	var m []byte
	for i := range batch {
		if m, err = AppendSyslog(m[:0], &batch[i], f); err != nil {
			return nil, err
		}
		b = append(strconv.AppendInt(b, int64(len(m)), 10), ' ')
		b = append(b, m...)
	}
	return b, nil
}
