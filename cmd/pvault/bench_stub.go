package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"github.com/spf13/cobra"
)

// benchStub is the server behind the gateway that pvault bench measures: MCP
// 2026-07-28 over Streamable HTTP, with nothing that takes time. It is a process
// of its own, so that what it costs is not taken for the gateway's.
func (a *app) benchStub() *cobra.Command {
	return &cobra.Command{
		Use:    "bench-stub",
		Short:  "The MCP server that pvault bench puts behind the gateway",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := new(net.ListenConfig).Listen(cmd.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(a.out, "http://%s/mcp\n", l.Addr()); err != nil {
				return errors.Join(err, l.Close())
			}
			// It ends with whoever started it: their end of standard input closes.
			go func() {
				_, _ = io.Copy(io.Discard, a.in)
				l.Close()
			}()
			return serveStub(l)
		},
	}
}

// What the stub offers and answers.
const (
	benchTool = "read_invoice"

	stubDiscover = `{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"serverInfo":{"name":"stub","version":"1"},"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"stub","version":"1"}}}`
	stubTools    = `{"resultType":"complete","ttlMs":0,"cacheScope":"private","tools":[{"name":"` + benchTool + `","description":"Read one invoice.",` +
		`"inputSchema":{"type":"object","properties":{"path":{"type":"string","maxLength":4096},"max":{"type":"integer","minimum":1},"encoding":{"type":"string","enum":["utf-8","latin-1"]}},"required":["path","max","encoding"],"additionalProperties":false},` +
		`"outputSchema":{"type":"object","properties":{"number":{"type":"string"},"customer":{"type":"string"},"total":{"type":"number"},"currency":{"type":"string"},"due":{"type":"string"}},"required":["number","total"]},` +
		`"annotations":{"readOnlyHint":true}}]}`
	stubResult = `{"resultType":"complete","content":[{"type":"text","text":"Invoice 2026-0017 for anna@customer.example: 120.50 EUR, due on 2026-12-01."}],` +
		`"structuredContent":{"number":"2026-0017","customer":"anna@customer.example","total":120.5,"currency":"EUR","due":"2026-12-01"}}`
	stubUnknown = `{"code":-32601,"message":"method not found"}`
)

// serveStub answers until l is closed.
func serveStub(l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	for {
		c, err := l.Accept()
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			for c := range open {
				c.Close()
			}
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		mu.Lock()
		open[c] = true
		mu.Unlock()
		wg.Go(func() {
			stubConn(c)
			mu.Lock()
			delete(open, c)
			mu.Unlock()
		})
	}
}

// stubConn answers the requests of one connection. Both of its clients put the id
// before anything else that could be taken for one.
func stubConn(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 16<<10)
	var head httpHead
	var out, body []byte
	for {
		if err := head.read(r); err != nil {
			return
		}
		n := max(head.length, 0)
		if n > 1<<20 {
			return
		}
		if cap(body) < n {
			body = make([]byte, n)
		}
		body = body[:n]
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		out = stubAnswer(out[:0], head.method, body)
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// stubAnswer appends the whole HTTP answer to one request.
func stubAnswer(b []byte, method string, body []byte) []byte {
	_, id, ok := bytes.Cut(body, []byte(`"id":`))
	if !ok { // a notification
		return append(b, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"...)
	}
	id, _, _ = bytes.Cut(id, []byte(","))
	status, kind, answer := "200 OK", "result", stubResult
	switch method {
	case "tools/call":
	case "server/discover":
		answer = stubDiscover
	case "tools/list":
		answer = stubTools
	default:
		status, kind, answer = "404 Not Found", "error", stubUnknown
	}
	const frame = `{"jsonrpc":"2.0","id":,"":}`
	b = append(append(b, "HTTP/1.1 "...), status...)
	b = append(b, "\r\nContent-Type: application/json\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(frame)+len(id)+len(kind)+len(answer)), 10)
	b = append(append(b, "\r\n\r\n"+`{"jsonrpc":"2.0","id":`...), id...)
	b = append(append(append(b, `,"`...), kind...), `":`...)
	return append(append(b, answer...), '}')
}
