package anchor

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/pilox/vault/evidence"
)

// ErrAhead means that a witness has seen more of the ledger than there is: it was
// rolled back, or another one is signed with its key.
var ErrAhead = errors.New("the witness has seen more records than the ledger has")

// cosign asks a witness by add-checkpoint (https://c2sp.org/tlog-witness). size is
// what it is thought to hold. It returns what it holds, and the lines to add to the
// note.
func (a *Anchorer) cosign(ctx context.Context, w evidence.PolicyWitness, note []byte, cp evidence.Checkpoint, size uint64) (uint64, []byte, error) {
	for range 3 { // it says what it holds; and may move meanwhile
		if size > cp.Size {
			return 0, nil, fmt.Errorf("%w: %d, and it has %d", ErrAhead, size, cp.Size)
		}
		body, err := a.request(ctx, note, cp, size)
		if err != nil {
			return size, nil, err
		}
		status, answer, err := a.post(ctx, w.URL, "add-checkpoint", "text/plain", body)
		switch {
		case err != nil:
			return size, nil, err
		case status == http.StatusOK:
			lines, err := a.cosignature(w.Name, note, answer)
			if err != nil {
				return size, nil, err
			}
			return cp.Size, lines, nil
		case status == http.StatusConflict:
			has, err := strconv.ParseUint(strings.TrimSuffix(string(answer), "\n"), 10, 63)
			if err != nil || has == size {
				return 0, nil, errors.New("it holds another size and does not say which")
			}
			size = has
		default:
			return 0, nil, fmt.Errorf("status %d", status)
		}
	}
	return size, nil, errors.New("it changes its mind about what it holds")
}

func (a *Anchorer) request(ctx context.Context, note []byte, cp evidence.Checkpoint, size uint64) ([]byte, error) {
	path, err := a.source.Consistency(ctx, size, cp.Size)
	if err != nil {
		return nil, err
	}
	b := fmt.Appendf(nil, "old %d\n", size)
	for _, h := range path {
		b = base64.StdEncoding.AppendEncode(b, h[:])
		b = append(b, '\n')
	}
	b = append(b, '\n')
	return append(b, note...), nil
}

// cosignature returns the lines of an answer that are by the witness with this name
// and over the note that was sent. Everything else in it is dropped.
func (a *Anchorer) cosignature(name string, note, answer []byte) ([]byte, error) {
	for line := range strings.Lines(string(answer)) {
		if !strings.HasPrefix(line, "— ") || !strings.HasSuffix(line, "\n") {
			continue
		}
		signed := append(note[:len(note):len(note)], line...)
		if _, names, _ := a.policy.Cosigned(signed); slices.Contains(names, name) {
			return []byte(line), nil
		}
	}
	return nil, errors.New("its answer is not its signature over this checkpoint")
}
