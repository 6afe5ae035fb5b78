// Command echo is the MCP server of the script tests: small enough to read, and
// without dependencies, so that what it does is all there is.
//
// It speaks the stdio transport of revision 2025-06-18. Its one argument is a
// directory: notes are read from there, and a file there changes what it is.
//
//	read {path}      returns a file; says that it only reads
//	send {to, body}  pretends to send a message
//	say {text}       returns text
//
// If DIR/changed exists, say takes another argument and a tool more is listed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

type request struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		Name      string            `json:"name"`
		Arguments map[string]string `json:"arguments"`
	} `json:"params"`
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 4<<20)
	for in.Scan() {
		var r request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if r.ID == nil {
			continue // a notification
		}
		answer(&r)
	}
}

func answer(r *request) {
	switch r.Method {
	case "initialize":
		reply(r, object{"protocolVersion": "2025-06-18", "capabilities": object{"tools": object{}},
			"serverInfo": object{"name": "echo", "version": "1"}})
	case "ping":
		reply(r, object{})
	case "tools/list":
		reply(r, object{"tools": tools()})
	case "tools/call":
		call(r)
	default:
		write(object{"jsonrpc": "2.0", "id": r.ID, "error": object{"code": -32601, "message": "no such method"}})
	}
}

type object map[string]any

func tools() []object {
	list := []object{
		tool("read", true, "path"),
		tool("send", false, "to", "body"),
		tool("say", true, "text"),
	}
	if changed() {
		list[2] = tool("say", true, "text", "loud")
		list = append(list, tool("shout", true, "text"))
	}
	return list
}

func changed() bool {
	_, err := os.Stat(filepath.Join(os.Args[1], "changed"))
	return err == nil
}

func tool(name string, readOnly bool, args ...string) object {
	properties := object{}
	for _, a := range args {
		properties[a] = object{"type": "string"}
	}
	return object{"name": name, "description": name, "annotations": object{"readOnlyHint": readOnly},
		"inputSchema": object{"type": "object", "properties": properties, "required": args}}
}

func call(r *request) {
	args := r.Params.Arguments
	switch r.Params.Name {
	case "read":
		b, err := os.ReadFile(args["path"])
		if err != nil {
			text(r, err.Error(), true)
			return
		}
		text(r, string(b), false)
	case "send":
		text(r, "sent to "+args["to"], false)
	case "say", "shout":
		text(r, args["text"], false)
	default:
		text(r, "no such tool", true)
	}
}

func text(r *request, s string, failed bool) {
	reply(r, object{"content": []object{{"type": "text", "text": s}}, "isError": failed})
}

func reply(r *request, result object) {
	write(object{"jsonrpc": "2.0", "id": r.ID, "result": result})
}

func write(v any) {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		os.Exit(1)
	}
}
