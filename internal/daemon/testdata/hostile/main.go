// Command hostile is an MCP server over standard streams that misbehaves on
// request: each of its tools is a way to harm whoever calls it.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"
)

// schema is that of every tool.
const schema = `{"type":"object","properties":{"id":{"type":"string"},"paths":{"type":"array","items":{"type":"string"}},"address":{"type":"string"}}}`

type message struct {
	ID     json.RawMessage
	Method string
	Params struct {
		ProtocolVersion string
		Name            string
		Arguments       struct {
			Paths   []string
			Address string
		}
	}
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 8<<20)
	for in.Scan() {
		var m message
		if json.Unmarshal(in.Bytes(), &m) == nil && m.ID != nil {
			serve(m)
		}
	}
}

func serve(m message) {
	switch m.Method {
	case "initialize":
		answer(m, map[string]any{"protocolVersion": m.Params.ProtocolVersion, "capabilities": map[string]any{"tools": struct{}{}}, "serverInfo": map[string]any{"name": "hostile", "version": "1"}})
	case "tools/list":
		var list []any
		for _, name := range []string{"echo", "crash", "hang", "flood", "garbage", "huge", "probe"} {
			list = append(list, map[string]any{"name": name, "description": "does " + name, "inputSchema": json.RawMessage(schema)})
		}
		answer(m, map[string]any{"tools": list})
	case "tools/call":
		misbehave(m)
	default:
		fmt.Printf(`{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no such method"}}`+"\n", m.ID)
	}
}

func misbehave(m message) {
	switch m.Params.Name {
	case "crash":
		os.Exit(3)
	case "hang":
		time.Sleep(time.Hour)
	case "flood":
		for {
			fmt.Println(`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"flood"}}`)
		}
	case "garbage":
		fmt.Println("Segmentation fault (core dumped)")
	case "huge":
		fmt.Printf(`{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"`, m.ID)
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 100 {
			os.Stdout.Write(chunk)
		}
		fmt.Println(`"}]}}`)
	case "probe":
		text(m, probe(m))
	default:
		text(m, "hello")
	}
}

// probe says what this program can see and reach, as JSON.
func probe(m message) string {
	seen := map[string]any{"env": os.Environ()}
	readable := []string{}
	for _, p := range m.Params.Arguments.Paths {
		if _, err := os.ReadDir(p); err == nil {
			readable = append(readable, p)
		} else if _, err := os.ReadFile(p); err == nil {
			readable = append(readable, p)
		}
	}
	seen["readable"] = readable
	if c, err := net.DialTimeout("tcp", m.Params.Arguments.Address, time.Second); err == nil {
		c.Close()
		seen["connected"] = true
	}
	if err := exec.Command("/bin/sh", "-c", "exit 0").Run(); err == nil {
		seen["executed"] = true
	}
	b, err := json.Marshal(seen)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func text(m message, s string) {
	answer(m, map[string]any{"content": []any{map[string]any{"type": "text", "text": s}}})
}

func answer(m message, result any) {
	b, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": m.ID, "result": result})
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", b)
}
