package main

import (
	"encoding/json"
	"testing"
)

// TestTailFilter: a filter takes what it names, and without a name everything.
func TestTailFilter(t *testing.T) {
	e := json.RawMessage(`{"leaf":{"class":"call","phase":"refused"}}`)
	for _, tt := range []struct {
		filter eventFilter
		want   bool
	}{
		{eventFilter{}, true},
		{eventFilter{classes: []string{"task", "call"}}, true},
		{eventFilter{phases: []string{"refused"}}, true},
		{eventFilter{classes: []string{"task"}}, false},
		{eventFilter{classes: []string{"call"}, phases: []string{"done"}}, false},
	} {
		if got, err := tt.filter.takes(e); got != tt.want || err != nil {
			t.Errorf("%+v: %v, %v", tt.filter, got, err)
		}
	}
}
