package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// In the era without sessions a server cannot send requests: it answers
// input_required, and the client calls again with the input. An upstream of the
// other era does send requests, in the middle of a call. For such a pair the call
// is parked: it waits in this process, the client gets input_required, and the
// requestState in it finds the call again.

// parkedPrefix starts each requestState of ours. Those of upstreams are passed
// through, and only calls whose upstream has none of its own are parked.
const parkedPrefix = "vault-parked-"

// inputKey is the name of the only input request in an answer of ours.
const inputKey = "input"

// maxParked bounds the calls that wait for one caller's input, and 16 times as many in all.
const maxParked = 16

// A parkedCall is a call that can wait for input. One goroutine runs it; at most
// one request of the client is attached to it at a time.
type parkedCall struct {
	state  string
	key    string       // of the caller
	digest vault.Digest // what was called: another call cannot be answered with its outcome
	cancel context.CancelCauseFunc

	asks    chan parkedAsk // unbuffered: taken by an attached request only
	outcome chan parkedOutcome
	turn    chan struct{} // one request of the server at a time

	mu    sync.Mutex
	reply *reply // of the attached request; nil while parked
	timer *time.Timer
}

// A parkedAsk is a request of the server on its way to the client.
type parkedAsk struct {
	method string
	params json.RawMessage
	answer chan clientAnswer
}

type parkedOutcome struct {
	res vault.Result
	err error
}

// A parkingLot holds the calls that wait for input.
type parkingLot struct {
	wg sync.WaitGroup

	mu      sync.Mutex // guards what follows
	calls   map[string]*waiting
	running map[*parkedCall]bool
	closed  bool
}

// waiting is a parked call and the question it waits on.
type waiting struct {
	call *parkedCall
	ask  parkedAsk
}

func newParkingLot() *parkingLot {
	return &parkingLot{calls: make(map[string]*waiting), running: make(map[*parkedCall]bool)}
}

func (l *parkingLot) mine(state string) bool { return strings.HasPrefix(state, parkedPrefix) }

// close cancels all calls and waits for them.
func (l *parkingLot) close() {
	l.mu.Lock()
	l.closed = true
	for c := range l.running {
		c.cancel(errClientCancelled)
	}
	l.mu.Unlock()
	l.wg.Wait()
}

// callDigest identifies what a client calls, apart from the rounds of input.
func callDigest(c *vault.Call) vault.Digest {
	args := c.Args.Digest()
	return vault.Hash("mcp-parked", []byte(c.Kind), c.Target.Server[:], []byte(c.Target.Name), args[:])
}

// runParkable runs a call of a client that can be asked for input.
func (f *Front) runParkable(q *request, p *prepared) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(q.with(q.r.Context())))
	c := &parkedCall{
		state:   parkedPrefix + strings.TrimPrefix(vault.NewCallID(), "c-"),
		key:     q.caller.Key,
		digest:  callDigest(p.call),
		cancel:  cancel,
		asks:    make(chan parkedAsk),
		outcome: make(chan parkedOutcome, 1),
		turn:    make(chan struct{}, 1),
		reply:   newReply(q),
	}
	l := f.parked
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		cancel(nil)
		f.conclude(q, p, c.reply, vault.Result{}, vault.NewDenial(vault.CodeBusy, "", nil))
		return
	}
	l.running[c] = true
	l.wg.Add(1)
	l.mu.Unlock()
	go func() {
		defer l.wg.Done()
		res, err := f.cfg.Gateway.Handle(ctx, p.call, &parkedStream{c, q.client})
		cancel(nil)
		l.mu.Lock()
		delete(l.running, c)
		l.mu.Unlock()
		c.outcome <- parkedOutcome{res, err}
	}()
	f.attend(q, p, c)
}

// attend waits for the next thing a parkable call has to say to the attached request.
func (f *Front) attend(q *request, p *prepared, c *parkedCall) {
	c.mu.Lock()
	out := c.reply
	c.mu.Unlock()
	select {
	case o := <-c.outcome:
		f.conclude(q, p, out, o.res, o.err)
	case ask := <-c.asks:
		c.mu.Lock()
		c.reply = nil
		c.mu.Unlock()
		if err := f.park(c, ask); err != nil {
			ask.answer <- clientAnswer{err: err}
			c.mu.Lock()
			c.reply = out
			c.mu.Unlock()
			o := <-c.outcome
			f.conclude(q, p, out, o.res, o.err)
			return
		}
		out.finish(http.StatusOK, nil, inputRequired(c.state, ask))
	case <-q.r.Context().Done():
		c.cancel(errClientCancelled)
		o := <-c.outcome
		f.conclude(q, p, out, o.res, o.err)
	}
}

// park lets a call wait for the client to come back with an answer.
func (f *Front) park(c *parkedCall, ask parkedAsk) error {
	l := f.parked
	l.mu.Lock()
	defer l.mu.Unlock()
	mine := 0
	for _, w := range l.calls {
		if w.call.key == c.key {
			mine++
		}
	}
	if l.closed || mine >= maxParked || len(l.calls) >= 16*maxParked {
		return vault.NewDenial(vault.CodeBusy, "", errors.New("too many calls wait for input"))
	}
	l.calls[c.state] = &waiting{c, ask}
	c.timer = time.AfterFunc(f.cfg.ParkFor, func() {
		l.mu.Lock()
		w := l.calls[c.state]
		delete(l.calls, c.state)
		l.mu.Unlock()
		if w != nil {
			c.cancel(errors.New("nobody came back with the input"))
		}
	})
	return nil
}

// resumeParked continues a parked call with the input that a request brings.
func (f *Front) resumeParked(q *request, p *prepared) {
	l := f.parked
	l.mu.Lock()
	w := l.calls[p.state]
	if w == nil || w.call.key != q.caller.Key || w.call.digest != callDigest(p.call) {
		l.mu.Unlock()
		f.fail(q, badRequest(codeInvalidParams, "requestState is unknown, used, or of another call"))
		return
	}
	answer := p.responses.Get(inputKey)
	if answer.Kind() != vault.Object {
		l.mu.Unlock()
		// The input is still missing: ask again.
		newReply(q).finish(http.StatusOK, nil, inputRequired(p.state, w.ask))
		return
	}
	delete(l.calls, p.state)
	w.call.timer.Stop()
	l.mu.Unlock()
	c := w.call
	c.mu.Lock()
	c.reply = newReply(q)
	c.mu.Unlock()
	w.ask.answer <- clientAnswer{result: []byte(answer.Raw())}
	f.attend(q, p, c)
}

// inputRequired is the result that asks the client for input.
func inputRequired(state string, ask parkedAsk) []byte {
	b := appendQuoted([]byte(`{"resultType":"input_required","inputRequests":{"`+inputKey+`":{"method":`), ask.method)
	b = append(b, `,"params":`...)
	if ask.params == nil {
		ask.params = []byte("{}")
	}
	b = append(append(b, ask.params...), `}},"requestState":`...)
	return append(appendQuoted(b, state), '}')
}

// A parkedStream is the vault.Stream of a parkable call.
type parkedStream struct {
	c      *parkedCall
	client *client
}

// Notify sends to the attached request. While the call waits for input nobody
// listens, and progress is dropped.
func (s *parkedStream) Notify(ctx context.Context, method string, params json.RawMessage) error {
	s.c.mu.Lock()
	out := s.c.reply
	s.c.mu.Unlock()
	if out == nil {
		return nil
	}
	_ = out.Notify(ctx, method, params) // it fails when the request was answered in between
	return nil
}

// Request hands a server's request to the attached request and waits until the
// client comes back.
func (s *parkedStream) Request(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error) {
	if !s.client.has(method) {
		return nil, vault.NewDenial(vault.CodeCapabilityTarget, "", fmt.Errorf("the client did not declare %s", method))
	}
	cancelled := func() (json.RawMessage, error) {
		return nil, vault.NewDenial(vault.CodeCancelled, "", context.Cause(ctx))
	}
	select {
	case s.c.turn <- struct{}{}:
		defer func() { <-s.c.turn }()
	case <-ctx.Done():
		return cancelled()
	}
	ask := parkedAsk{method, params, make(chan clientAnswer, 1)}
	select {
	case s.c.asks <- ask:
	case <-ctx.Done():
		return cancelled()
	}
	select {
	case a := <-ask.answer:
		return a.result, a.err
	case <-ctx.Done():
		return cancelled()
	}
}
