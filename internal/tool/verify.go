package tool

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/pilox/vault"
)

// A Verifier checks that a tree is still the one that was pinned. It remembers
// what the files looked like when they had the pinned digest (size, mode, inode,
// times), and reads only what looks different; on platforms without a change time
// it reads everything. The zero Verifier remembers nothing. It is safe for
// concurrent use.
//
// What this does not see is a change to a block device under a mounted file
// system, or by somebody who sets the clock: both need root on the host.
type Verifier struct {
	mu   sync.Mutex
	seen map[string]sighting // by directory
}

// A sighting is what a verified tree looked like.
type sighting struct {
	tree        Tree
	files       []treeFile
	interpreter fileStat
}

// Verify returns an error that wraps [ErrTreeChanged] if t or its interpreter has
// another digest than when it was installed. A full check reads every file.
func (v *Verifier) Verify(ctx context.Context, t Tree, full bool) error {
	root, err := os.OpenRoot(t.Dir)
	if err != nil {
		return fmt.Errorf("verify tree: %w", err)
	}
	defer root.Close()
	files, err := readTree(ctx, root)
	if err != nil {
		return fmt.Errorf("verify tree: %w: %w", ErrTreeChanged, err)
	}
	var program fileStat
	if t.Runtime == RuntimeNode {
		info, err := os.Stat(t.Interpreter)
		if err != nil {
			return fmt.Errorf("verify interpreter: %w", err)
		}
		program = statOf(info)
	}
	v.mu.Lock()
	old, ok := v.seen[t.Dir]
	v.mu.Unlock()
	same := ok && !full && old.tree == t
	if !same || !slices.EqualFunc(old.files, files, unchanged) {
		digest, err := digestFiles(ctx, root, files)
		if err != nil {
			return fmt.Errorf("verify tree: %w", err)
		}
		if digest != t.Digest {
			return fmt.Errorf("verify tree %s: %w", t.Dir, ErrTreeChanged)
		}
	}
	if t.Runtime == RuntimeNode && (!same || !program.OK || program != old.interpreter) {
		digest, err := digestProgram(t.Interpreter)
		if err != nil {
			return err
		}
		if digest != t.InterpreterDigest {
			return fmt.Errorf("verify interpreter %s: %w", t.Interpreter, ErrTreeChanged)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.seen == nil {
		v.seen = map[string]sighting{}
	}
	v.seen[t.Dir] = sighting{t, files, program}
	return nil
}

// forget drops what is remembered of a directory.
func (v *Verifier) forget(dir string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.seen, dir)
}

// unchanged compares two sightings of a file. The stats were taken before the
// content was read, so a change during the read shows at the next check.
func unchanged(a, b treeFile) bool { return a.stat.OK && a == b }

// A Launch is everything needed to start a verified server.
type Launch struct {
	Server  string
	ID      vault.ServerID
	Argv    []string // absolute program first
	Dir     string   // the tree, read-only
	Read    []string
	Write   []string
	Profile string
	Shared  bool
}

// Launch verifies the tree of an installed server and returns how to start it.
// It has no environment and no network to give. A tree that changed is marked:
// from then on no call to the server resolves, until a Launch or
// [Catalogue.CheckTrees] finds it as pinned again.
func (c *Catalogue) Launch(ctx context.Context, id vault.ServerID) (Launch, error) {
	s, ok := c.snap.Load().byID[id]
	if !ok {
		return Launch{}, fmt.Errorf("launch %s: %w", id, ErrUnknownServer)
	}
	t := &s.rec.Tree
	if t.IsZero() {
		return Launch{}, fmt.Errorf("launch %s: a url server is not started", s.rec.Name)
	}
	if err := c.verify(ctx, s, false); err != nil {
		return Launch{}, fmt.Errorf("launch %s: %w", s.rec.Name, err)
	}
	reg := &s.rec.Registration
	l := Launch{
		Server: s.rec.Name, ID: s.id, Dir: t.Dir,
		Read: slices.Clone(reg.Read), Write: slices.Clone(reg.Write),
		Profile: reg.Profile, Shared: reg.Shared,
	}
	if t.Runtime == RuntimeNode {
		l.Argv = append(l.Argv, t.Interpreter)
	}
	l.Argv = append(append(l.Argv, t.Dir+"/"+t.Entry), reg.Args...)
	return l, nil
}

// CheckTrees reads every installed tree in full, for the start of a daemon. It
// returns the names of the servers whose tree is not as pinned, with the reason;
// those are marked as [Catalogue.Launch] does.
func (c *Catalogue) CheckTrees(ctx context.Context) map[string]error {
	bad := map[string]error{}
	for _, s := range c.snap.Load().byName {
		if s.rec.Tree.IsZero() {
			continue
		}
		if err := c.verify(ctx, s, true); err != nil {
			bad[s.rec.Name] = err
		}
	}
	return bad
}

// verify checks the tree of s and keeps the outcome with the server.
func (c *Catalogue) verify(ctx context.Context, s *server, full bool) error {
	err := c.trees.Verify(ctx, s.rec.Tree, full)
	if ctx.Err() != nil {
		return err // says nothing about the tree
	}
	if err == nil && s.broken == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now, ok := c.snap.Load().byID[s.id]
	if !ok {
		return fmt.Errorf("verify %s: %w", s.rec.Name, ErrUnknownServer)
	}
	next := *now
	next.broken = err
	c.show(&next)
	if err != nil {
		c.cfg.Log.ErrorContext(ctx, "installed tree does not verify", "server", s.rec.Name, "err", err)
	}
	return err
}
