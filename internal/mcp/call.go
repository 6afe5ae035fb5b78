package mcp

import (
	"errors"
	"net/http"
	"strings"

	"github.com/pilox/vault"
)

// A prepared call, and what the answer needs to know about its definition.
type prepared struct {
	call            *vault.Call
	hasOutputSchema bool
	state           string // requestState, if the client resumes
	responses       vault.Value
}

// maxCallID bounds a client's call id: it stands in every record of the call.
const maxCallID = 128

// CheckCallID reports whether a client may name a call so: 1 to 128 bytes of visible
// ASCII without / and ~, which mark the calls that happen inside another one.
func CheckCallID(id string) error {
	if id == "" || len(id) > maxCallID || strings.ContainsAny(id, "/~") {
		return errors.New("a call id has 1 to 128 bytes without / and ~")
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' {
			return errors.New("a call id is visible ASCII")
		}
	}
	return nil
}

// makeCall makes a vault.Call of a request. Params of the call holds the method and
// whatever parameters have no place of their own:
//
//	{"method", "_meta" without the protocol's own keys, "inputResponses", "requestState",
//	 "ref" and "argument" of a completion, …}
func (f *Front) makeCall(q *request, view *View) (*prepared, *failure) {
	c := &vault.Call{Edge: "mcp", At: f.cfg.Now(), Credential: q.caller.Credential}
	p := &prepared{call: c}
	skip := "" // the parameter that became the target
	var args vault.Value
	switch q.method {
	case methodToolsCall, methodPromptsGet:
		name, ok := q.params.Get("name").Str()
		if !ok {
			return nil, badRequest(codeInvalidParams, "name is missing")
		}
		args = q.params.Get("arguments")
		if k := args.Kind(); k != vault.Absent && k != vault.Object {
			return nil, badRequest(codeInvalidParams, "arguments must be an object")
		}
		l := view.prompts
		c.Kind = vault.KindPrompt
		if q.method == methodToolsCall {
			l, c.Kind = view.tools, vault.KindTool
		}
		var e *entry
		c.Target, c.Server, e = view.target(l, name)
		if e != nil {
			p.hasOutputSchema = e.schemaOut
			if modern(q.client.version) && len(e.bindings) > 0 {
				if err := checkParamHeaders(q.r.Header, e.bindings, args); err != nil {
					return nil, badRequest(codeHeaderMismatch, err.Error())
				}
			}
		}
		skip = "name"
	case methodResourcesRead, methodSubscribe, methodUnsubscribe:
		uri, ok := q.params.Get("uri").Str()
		if !ok || uri == "" {
			return nil, badRequest(codeInvalidParams, "uri is missing")
		}
		c.Kind = vault.KindResource
		c.Target, c.Server = view.resource(uri)
		skip = "uri"
	case methodComplete:
		return f.makeCompletion(q, view, p)
	}
	if args.Kind() == vault.Absent {
		args = emptyObject.Root()
	}
	c.Args = args.Args()
	return p, p.finish(q, skip)
}

var emptyObject = vault.MustArgs("{}")

// makeCompletion makes the call for completion/complete: a use of the prompt or
// resource it refers to, with the values given so far as arguments. Params says
// which one of them is to be completed, so that what is decided and what is sent
// cannot differ.
func (f *Front) makeCompletion(q *request, view *View, p *prepared) (*prepared, *failure) {
	c := p.call
	ref, argument := q.params.Get("ref"), q.params.Get("argument")
	name, okName := argument.Get("name").Str()
	value := argument.Get("value")
	if !okName || value.Kind() != vault.String {
		return nil, badRequest(codeInvalidParams, "argument needs a name and a value")
	}
	switch kind, _ := ref.Get("type").Str(); kind {
	case "ref/prompt":
		prompt, ok := ref.Get("name").Str()
		if !ok {
			return nil, badRequest(codeInvalidParams, "ref needs a name")
		}
		c.Kind = vault.KindPrompt
		c.Target, c.Server, _ = view.target(view.prompts, prompt)
	case "ref/resource":
		uri, ok := ref.Get("uri").Str()
		if !ok {
			return nil, badRequest(codeInvalidParams, "ref needs a uri")
		}
		c.Kind = vault.KindResource
		c.Target, c.Server = view.resource(uri)
		if e := view.templates.byName[uri]; e != nil {
			c.Target, c.Server = vault.Target{Server: e.server.ID, Name: uri}, e.server.Name
		}
	default:
		return nil, badRequest(codeInvalidParams, "ref needs a type")
	}
	b := append(vault.AppendQuoted([]byte{'{'}, name), ':')
	b = append(b, value.Raw()...)
	for k, v := range q.params.Get("context").Get("arguments").All() {
		if k == name || v.Kind() != vault.String {
			continue // the value being completed stands in argument
		}
		b = append(vault.AppendQuoted(append(b, ','), k), ':')
		b = append(b, v.Raw()...)
	}
	args, err := vault.ParseArgs(append(b, '}'))
	if err != nil {
		return nil, badRequest(codeInvalidParams, "context.arguments: "+err.Error())
	}
	c.Args = args
	params := vault.AppendQuoted([]byte(`{"argument":`), name)
	params = vault.AppendQuoted(append(params, `,"method":`...), q.method)
	c.Params, err = vault.ParseArgs(append(params, '}'))
	if err != nil {
		return nil, badRequest(codeInvalidParams, err.Error())
	}
	c.ID, c.Generated = vault.NewCallID(), true
	return p, nil
}

// finish fills in the id and Params of a call.
func (p *prepared) finish(q *request, skip string) *failure {
	c := p.call
	b := make([]byte, 0, 128)
	b = vault.AppendQuoted(append(b, `{"method":`...), q.method)
	for key, v := range q.params.All() {
		switch key {
		case skip, "arguments":
			continue
		case "method":
			return badRequest(codeInvalidParams, "unknown parameter method")
		case "_meta":
			if v.Kind() != vault.Object {
				return badRequest(codeInvalidParams, "_meta must be an object")
			}
			var fail *failure
			if b, fail = p.meta(b, v); fail != nil {
				return fail
			}
			continue
		case "requestState":
			p.state, _ = v.Str()
		case "inputResponses":
			p.responses = v
		}
		b = append(vault.AppendQuoted(append(b, ','), key), ':')
		b = append(b, v.Raw()...)
	}
	params, err := vault.ParseArgs(append(b, '}'))
	if err != nil {
		return badRequest(codeInvalidParams, err.Error())
	}
	c.Params = params
	switch {
	case c.ID == "":
		c.ID, c.Generated = vault.NewCallID(), true
	case p.state != "" || p.responses.Kind() != vault.Absent:
		// A client that names its calls sends the same name with the input it was
		// asked for. That is a further round, not a retry.
		c.ID += "~" + params.Digest().String()[:16]
	}
	return nil
}

// meta appends the _meta keys that are the caller's own and takes the call id.
func (p *prepared) meta(b []byte, meta vault.Value) ([]byte, *failure) {
	first := true
	for key, v := range meta.All() {
		switch {
		case key == "progressToken":
			if k := v.Kind(); k != vault.String && k != vault.Number {
				return b, badRequest(codeInvalidParams, "progressToken must be a string or an integer")
			}
			continue
		case key == CallIDKey:
			id, ok := v.Str()
			if !ok || CheckCallID(id) != nil {
				return b, badRequest(codeInvalidParams, CallIDKey+" must be a string of 1 to 128 visible ASCII characters without / and ~")
			}
			p.call.ID = id
			continue
		case strings.HasPrefix(key, reservedMeta):
			continue
		}
		if first {
			b = append(b, `,"_meta":{`...)
		} else {
			b = append(b, ',')
		}
		first = false
		b = append(vault.AppendQuoted(b, key), ':')
		b = append(b, v.Raw()...)
	}
	if !first {
		b = append(b, '}')
	}
	return b, nil
}

// run has the gateway handle a call and answers with what comes of it.
func (f *Front) run(q *request, p *prepared) {
	if modern(q.client.version) {
		if f.parked.mine(p.state) {
			f.resumeParked(q, p)
			return
		}
		if q.client.capabilities != nil {
			f.runParkable(q, p)
			return
		}
		out := newReply(q)
		res, err := f.cfg.Gateway.Handle(q.with(q.r.Context()), p.call, out)
		f.conclude(q, p, out, res, err)
		return
	}
	f.runLegacy(q, p)
}

// conclude writes the outcome of a call.
func (f *Front) conclude(q *request, p *prepared, out *reply, res vault.Result, err error) {
	modernEra := modern(q.client.version)
	var d *vault.Denial
	switch {
	case err != nil:
		d = vault.DenialOf(err)
	case res.Withheld:
		d = vault.NewDenial(vault.CodeResultWithheld, "", nil)
		d.Verdict, d.Executed = "withheld", vault.ExecutedYes
	}
	if d != nil {
		if d.DecisionID == "" {
			d.DecisionID = p.call.ID
		}
		if d.Err != nil {
			f.cfg.Log.Debug("mcp call denied", "code", d.Reason.Code, "call", p.call.ID, "cause", d.Err)
		}
		if p.call.Kind == vault.KindTool {
			out.finish(http.StatusOK, nil, denialResult(d, p.hasOutputSchema, modernEra))
			return
		}
		out.finish(http.StatusOK, denialObject(d), nil)
		return
	}
	if res.Refused {
		status := http.StatusOK
		if modernEra {
			status = errorStatus(res.Raw)
		}
		out.finish(status, res.Raw, nil)
		return
	}
	out.finish(http.StatusOK, nil, res.Raw)
}

// errorStatus is the HTTP status of an error object in the era without sessions.
func errorStatus(object []byte) int {
	e, err := remoteError(object)
	if err != nil {
		return http.StatusOK
	}
	switch e.Code {
	case codeMethodNotFound:
		return http.StatusNotFound
	case codeInvalidParams, codeVersion, codeVersion + 1: // -32021: a client capability is missing
		return http.StatusBadRequest
	}
	return http.StatusOK
}
