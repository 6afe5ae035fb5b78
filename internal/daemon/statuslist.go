package daemon

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/keystore"
	"github.com/pilox/vault/internal/oauth"
	"github.com/pilox/vault/internal/store"
)

// statusLife is how long a status list counts.
const statusLife = time.Hour

// StatusList returns the signed list of which root links were revoked, by the index
// that each task got when it was opened. It is served on the admin socket only:
// every listener of ours authenticates, and a list that others read is published by
// the operator where they look for it.
func (b backend) StatusList(ctx context.Context, uri string) (string, error) {
	d := b.d
	rows, err := d.rows.Tasks(ctx, "")
	if err != nil {
		return "", err
	}
	var list oauth.StatusList
	first, err := d.firstStatus(ctx)
	if err != nil {
		return "", err
	}
	for i := range first { // of tasks that a recovery ended
		if err := list.Set(i, true); err != nil {
			return "", err
		}
	}
	for _, row := range rows {
		doc, err := decodeTask(row)
		if err != nil {
			return "", err
		}
		if doc.Status == nil {
			continue
		}
		revoked := doc.Revoked || d.verifier.RevokedRoot(&vault.Grant{
			Task: row.ID, Agents: []vault.AgentID{doc.Agent}, Links: []vault.Digest{doc.Root}, Issuer: rootKID, Issued: doc.Issued,
		})
		if row.State == store.TaskClosed {
			revoked = true // also after its life: the capability is void
		}
		if err := list.Set(*doc.Status, revoked); err != nil {
			return "", fmt.Errorf("task %s: %w", row.ID, err)
		}
	}
	key, err := d.keys.Signer(keystore.StatusList)
	if err != nil {
		return "", err
	}
	return list.Sign(key, key.Thumbprint(), uri, time.Now(), statusLife)
}

// statusKey is the public half of the key that signs status lists.
func (d *Daemon) statusKey() string {
	key, err := d.keys.Signer(keystore.StatusList)
	if err != nil {
		return ""
	}
	k, err := capability.KeyOf(key.Public())
	if err != nil {
		return ""
	}
	return k.String()
}

// nextStatus returns the index for the status of a new root link: the lowest that no
// task has. d.tasksMu is held.
func (d *Daemon) nextStatus(ctx context.Context) (int, error) {
	if d.statuses < 0 {
		rows, err := d.rows.Tasks(ctx, "")
		if err != nil {
			return 0, err
		}
		first, err := d.firstStatus(ctx)
		if err != nil {
			return 0, err
		}
		d.statuses = first
		for _, row := range rows {
			if doc, err := decodeTask(row); err == nil && doc.Status != nil {
				d.statuses = max(d.statuses, *doc.Status+1)
			}
		}
	}
	d.statuses++
	return d.statuses - 1, nil
}

// firstStatus returns the first index that this ledger gives out. Those below were
// given out before a recovery.
func (d *Daemon) firstStatus(ctx context.Context) (int, error) {
	doc, ok, err := d.setting(ctx, settingStatuses)
	if !ok {
		return 0, err
	}
	n, err := strconv.Atoi(string(doc))
	if err != nil || n < 0 {
		return 0, errors.New("the first index of the status list cannot be read, and without it what was revoked would pass for valid")
	}
	return n, nil
}

// CheckStatus verifies a status list under the key of its issuer (ed25519:…) and
// returns whether the root link at index was revoked. It needs no daemon.
func CheckStatus(list, key string, index int) (revoked bool, uri string, err error) {
	var k capability.Key
	if err := k.UnmarshalText([]byte(key)); err != nil {
		return false, "", err
	}
	public, ok := k.Public().(ed25519.PublicKey)
	if !ok {
		return false, "", fmt.Errorf("key %s: want Ed25519", key)
	}
	l, uri, err := oauth.ParseStatusList(list, public, time.Now())
	if err != nil {
		return false, "", err
	}
	revoked, err = l.Revoked(index)
	return revoked, uri, err
}
