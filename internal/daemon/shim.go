package daemon

import (
	"context"
	"io"
	"log/slog"
	"net/http"

	"github.com/pilox/vault/internal/mcp"
)

// Shim carries MCP between standard streams and a daemon until in ends.
func Shim(ctx context.Context, in io.Reader, out io.Writer, client *http.Client, url string, header http.Header, log *slog.Logger) error {
	return mcp.RunShim(ctx, mcp.ShimConfig{In: in, Out: out, Client: client, URL: url, Header: header, Log: log})
}
