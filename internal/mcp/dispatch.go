package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/pilox/vault"
)

// dispatch answers a classified message.
func (f *Front) dispatch(q *request) {
	switch {
	case q.method == "":
		q.session.answered(q.id, q.body.Root())
		q.w.WriteHeader(http.StatusAccepted)
	case q.id == nil:
		f.notification(q)
	case modern(q.client.version):
		f.modernCall(q)
	default:
		f.legacyCall(q)
	}
}

// notification takes what needs no answer. In the era without sessions a client
// cancels by closing its stream, so there is nothing to take.
func (f *Front) notification(q *request) {
	if s := q.session; s != nil && q.method == noteCancelled {
		s.cancel(q.params.Get("requestId").Raw())
	}
	q.w.WriteHeader(http.StatusAccepted)
}

func (f *Front) modernCall(q *request) {
	switch q.method {
	case methodDiscover:
		b := append([]byte(`{"supportedVersions":`), versionsJSON()...)
		b = append(append(b, `,"capabilities":`...), f.capabilities(q.caller.View, true)...)
		if f.cfg.Instructions != "" {
			b = appendQuoted(append(b, `,"instructions":`...), f.cfg.Instructions)
		}
		f.answer(q, append(b, f.modernTail(true)...))
	case methodListen:
		f.listen(q)
	case methodInitialize, methodPing, methodSetLevel, methodSubscribe, methodUnsubscribe:
		f.notFound(q) // of the other era
	default:
		f.commonCall(q)
	}
}

func (f *Front) legacyCall(q *request) {
	switch q.method {
	case methodInitialize:
		f.initialize(q)
	case methodPing:
		f.answer(q, []byte("{}"))
	case methodSetLevel:
		level, _ := q.params.Get("level").Str()
		if !validLevel(level) {
			f.fail(q, badRequest(codeInvalidParams, "unknown log level"))
			return
		}
		q.session.setLevel(level)
		f.answer(q, []byte("{}"))
	case methodSubscribe, methodUnsubscribe:
		f.subscription(q)
	default:
		f.commonCall(q)
	}
}

// commonCall answers what both eras have.
func (f *Front) commonCall(q *request) {
	view := q.caller.View
	if view == nil {
		view = NewView(nil)
	}
	switch q.method {
	case methodToolsList:
		f.list(q, view.tools, "tools")
	case methodPromptsList:
		f.list(q, view.prompts, "prompts")
	case methodResourcesList:
		f.list(q, view.resources, "resources")
	case methodTemplatesList:
		f.list(q, view.templates, "resourceTemplates")
	case methodToolsCall, methodPromptsGet, methodResourcesRead, methodComplete:
		c, fail := f.makeCall(q, view)
		if fail != nil {
			f.refused(q, fail)
			f.fail(q, fail)
			return
		}
		f.run(q, c)
	default:
		f.notFound(q)
	}
}

// notFound answers an unknown method. The era without sessions wants 404.
func (f *Front) notFound(q *request) {
	fail := &failure{http.StatusOK, codeMethodNotFound, "method not found", nil}
	if modern(q.client.version) {
		fail.status = http.StatusNotFound
	}
	f.fail(q, fail)
}

// fail answers with an error that is no denial.
func (f *Front) fail(q *request, fail *failure) {
	status := fail.status
	if !modern(q.client.version) {
		status = http.StatusOK // JSON-RPC errors of that era are ordinary answers
	}
	writeJSON(q.w, status, appendErrorObject(nil, q.id, errorObject(fail.code, fail.text, fail.data)))
}

// refused reports a request that could not become a call.
func (f *Front) refused(q *request, fail *failure) {
	if f.cfg.Refused != nil {
		f.cfg.Refused(q.r.Context(), &q.caller.Credential, vault.NewDenial(vault.CodeRequestMalformed, "", errors.New(fail.text)))
	}
}

// answer writes a result object.
func (f *Front) answer(q *request, result []byte) {
	newReply(q).finish(http.StatusOK, nil, result)
}

// modernTail closes a result object of the edge's own with what the era without
// sessions wants in each: its type, who answers, and for how long it may be kept.
// What a task sees is private to it and can change at any time.
func (f *Front) modernTail(cacheable bool) []byte {
	var b []byte
	if cacheable {
		b = append(b, `,"ttlMs":0,"cacheScope":"private"`...)
	}
	b = appendQuoted(append(b, `,"resultType":"complete","_meta":{`...), metaServerInfo)
	b = append(append(b, ':'), f.info.json(f.cfg.Name, f.cfg.Version)...)
	return append(b, '}', '}')
}

// list answers one page of pinned definitions.
func (f *Front) list(q *request, l *list, field string) {
	from := 0
	if c := q.params.Get("cursor"); c.Kind() != vault.Absent && c.Kind() != vault.Null {
		s, _ := c.Str()
		n, err := strconv.Atoi(s)
		if err != nil || n <= 0 || n >= len(l.entries) {
			f.fail(q, badRequest(codeInvalidParams, "unknown cursor"))
			return
		}
		from = n
	}
	b := append(appendQuoted([]byte{'{'}, field), ':')
	b, to := l.page(b, from)
	if to < len(l.entries) {
		b = append(b, `,"nextCursor":"`...)
		b = append(strconv.AppendInt(b, int64(to), 10), '"')
	}
	if modern(q.client.version) {
		b = append(b, f.modernTail(true)...)
	} else {
		b = append(b, '}')
	}
	f.answer(q, b)
}

// capabilities declares what the view has.
func (f *Front) capabilities(v *View, modernEra bool) []byte {
	if v == nil {
		v = NewView(nil)
	}
	b := []byte(`{"completions":{}`)
	if !modernEra {
		b = append(b, `,"logging":{}`...)
	}
	if len(v.tools.entries) > 0 {
		b = append(b, `,"tools":{"listChanged":true}`...)
	}
	if len(v.prompts.entries) > 0 {
		b = append(b, `,"prompts":{"listChanged":true}`...)
	}
	if len(v.resources.entries)+len(v.templates.entries) > 0 {
		b = append(b, `,"resources":{"listChanged":true,"subscribe":`...)
		b = append(strconv.AppendBool(b, f.cfg.Upstreams != nil), '}')
	}
	return append(b, '}')
}

// initialize opens a session of the era that has them.
func (f *Front) initialize(q *request) {
	s, evicted, d := f.sessions.open(q.caller.Key, q.client)
	if evicted != nil {
		f.ended(evicted)
	}
	if d != nil {
		writeJSON(q.w, http.StatusServiceUnavailable, appendErrorObject(nil, q.id, denialObject(d)))
		return
	}
	s.listener = newListener(q.caller.Key)
	s.listener.everything()
	f.listeners.add(s.listener)
	q.w.Header().Set(headerSession, s.id)
	b := appendQuoted([]byte(`{"protocolVersion":`), s.version)
	b = append(append(b, `,"capabilities":`...), f.capabilities(q.caller.View, false)...)
	b = append(append(b, `,"serverInfo":`...), f.info.json(f.cfg.Name, f.cfg.Version)...)
	if f.cfg.Instructions != "" {
		b = appendQuoted(append(b, `,"instructions":`...), f.cfg.Instructions)
	}
	f.answer(q, append(b, '}'))
}

// validLevel reports whether s is a level of RFC 5424, which MCP logging uses.
func validLevel(s string) bool {
	switch s {
	case "debug", "info", "notice", "warning", "error", "critical", "alert", "emergency":
		return true
	}
	return false
}

func versionsJSON() []byte {
	b, err := json.Marshal(allVersions)
	if err != nil { // strings only
		return []byte("[]")
	}
	return b
}

// with puts the client into the context for the other side of the edge.
func (q *request) with(ctx context.Context) context.Context {
	return context.WithValue(ctx, clientKey{}, q.client)
}
