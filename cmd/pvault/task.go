package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// taskFlags say which task a command works under.
type taskFlags struct {
	file     string
	agent    string
	approver string
	fresh    bool
}

func (t *taskFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&t.file, "task", "", "task file")
	f.StringVar(&t.agent, "agent", "", "name of the agent (default local)")
	f.BoolVar(&t.fresh, "new", false, "open a new instance of the task, with fresh budgets")
	f.StringVar(&t.approver, "approver", "", "approver key to mint with if the file is new or changed")
}

// request reads the task file and its inputs.
func (t *taskFlags) request() (admin.TaskRequest, error) {
	if t.file == "" {
		return admin.TaskRequest{}, usage{errors.New("say which task: --task FILE")}
	}
	file, inputs, err := daemon.ReadTask(t.file)
	if err != nil {
		return admin.TaskRequest{}, err
	}
	return admin.TaskRequest{File: file, Inputs: inputs, Agent: t.agent, New: t.fresh}, nil
}

// open rejoins the task, or mints it if an approver was named.
func (a *app) open(ctx context.Context, client *admin.Client, t taskFlags) (admin.Task, error) {
	r, err := t.request()
	if err != nil {
		return admin.Task{}, err
	}
	if t.approver == "" {
		return client.OpenTask(ctx, r)
	}
	return a.mint(ctx, client, t.approver, r)
}

// mint opens a task with an approver's signature.
func (a *app) mint(ctx context.Context, client *admin.Client, approver string, r admin.TaskRequest) (admin.Task, error) {
	c, err := a.load()
	if err != nil {
		return admin.Task{}, err
	}
	key, err := a.signer(c, approver)
	if err != nil {
		return admin.Task{}, err
	}
	defer key.Close()
	return client.MintTask(ctx, r, approver, key)
}
