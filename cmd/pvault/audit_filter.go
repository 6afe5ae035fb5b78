package main

import (
	"encoding/json"
	"fmt"
	"slices"
)

// An eventFilter chooses events; the zero one takes them all.
type eventFilter struct{ classes, phases []string }

func (f *eventFilter) takes(raw json.RawMessage) (bool, error) {
	if len(f.classes)+len(f.phases) == 0 {
		return true, nil
	}
	var e struct{ Leaf struct{ Class, Phase string } }
	if err := json.Unmarshal(raw, &e); err != nil {
		return false, fmt.Errorf("decode event: %w", err)
	}
	return (len(f.classes) == 0 || slices.Contains(f.classes, e.Leaf.Class)) &&
		(len(f.phases) == 0 || slices.Contains(f.phases, e.Leaf.Phase)), nil
}
