package vault

import (
	"encoding/json"
	"fmt"
	"time"
)

// A Context is what a decision about a call was based on beside the call itself, in
// the form that records keep: with the call's arguments it makes [Facts] again, so
// that other rules can be tried on what happened. It holds names of sources and
// readers and is therefore a sensitive field.
type Context struct {
	Integrity  string          `json:"integrity"`
	Public     bool            `json:"public,omitempty"` // everybody may read what is in scope
	Readers    []string        `json:"readers,omitempty"`
	Sources    []Source        `json:"sources,omitempty"`
	Origins    []Origin        `json:"origins,omitempty"`
	Calls      int             `json:"calls"`
	Denies     int             `json:"denies"`
	Definition Digest          `json:"definition,omitzero"`
	Risk       string          `json:"risk"`
	ReadOnly   bool            `json:"read_only,omitempty"`
	Local      bool            `json:"local,omitempty"`
	Roles      map[string]Role `json:"roles,omitempty"`
	Server     string          `json:"server,omitempty"`
	Chain      Digest          `json:"chain"`
	Links      []Digest        `json:"links"`
	Expires    time.Time       `json:"expires"`
	Ask        []string        `json:"ask,omitempty"`
	MayRead    []string        `json:"may_read,omitempty"`
	MaySendTo  []string        `json:"may_send_to,omitempty"`
}

// Context returns what stands in the record of a call.
func (f *Facts) Context() ([]byte, error) {
	c := Context{
		Integrity: f.Scope.Integrity.String(), Public: f.Scope.Readers.IsPublic(), Readers: f.Scope.Readers.Names(), Sources: f.Scope.Sources, Origins: f.Origins,
		Calls: f.Calls, Denies: f.Denies,
		Definition: f.Tool.Definition, Risk: f.Tool.Risk.String(), ReadOnly: f.Tool.ReadOnly, Local: f.Tool.Local, Roles: f.Tool.Roles,
		Server: f.Call.Server, Chain: f.Grant.Chain, Links: f.Grant.Links, Expires: f.Grant.Expires,
		Ask: f.Grant.Ask, MayRead: f.Grant.MayRead, MaySendTo: f.Grant.MaySendTo,
	}
	b, err := json.Marshal(&c)
	if err != nil {
		return nil, fmt.Errorf("encode context: %w", err)
	}
	return b, nil
}

// ParseContext reads what [Facts.Context] wrote and fills in f, whose Call, Grant
// and Tool must be there.
func ParseContext(b []byte, f *Facts) error {
	var c Context
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("decode context: %w", err)
	}
	integrity, err := ParseIntegrity(c.Integrity)
	if err != nil {
		return fmt.Errorf("decode context: %w", err)
	}
	readers := Only(c.Readers...)
	if c.Public {
		readers = Public()
	}
	f.Scope = Label{Integrity: integrity, Readers: readers, Sources: c.Sources}
	f.Origins, f.Calls, f.Denies = c.Origins, c.Calls, c.Denies
	f.Tool.Definition, f.Tool.ReadOnly, f.Tool.Local, f.Tool.Roles = c.Definition, c.ReadOnly, c.Local, c.Roles
	f.Tool.Risk = RiskHigh
	for _, r := range []Risk{RiskLow, RiskMedium} {
		if r.String() == c.Risk {
			f.Tool.Risk = r
		}
	}
	f.Tool.Server, f.Call.Server = c.Server, c.Server
	f.Grant.Chain, f.Grant.Links, f.Grant.Expires = c.Chain, c.Links, c.Expires
	f.Grant.Ask, f.Grant.MayRead, f.Grant.MaySendTo = c.Ask, c.MayRead, c.MaySendTo
	return nil
}
