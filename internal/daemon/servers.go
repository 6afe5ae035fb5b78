package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/mcp"
	"github.com/pilox/vault/internal/sandbox"
	"github.com/pilox/vault/internal/sandbox/process"
	"github.com/pilox/vault/internal/store"
	"github.com/pilox/vault/internal/tool"
)

// A serverStore keeps the catalogue's documents in the store.
type serverStore struct{ rows *store.Tenant }

// Get returns the document of a server.
func (s serverStore) Get(ctx context.Context, name string) ([]byte, bool, error) {
	r, err := s.rows.Record(ctx, store.KindServer, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, false, nil
	}
	return r.Doc, err == nil, err
}

// Put replaces the document.
func (s serverStore) Put(ctx context.Context, name string, doc []byte) error {
	return s.rows.PutRecord(ctx, store.Record{Kind: store.KindServer, ID: name, Doc: doc})
}

// List returns the names of all servers.
func (s serverStore) List(ctx context.Context) ([]string, error) {
	list, err := s.rows.Records(ctx, store.KindServer, "")
	if err != nil {
		return nil, err
	}
	names := make([]string, len(list))
	for i, r := range list {
		names[i] = r.ID
	}
	return names, nil
}

// Delete removes the document.
func (s serverStore) Delete(ctx context.Context, name string) error {
	err := s.rows.DeleteRecord(ctx, store.KindServer, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

func (d *Daemon) openServers(ctx context.Context) error {
	var err error
	if d.catalogue, err = tool.Open(ctx, tool.Config{Store: serverStore{d.rows}, Log: d.log}); err != nil {
		return err
	}
	for name, err := range d.catalogue.CheckTrees(ctx) {
		// The server is marked and nothing of it is callable; the others work.
		d.log.ErrorContext(ctx, "installed tree is not as pinned", "server", name, "err", err)
	}
	d.upstreams = mcp.NewUpstreams(mcp.UpstreamsConfig{
		Permit: func(ctx context.Context, f *vault.Facts, n int, method string, params json.RawMessage) error {
			return d.gateway.Permit(ctx, f, n, method, params)
		},
		Changed:   d.relist,
		MaxResult: d.conf.Limits.Result,
		Name:      "vault",
		Version:   Version,
		Log:       d.log,
	})
	d.onClose(func() error { d.upstreams.Close(); return nil })
	for _, s := range d.catalogue.Servers() {
		if err := d.connect(s); err != nil {
			d.log.ErrorContext(ctx, "server cannot be reached", "server", s.Name, "err", err)
		}
	}
	return nil
}

// connect makes a registered server callable.
func (d *Daemon) connect(s tool.Server) error {
	reg := s.Registration
	server := mcp.Server{ID: s.ID, Name: s.Name, PerTask: !reg.Shared, Timeout: d.conf.Limits.Call}
	if reg.URL != "" {
		if reg.Auth.Secret != "" {
			return fmt.Errorf("server %s: secrets are not in this version", s.Name)
		}
		server.PerTask = false
		var err error
		if server.Dial, err = mcp.DialHTTP(mcp.HTTPConfig{URL: reg.URL, AllowLoopback: reg.AllowHTTP}); err != nil {
			return err
		}
		return d.upstreams.Add(server)
	}
	server.Dial = mcp.DialStdio(mcp.StdioConfig{Spawn: func(ctx context.Context, _ mcp.Instance) (mcp.Process, error) {
		return d.spawn(ctx, s.ID)
	}})
	return d.upstreams.Add(server)
}

// spawn verifies the tree of a server and starts it in a jail.
func (d *Daemon) spawn(ctx context.Context, id vault.ServerID) (mcp.Process, error) {
	launch, err := d.catalogue.Launch(ctx, id)
	if err != nil {
		return nil, err
	}
	spec := sandbox.Spec{
		Argv:     launch.Argv,
		Dir:      launch.Dir,
		ReadOnly: []sandbox.Mount{{Host: launch.Dir}},
		MinGrade: d.minGrade(),
		Limits:   sandbox.Limits{Memory: d.conf.Limits.Memory, Pids: d.conf.Limits.Processes},
	}
	if err := d.show(&spec, launch.Read, launch.Write); err != nil {
		return nil, err
	}
	p, err := d.jail.Start(context.WithoutCancel(ctx), spec)
	if err != nil {
		return nil, err
	}
	return &guest{p}, nil
}

// minGrade is the least grade that the configuration lets anything start under.
func (d *Daemon) minGrade() vault.Grade {
	g, err := vault.ParseGrade(d.conf.Sandbox.MinGrade)
	if err != nil {
		return vault.GradeA // cannot happen after Complete, and must not loosen anything
	}
	if g == vault.GradeNone {
		return vault.GradeD // the least that a jail can be
	}
	return g
}

// A guest is a jailed process as the stdio client wants it.
type guest struct{ p *process.Process }

// Stdin returns the guest's standard input.
func (g *guest) Stdin() io.WriteCloser { return g.p.Stdin }

// Stdout returns the guest's standard output.
func (g *guest) Stdout() io.Reader { return g.p.Stdout }

// Stderr returns the guest's standard error.
func (g *guest) Stderr() io.Reader { return g.p.Stderr }

// Wait returns when the guest is gone.
func (g *guest) Wait() error {
	e := g.p.Wait()
	if err := g.p.Close(); err != nil {
		return err
	}
	if e.Reason != process.Exited || e.Code != 0 {
		return fmt.Errorf("server ended: %s, code %d %s", e.Reason, e.Code, e.Signal)
	}
	return nil
}

// Kill ends the guest.
func (g *guest) Kill() error {
	g.p.Kill()
	return nil
}

// addServer installs, registers, lists and pins a server.
func (d *Daemon) addServer(ctx context.Context, approver string, r admin.ServerRequest, progress func(string)) (admin.Server, error) {
	d.serversMu.Lock()
	defer d.serversMu.Unlock()
	if err := tool.CheckName(r.Name); err != nil {
		return admin.Server{}, invalid(err)
	}
	reg, err := tool.ParseRegistration(r.Registration)
	if err != nil {
		return admin.Server{}, invalid(err)
	}
	if err := d.show(new(sandbox.Spec), reg.Read, reg.Write); err != nil {
		return admin.Server{}, err
	}
	if _, err := d.catalogue.Server(r.Name); err == nil {
		return admin.Server{}, invalid(fmt.Errorf("a server %q is registered already; remove it first with pvault server rm", r.Name))
	}
	var tree tool.Tree
	if !reg.Install.IsZero() {
		progress("installing " + reg.Install.String() + " without scripts, with no network but the registry")
		dest := d.path("trees", r.Name+"-"+vault.NewCallID()[2:10])
		if err := os.MkdirAll(filepath.Dir(dest), 0o700); err != nil {
			return admin.Server{}, err
		}
		var log tail
		if tree, err = tool.Install(ctx, tool.InstallConfig{Jail: installer{d}, Log: &log}, reg.Install, reg.Entry, dest); err != nil {
			return admin.Server{}, fmt.Errorf("install: %w%s", err, log.quoted())
		}
		progress(fmt.Sprintf("installed %d files, %d bytes, digest %s", tree.Files, tree.Bytes, tree.Digest))
	}
	s, err := d.catalogue.Register(ctx, r.Name, reg, tree)
	if err == nil {
		err = d.connect(s)
	}
	if err == nil {
		progress("starting it in its sandbox and pinning what it lists")
		err = d.pin(ctx, s)
	}
	if err != nil {
		return admin.Server{}, errors.Join(err, d.forget(ctx, r.Name))
	}
	if err := d.recordServer(ctx, approver, r.Name, "registered"); err != nil {
		return admin.Server{}, errors.Join(err, d.forget(ctx, r.Name))
	}
	return d.describeServer(r.Name)
}

// forget undoes a registration.
func (d *Daemon) forget(ctx context.Context, name string) error {
	s, err := d.catalogue.Server(name)
	if err != nil {
		return nil //nolint:nilerr // there is nothing to undo
	}
	d.upstreams.Remove(s.ID)
	if err := d.catalogue.Remove(context.WithoutCancel(ctx), name); err != nil {
		return err
	}
	d.viewsChanged()
	if s.Tree.IsZero() {
		return nil
	}
	return tool.RemoveTree(s.Tree.Dir)
}

// listing is the task name of connections on which servers are listed. No
// capability can name it.
const listing vault.TaskID = "listing"

func (d *Daemon) list(ctx context.Context, id vault.ServerID) (tool.Listing, error) {
	inst := mcp.Instance{Tenant: d.tenant}
	if s, err := d.catalogue.ServerByID(id); err == nil && s.Registration.URL == "" {
		inst.Task = listing
		defer d.upstreams.EndTask(d.tenant, listing) // a process that only lists need not stay
	} // a connection to a URL stays: it brings the word that a list changed
	l, err := d.upstreams.List(ctx, id, inst)
	if err != nil {
		return tool.Listing{}, err
	}
	raw := func(defs []mcp.Definition) []json.RawMessage {
		out := make([]json.RawMessage, len(defs))
		for i, d := range defs {
			out[i] = d.Raw
		}
		return out
	}
	return tool.Listing{Tools: raw(l.Tools), Resources: raw(l.Resources), Templates: raw(l.Templates), Prompts: raw(l.Prompts)}, nil
}

func (d *Daemon) pin(ctx context.Context, s tool.Server) error {
	l, err := d.list(ctx, s.ID)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if _, err := d.catalogue.Pin(ctx, s.Name, l); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	d.viewsChanged()
	return nil
}

// observe holds what a server lists now against what is pinned, and records the
// differences.
func (d *Daemon) observe(ctx context.Context, s tool.Server) error {
	l, err := d.list(ctx, s.ID)
	if err != nil {
		return err
	}
	changes, err := d.catalogue.Observe(ctx, s.Name, l)
	if err != nil {
		return err
	}
	if len(changes) == 0 {
		return nil
	}
	d.viewsChanged()
	for _, c := range changes {
		d.log.WarnContext(ctx, "server offers something else", "server", s.Name, "item", c.Target.Name, "what", c.What, "quarantined", c.Quarantined)
		note, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("encode change: %w", err)
		}
		if _, err := d.ledger.Commit(ctx, &vault.Event{
			Class: vault.ClassServer, Phase: vault.PhaseNoted, Target: c.Target, Kind: c.Kind, Reason: vault.CodeToolQuarantined,
			Fields: []vault.Field{{Name: "note", Value: note}},
		}); err != nil {
			return err
		}
	}
	return nil
}

// recordServer records what an approver did with a server.
func (d *Daemon) recordServer(ctx context.Context, approver, name, what string) error {
	s, err := d.catalogue.Server(name)
	if err != nil {
		return err
	}
	doc, err := json.Marshal(s.Registration)
	if err != nil {
		return fmt.Errorf("encode registration: %w", err)
	}
	_, err = d.ledger.Commit(ctx, &vault.Event{
		Class: vault.ClassServer, Phase: vault.PhaseNoted, Verdict: vault.Allow, Target: vault.Target{Server: s.ID},
		Fields: []vault.Field{
			{Name: "definition", Value: doc},
			{Name: "note", Value: []byte(what + " " + name + " by " + d.signedBy(approver))},
		},
	})
	return err
}

func (d *Daemon) reviewServer(ctx context.Context, name string) (admin.Server, error) {
	d.serversMu.Lock()
	defer d.serversMu.Unlock()
	s, err := d.catalogue.Server(name)
	if err != nil {
		return admin.Server{}, notFound("server", name)
	}
	if err := d.observe(ctx, s); err != nil {
		return admin.Server{}, err
	}
	return d.describeServer(name)
}

// acceptServer pins the definitions with the digests that an approver signed for,
// all or none. A server that offers something else by now is to be looked at again.
func (d *Daemon) acceptServer(ctx context.Context, approver, name string, r admin.AcceptRequest) (admin.Server, error) {
	d.serversMu.Lock()
	defer d.serversMu.Unlock()
	s, err := d.catalogue.Server(name)
	if err != nil {
		return admin.Server{}, notFound("server", name)
	}
	if len(r.Offers) == 0 {
		return admin.Server{}, invalid(errors.New("nothing to accept"))
	}
	if err := d.observe(ctx, s); err != nil {
		return admin.Server{}, err
	}
	if s, err = d.catalogue.Server(name); err != nil {
		return admin.Server{}, err
	}
	for _, o := range r.Offers {
		if o.Digest.IsZero() || !slices.ContainsFunc(s.Items, func(it tool.Item) bool {
			return it.Kind == o.Kind && it.Name == o.Name && it.Offered == o.Digest
		}) {
			return admin.Server{}, &admin.Error{Code: "invalid", Message: fmt.Sprintf("%s %s is not offered any more as it was shown", o.Kind, o.Name), Hint: "look again: pvault server review " + name}
		}
	}
	what := "reviewed and accepted"
	for _, o := range r.Offers {
		if _, err := d.catalogue.Accept(ctx, name, o.Kind, o.Name, o.Digest); err != nil {
			return admin.Server{}, fmt.Errorf("accept %s: %w", o.Name, err)
		}
		what += fmt.Sprintf(" %s %s (%s)", o.Kind, o.Name, o.Digest)
	}
	d.viewsChanged()
	if err := d.recordServer(ctx, approver, name, what+" of"); err != nil {
		return admin.Server{}, err
	}
	return d.describeServer(name)
}

func (d *Daemon) removeServer(ctx context.Context, approver, name string) error {
	d.serversMu.Lock()
	defer d.serversMu.Unlock()
	if _, err := d.catalogue.Server(name); err != nil {
		return notFound("server", name)
	}
	if err := d.recordServer(ctx, approver, name, "removed"); err != nil {
		return err
	}
	return d.forget(ctx, name)
}

func notFound(what, name string) error {
	return &admin.Error{Code: "not_found", Message: fmt.Sprintf("no %s %q", what, name), Hint: "pvault server ls and pvault cap ls list what there is"}
}

func (d *Daemon) describeServer(name string) (admin.Server, error) {
	s, err := d.catalogue.Server(name)
	if err != nil {
		return admin.Server{}, notFound("server", name)
	}
	reg := s.Registration
	out := admin.Server{Name: s.Name, ID: s.ID.String(), Source: reg.Install.String(), Integrity: reg.Source.String(), Holds: reg.Holds.String(), State: "ready"}
	if reg.URL != "" {
		out.Source = reg.URL
	}
	switch {
	case s.Broken != nil:
		out.State = "broken: " + s.Broken.Error()
	case !s.Pinned:
		out.State = "not pinned"
	}
	for _, it := range s.Items {
		if !it.Offered.IsZero() && it.State != tool.StateRefused && (it.Offer != "" || it.Offered == it.Definition) {
			out.Offers = append(out.Offers, admin.Offer{Kind: it.Kind, Name: it.Name, Digest: it.Offered, Text: it.Offer})
		}
		switch it.State {
		case tool.StatePinned:
			if it.Kind == vault.KindTool && !it.Gone {
				out.Tools = append(out.Tools, it.Name)
			}
		case tool.StateNew:
			out.New = append(out.New, it.Name)
		case tool.StateQuarantined, tool.StateRefused:
			if out.Quarantined == nil {
				out.Quarantined = map[string]string{}
			}
			out.Quarantined[it.Name] = it.Why
		}
		for _, f := range it.Findings {
			out.Findings = append(out.Findings, fmt.Sprintf("%s %s: %s %s", f.Tool, f.Where, f.What, f.Detail))
		}
	}
	slices.Sort(out.Tools)
	out.Review = admin.ReviewOf(out.Offers)
	return out, nil
}
