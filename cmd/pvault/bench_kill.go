package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// Sizes of the kill area. A chain has at most 64 sessions, so a thousand take
// sixteen tasks.
const (
	killRounds   = 5
	killTasks    = 16
	killSessions = 64 // of each task
	killConns    = 32
	killWarm     = 500 // calls before the command
)

// killArea measures the kill switch: how long after the command a call was still
// accepted, on any of a thousand live sessions.
func (b *bench) killArea(ctx context.Context) error {
	var late, command times
	for round := range killRounds {
		b.progress(fmt.Sprintf("kill: round %d of %d, %d sessions", round+1, killRounds, killTasks*killSessions))
		l, c, err := b.killRound(ctx)
		if err != nil {
			return err
		}
		late, command = append(late, l...), append(command, c)
	}
	b.add("kill.p99", late.percentile(99), unitTime, "the command itself, p50", command.percentile(50), 100_000_000)
	return nil
}

// killRound returns, for each connection, how long after the command its last call
// was accepted, and how long the command took.
func (b *bench) killRound(ctx context.Context) (late times, command time.Duration, err error) {
	r, err := newBenchRig(ctx, b.dir, false)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	agents, err := r.many(ctx, killTasks, killSessions)
	if err != nil {
		return nil, 0, err
	}
	client := admin.NewClient(r.socket())
	defer client.Close()

	var (
		wg   sync.WaitGroup
		last = make([]time.Time, killConns)
		errs = make([]error, killConns)
		next atomic.Int64
		warm = make(chan struct{})
	)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i := range killConns {
		w, err := dialWire(ctx, r.agent.addr)
		if err != nil {
			return nil, 0, err
		}
		defer w.close()
		wg.Go(func() {
			var request []byte
			for {
				n := int(next.Add(1))
				if n == killWarm {
					close(warm)
				}
				agent := agents[n%len(agents)]
				if request, errs[i] = agent.request(request[:0]); errs[i] != nil {
					return
				}
				if err := w.call(request); err != nil {
					if !strings.Contains(err.Error(), "capability.revoked") {
						errs[i] = err
					}
					return
				}
				last[i] = time.Now()
			}
		})
	}
	select {
	case <-warm:
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("calls before the command: %w", ctx.Err())
	}
	start := time.Now()
	if _, err := client.Revoke(ctx, admin.RevokeRequest{What: "all", Why: "bench"}); err != nil {
		return nil, 0, fmt.Errorf("revoke everything: %w", err)
	}
	command = time.Since(start)
	wg.Wait()
	for _, t := range last {
		late = append(late, max(t.Sub(start), 0))
	}
	return late, command, errors.Join(errs...)
}

// socket is the rig's admin socket.
func (r *benchRig) socket() string { return filepath.Join(r.dir, "data", "admin.sock") }

// many mints tasks and opens sessions of each.
func (r *benchRig) many(ctx context.Context, tasks, sessions int) ([]*benchAgent, error) {
	client := admin.NewClient(r.socket())
	defer client.Close()
	approver, err := daemon.OpenApprover(filepath.Join(r.dir, "data", "approvers"), "default", nil)
	if err != nil {
		return nil, err
	}
	defer approver.Close()
	status, err := client.Status(ctx)
	if err != nil {
		return nil, err
	}
	var gateway capability.Key
	if err := gateway.UnmarshalText([]byte(status.SessionKey)); err != nil {
		return nil, fmt.Errorf("session key: %w", err)
	}
	var agents []*benchAgent
	for i := range tasks {
		public, private, err := ed25519.GenerateKey(nil)
		if err != nil {
			return nil, err
		}
		file := strings.Replace(benchTask, "through the gateway", fmt.Sprintf("through the gateway, task %d", i), 1)
		task, err := client.MintTask(ctx, admin.TaskRequest{File: []byte(file), Agent: "bench", Bind: "key:" + base64.RawURLEncoding.EncodeToString(public)}, "default", approver)
		if err != nil {
			return nil, fmt.Errorf("mint task %d: %w", i, err)
		}
		for range sessions {
			a := &benchAgent{addr: r.agent.addr, token: task.Token, target: r.agent.target}
			a.calls.Store(uint64(len(agents)) << 20) // ids of its own
			if err := a.openSession(ctx, gateway, private); err != nil {
				return nil, err
			}
			agents = append(agents, a)
		}
	}
	return agents, nil
}
