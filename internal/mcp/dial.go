package mcp

import (
	"context"
	"net/http"
	"time"

	"github.com/pilox/vault"
)

// A Server is one registered upstream.
type Server struct {
	ID   vault.ServerID
	Name string // registered name, for people and for names an agent sees
	Dial Dialer // how to reach it

	// PerTask gives every task a connection (and for stdio a process) of its own.
	// Zero shares one among the tasks of a tenant.
	PerTask bool
	// Timeout bounds one call. Zero means 60 s.
	Timeout time.Duration
}

// HTTPConfig says how to reach a server over Streamable HTTP.
type HTTPConfig struct {
	// URL is the endpoint. It must be https, or http to a loopback address with
	// AllowLoopback.
	URL           string
	AllowLoopback bool
	// Authorize adds credentials to a request that is about to leave. Nil adds none.
	// No header of an agent ever goes upstream.
	Authorize func(context.Context, http.Header) error
	// Transport carries the requests. Nil means a transport of its own that keeps
	// connections alive and uses no proxy. Redirects are never followed.
	Transport http.RoundTripper
}
