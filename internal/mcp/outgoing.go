package mcp

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/pilox/vault"
)

// stripReserved removes the protocol's own keys from _meta of an object, and progress tokens:
// they mean something on one connection only.
func stripReserved(object json.RawMessage) json.RawMessage {
	meta := member(object, "_meta")
	if meta == nil || meta[0] != '{' {
		return object
	}
	kept := []byte{'{'}
	err := members(meta, func(key, val []byte) error {
		if len(key) >= len(reservedMeta) && string(key[:len(reservedMeta)]) == reservedMeta || string(key) == "progressToken" {
			return nil
		}
		if len(kept) > 1 {
			kept = append(kept, ',')
		}
		kept = append(appendQuoted(kept, string(key)), ':')
		kept = append(kept, val...)
		return nil
	})
	if err != nil {
		return object
	}
	return replaceMember(object, "_meta", append(kept, '}'))
}

// toModern adds what results have in the era without sessions.
func toModern(raw json.RawMessage, typed bool, method string) json.RawMessage {
	if typed {
		return raw
	}
	b := append([]byte(nil), `{"resultType":"complete"`...)
	if method == methodResourcesRead {
		// A server of the other era may send them already; the SDK does over stdio.
		if member(raw, "ttlMs") == nil {
			b = append(b, `,"ttlMs":0`...)
		}
		if member(raw, "cacheScope") == nil {
			b = append(b, `,"cacheScope":"private"`...)
		}
	}
	if len(raw) > len("{}") {
		b = append(b, ',')
	}
	return append(b, raw[1:]...)
}

// toLegacy removes what results of the other era do not have.
func toLegacy(raw json.RawMessage) json.RawMessage {
	b := []byte{'{'}
	_ = members(stripReserved(raw), func(key, val []byte) error { // scanned before
		switch string(key) {
		case "resultType", "ttlMs", "cacheScope":
			return nil
		case "_meta":
			if string(val) == "{}" {
				return nil
			}
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(appendQuoted(b, string(key)), ':')
		b = append(b, val...)
		return nil
	})
	return append(b, '}')
}

// outgoing makes the request of a call: exactly what was decided and nothing else.
func outgoing(c *vault.Call) (method string, params []byte, meta requestMeta, err error) {
	root := c.Params.Root()
	method, _ = root.Get("method").Str()
	if method == "" {
		switch c.Kind {
		case vault.KindTool:
			method = methodToolsCall
		case vault.KindResource:
			method = methodResourcesRead
		case vault.KindPrompt:
			method = methodPromptsGet
		default: // no method of MCP; refused below
		}
	}
	meta.name = c.Target.Name
	args := c.Args.String()
	if args == "" {
		args = "{}"
	}
	b := make([]byte, 0, len(args)+len(c.Params.String())+len(c.Target.Name)+64)
	switch {
	case method == methodComplete:
		b, err = appendCompletion(b, c)
		return method, b, meta, err
	case method == methodToolsCall && c.Kind == vault.KindTool, method == methodPromptsGet && c.Kind == vault.KindPrompt:
		b = append(append(b, `{"arguments":`...), args...)
		b = vault.AppendQuoted(append(b, `,"name":`...), c.Target.Name)
	case (method == methodResourcesRead || method == methodSubscribe) && c.Kind == vault.KindResource:
		b = vault.AppendQuoted(append(b, `{"uri":`...), c.Target.Name)
	default:
		return "", nil, meta, fmt.Errorf("method %q does not go with kind %q", method, c.Kind)
	}
	for key, v := range root.All() {
		switch key {
		case "method":
			continue
		case "_meta":
			meta.extra = json.RawMessage(v.Raw())
			continue
		}
		b = append(vault.AppendQuoted(append(b, ','), key), ':')
		b = append(b, v.Raw()...)
	}
	return method, append(b, '}'), meta, nil
}

// appendCompletion is the inverse of makeCompletion.
func appendCompletion(b []byte, c *vault.Call) ([]byte, error) {
	name, ok := c.Params.Root().Get("argument").Str()
	value := c.Args.Root().Get(name)
	if !ok || value.Kind() != vault.String {
		return nil, errors.New("completion without its argument")
	}
	b = vault.AppendQuoted(append(b, `{"argument":{"name":`...), name)
	b = append(append(b, `,"value":`...), value.Raw()...)
	b = append(b, `},"context":{"arguments":{`...)
	for key, v := range c.Args.Root().All() {
		if key == name {
			continue
		}
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = append(vault.AppendQuoted(b, key), ':')
		b = append(b, v.Raw()...)
	}
	if c.Kind == vault.KindPrompt {
		b = append(b, `}},"ref":{"type":"ref/prompt","name":`...)
	} else {
		b = append(b, `}},"ref":{"type":"ref/resource","uri":`...)
	}
	return append(vault.AppendQuoted(b, c.Target.Name), '}', '}'), nil
}
