//go:build !unix

package main

import "context"

// startPostgres starts nothing on this system.
func startPostgres(context.Context, string) (string, func(), error) { return "", nil, errNoPostgres }
