package authz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/pilox/vault"
)

// An entity is a subject or resource of AuthZEN.
type entity struct {
	Type       string          `json:"type"`
	ID         string          `json:"id"`
	Properties json.RawMessage `json:"properties"`
}

type action struct {
	Name       string          `json:"name"`
	Properties json.RawMessage `json:"properties"`
}

// An evaluation is one question. The subject is an agent, who must be the one of the
// capability that authenticates the request; the action names the kind of call; the
// resource names the target; the arguments of the call are context.arguments, and
// context.call_id makes a question that is asked again the same one, which costs
// nothing. X-Request-ID does not: gateways pass on the one that a client chose.
type evaluation struct {
	Subject  *entity         `json:"subject"`
	Action   *action         `json:"action"`
	Resource *entity         `json:"resource"`
	Context  json.RawMessage `json:"context"`
}

// A batch asks several questions with defaults for what they leave out.
type batch struct {
	evaluation
	Evaluations []evaluation    `json:"evaluations"`
	Options     json.RawMessage `json:"options"`
}

// A decided is an answer. The context of a no is a [vault.Denial]: why, and how to
// ask for more.
type decided struct {
	Decision bool          `json:"decision"`
	Context  *vault.Denial `json:"context,omitempty"`
}

// Handler serves POST /access/v1/evaluation and POST /access/v1/evaluations. Host
// and Origin are for whoever mounts it to check.
func (d *Doors) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /access/v1/evaluation", d.evaluate)
	mux.HandleFunc("POST /access/v1/evaluations", d.evaluateAll)
	return mux
}

func (d *Doors) evaluate(w http.ResponseWriter, r *http.Request) {
	cred, body, ok := d.open(w, r)
	if !ok {
		return
	}
	var q evaluation
	if err := decode(body, &q); err != nil {
		d.garbage(w, r, cred, err)
		return
	}
	answer(w, r, d.ask(r.Context(), &q, cred))
}

func (d *Doors) evaluateAll(w http.ResponseWriter, r *http.Request) {
	cred, body, ok := d.open(w, r)
	if !ok {
		return
	}
	var b batch
	if err := decode(body, &b); err != nil {
		d.garbage(w, r, cred, err)
		return
	}
	semantic, err := semanticOf(b.Options)
	if err != nil || len(b.Evaluations) > maxQuestions {
		d.garbage(w, r, cred, fmt.Errorf("want at most %d evaluations and known options", maxQuestions))
		return
	}
	if len(b.Evaluations) == 0 { // the specification: without them it is a single one
		answer(w, r, d.ask(r.Context(), &b.evaluation, cred))
		return
	}
	out := struct {
		Evaluations []decided `json:"evaluations"`
	}{}
	for _, q := range b.Evaluations {
		if q.Subject == nil {
			q.Subject = b.Subject
		}
		if q.Action == nil {
			q.Action = b.Action
		}
		if q.Resource == nil {
			q.Resource = b.Resource
		}
		if q.Context == nil {
			q.Context = b.Context
		}
		one := d.ask(r.Context(), &q, cred)
		out.Evaluations = append(out.Evaluations, one)
		if semantic == "deny_on_first_deny" && !one.Decision || semantic == "permit_on_first_permit" && one.Decision {
			break
		}
	}
	answer(w, r, out)
}

func semanticOf(options json.RawMessage) (string, error) {
	if options == nil {
		return "", nil
	}
	var o struct {
		Semantic string `json:"evaluations_semantic"`
	}
	if err := json.Unmarshal(options, &o); err != nil {
		return "", err
	}
	switch o.Semantic {
	case "", "execute_all", "deny_on_first_deny", "permit_on_first_permit":
		return o.Semantic, nil
	}
	return "", errors.New("unknown semantic")
}

// open authenticates before it reads the body.
func (d *Doors) open(w http.ResponseWriter, r *http.Request) (cred vault.Credential, body []byte, ok bool) {
	cred, err := d.c.Authenticate(r)
	if err != nil {
		w.Header().Set("Www-Authenticate", "Bearer")
		http.Error(w, vault.DenialOf(err).Error(), http.StatusUnauthorized)
		return cred, nil, false
	}
	body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxQuestion))
	if err != nil {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return cred, nil, false
	}
	return cred, body, true
}

// garbage answers what is no question, and has it recorded.
func (d *Doors) garbage(w http.ResponseWriter, r *http.Request, cred vault.Credential, err error) {
	_ = d.c.Refuse(r.Context(), newCall("authzen", cred), vault.NewDenial(vault.CodeRequestMalformed, "", err))
	http.Error(w, err.Error(), http.StatusBadRequest)
}

// decode holds a body to I-JSON before it is read: a key twice could be read one way
// here and another way by whoever asks.
func decode(body []byte, into any) error {
	if _, err := vault.ParseValue(body); err != nil {
		return errors.New("the body is no strict JSON")
	}
	if err := json.Unmarshal(body, into); err != nil {
		return errors.New("the body is no evaluation request")
	}
	return nil
}

// ask decides one question.
func (d *Doors) ask(ctx context.Context, q *evaluation, cred vault.Credential) decided {
	call := newCall("authzen", cred)
	denial := d.decide(ctx, call, d.question(ctx, call, q))
	return decided{Decision: denial == nil, Context: denial}
}

var (
	errQuestion = errors.New("want subject, action and resource")
	errSubject  = errors.New("the subject is not the agent of the capability")
	errAction   = errors.New("the action is no kind of call")
)

// question makes c the call that q is about.
func (d *Doors) question(ctx context.Context, c *vault.Call, q *evaluation) error {
	bad := func(err error) error { return vault.NewDenial(vault.CodeRequestMalformed, "", err) }
	if q.Subject == nil || q.Action == nil || q.Resource == nil {
		return bad(errQuestion)
	}
	if q.Subject.Type != "agent" || q.Subject.ID == "" || vault.AgentID(q.Subject.ID) != d.c.Agent(ctx, c.Credential) {
		return vault.NewDenial(vault.CodeProof, "", errSubject)
	}
	kind, err := vault.ParseKind(q.Action.Name)
	if err != nil || kind == vault.KindServerRequest || q.Resource.Type != string(kind) {
		return bad(errAction)
	}
	c.Kind = kind
	var more struct {
		Arguments json.RawMessage `json:"arguments"`
		CallID    string          `json:"call_id"`
	}
	if q.Context != nil {
		if err := json.Unmarshal(q.Context, &more); err != nil {
			return bad(err)
		}
	}
	if err := identify(c, more.CallID); err != nil {
		return err
	}
	if more.Arguments == nil {
		more.Arguments = json.RawMessage("{}")
	}
	if c.Args, err = vault.ParseArgs(more.Arguments); err != nil {
		return err
	}
	return d.aim(c, q.Resource.ID)
}

func answer(w http.ResponseWriter, r *http.Request, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if id := r.Header.Get("X-Request-ID"); id != "" && len(id) <= maxID {
		w.Header().Set("X-Request-ID", id)
	}
	_, _ = w.Write(b) // a client that is gone has nothing to learn
}
